"""Corrections for a sampler that is not the policy: on where they belong, said in the objective, the right weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.algorithms import load
from posttrain.batch import Source, TokenBatch, TokenSequence
from posttrain.config import load_recipe
from posttrain.errors import RecipeError
from posttrain.estimator import Algorithm, PolicyTerm
from posttrain.estimator.importance import SamplerCorrection
from posttrain.estimator.masks import Product
from posttrain.trainer import train
from posttrain.trainer.corrected import algorithm_of
from posttrain.trainer.explain import explain

WriteRecipe = Callable[..., Path]

GRPO = {"name": "grpo"}


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    tiny_recipe["prompts"] = tiny_recipe.pop("demonstrations")
    return tiny_recipe | {"algorithm": GRPO}


@pytest.mark.parametrize(
    ("algorithm", "rollout", "corrected"),
    [
        (GRPO, {}, {}),
        (GRPO, {"updates": 4}, {}),
        (GRPO, {"max_staleness": 1}, {"policy": ("token", "truncate", 2.0)}),
        (GRPO, {"engine": "vllm"}, {"policy": ("token", "truncate", 2.0)}),
        (GRPO, {"dtype": "bfloat16"}, {"policy": ("token", "truncate", 2.0)}),
        (GRPO, {"max_staleness": 1, "old_logprobs": "sampler"}, {}),
        (GRPO, {"max_staleness": 1, "correction_cap": 3.0}, {"policy": ("token", "truncate", 3.0)}),
        (GRPO, {"correction": "geometric_mask"}, {"policy": ("geometric", "mask", 2.0)}),
        (GRPO | {"preset": "trl"}, {"max_staleness": 1}, {}),
        ({"name": "rloo"}, {"max_staleness": 1}, {"policy": ("token", "truncate", 2.0)}),
        ({"name": "raft"}, {"max_staleness": 1}, {}),
        ({"name": "dppo"}, {"max_staleness": 1}, {}),
        ({"name": "oreal", "token_model": False}, {"max_staleness": 1}, {"policy": ("token", "truncate", 2.0)}),
        ({"name": "oreal", "one_each": True}, {"max_staleness": 1}, {"policy": ("token", "truncate", 2.0)}),
    ],
)
def test_where_it_is_on(
    algorithm: dict[str, Any],
    rollout: dict[str, Any],
    corrected: dict[str, Any],
    recipe: dict[str, Any],
    write_recipe: WriteRecipe,
) -> None:
    recipe["rollout"] |= rollout
    found = algorithm_of(load_recipe(write_recipe(recipe | {"algorithm": algorithm})).recipe)
    weights = {one.name: one.correction for one in found.terms if isinstance(one, PolicyTerm) and one.correction}
    assert {name: (one.level, one.mode, one.cap) for name, one in weights.items()} == corrected


def _batch() -> TokenBatch:
    """Two groups of rollouts with old and behavior logprobs, and a demonstration without."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda: tuple((-torch.rand(3, generator=generator, dtype=torch.float64) - 0.1).tolist())  # noqa: E731
    made = [
        TokenSequence((1, 2, 3, 4), (False, True, True, True), Source.ROLLOUTS, i // 2, reward=float(i % 2),
                      behavior_logprobs=draw(), old_logprobs=draw())
        for i in range(4)
    ]  # fmt: skip
    made.append(TokenSequence((1, 2, 3, 4), (False, True, True, True), Source.DEMONSTRATIONS, 2))
    batch = TokenBatch.from_sequences(made, torch.float64)
    logprobs = (-torch.rand(15, generator=generator, dtype=torch.float64) - 0.1).requires_grad_()
    return replace(batch, logprobs=logprobs, entropy=torch.zeros(15, dtype=torch.float64))


@pytest.mark.parametrize("mode", ["truncate", "mask"])
def test_its_gradient_is_that_of_the_same_mask(mode: Any) -> None:
    plain = load("grpo", kl_weight=0.0).terms[0]
    assert isinstance(plain, PolicyTerm)
    weights = SamplerCorrection("token", mode, 1.1)
    gradients = []
    for term in (replace(plain, correction=weights), replace(plain, mask=Product(plain.mask, weights)), plain):
        batch = _batch()
        found = Algorithm("x", (term,))(batch)
        found.loss.backward()
        assert batch.logprobs is not None and batch.logprobs.grad is not None
        gradients.append(batch.logprobs.grad)
        assert term.needs >= weights.needs or term is plain
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-12, atol=0)
    assert (gradients[0] - gradients[2]).abs().max() > 1e-3


def test_without_rollouts_there_is_nothing_to_correct() -> None:
    plain = load("grpo", kl_weight=0.0).terms[0]
    assert isinstance(plain, PolicyTerm)
    demonstration = TokenSequence((1, 2), (False, True), Source.DEMONSTRATIONS, 0)
    batch = TokenBatch.from_sequences([demonstration])
    logprobs = torch.zeros(1, requires_grad=True)
    batch = replace(batch, logprobs=logprobs, old_logprobs=logprobs.detach())
    assert Algorithm("x", (replace(plain, correction=SamplerCorrection()),))(batch).loss == 0


def test_the_objective_says_so(recipe: dict[str, Any], write_recipe: WriteRecipe) -> None:
    path = write_recipe(recipe)
    shown = explain(str(path), ["rollout.max_staleness=1", "rollout.correction_cap=3"], "text")
    assert "[clip(pi_old/pi_behavior, 0, 3)]" in shown
    assert "policy.correction.cap" in shown and "rollout.correction_cap, command line" in shown
    assert "rollout.correction, default" in shown
    assert "played at most 1 phase(s) ahead" in shown
    found = json.loads(explain(str(path), ["rollout.old_logprobs=sampler"], "json"))
    assert found["values"]["rollout.old_logprobs"]["value"] == "sampler"
    assert "correction" not in found["terms"][0]["parts"]
    assert "rollout.correction_cap" not in found["values"]


VARIED = '''
"""A reward that differs from completion to completion."""

def varied(completion: str) -> float:
    """0 or 1."""
    return float(sum(map(ord, completion)) % 4 == 0)
'''


def test_old_logprobs_of_the_sampler(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ratio begins at what was sampled: 1 where nothing is stale, and else away from it before the first update."""
    recipe["rollout"] |= {"old_logprobs": "sampler", "max_staleness": 1}
    recipe["training"] |= {"learning_rate": 0.01}
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "varied.py").write_text(VARIED)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    recipe["rewards"] = [{"name": "varied"}]
    train(load_recipe(write_recipe(recipe)), tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["policy/kl_k3"] == pytest.approx(0, abs=1e-9)
    assert all(row["policy/kl_k3"] > 1e-6 for row in rows[1:])


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        (
            {},
            ["rollout.max_staleness=1", "rollout.engine=vllm"],
            r"max_staleness: 1 is not allowed: vLLM in the",
        ),
        (
            {"algorithm": {"name": "j_bond"}},
            ["rollout.max_staleness=2"],
            "2 is not allowed: algorithm 'j_bond'",
        ),
        (
            {},
            ["rollout.old_logprobs=sampler", "rollout.correction=token_mask"],
            "correction: 'token_mask' is not",
        ),
        ({"algorithm": {"name": "raft"}}, ["rollout.correction=token_mask"], "rollout.correction: set, but nothing"),
        ({"algorithm": {"name": "raft"}}, ["rollout.old_logprobs=sampler"], "rollout.old_logprobs: set, but nothing"),
        ({}, ["rollout.correction_cap=3"], "rollout.correction_cap: set, but nothing would read it: nothing is corr"),
        (
            {"algorithm": GRPO | {"preset": "trl"}},
            ["rollout.correction=token_truncate"],
            "rollout.correction: set, but nothing would read it: algorithm 'grpo' has no policy gradient",
        ),
    ],
)
def test_what_cannot_work_or_is_not_read(
    changes: dict[str, Any], more: list[str], message: str, recipe: dict[str, Any], write_recipe: WriteRecipe
) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe(write_recipe(recipe | changes), more)


def test_old_logprobs_that_the_policy_has_not_sampled(tiny_recipe: dict[str, Any], write_recipe: WriteRecipe) -> None:
    terms = [{"source": "rollouts", "advantage": "group_relative", "denominator": "old", "mask": "clip"}]
    terms.append({"source": "demonstrations", "denominator": "old", "mask": "clip"})
    tiny_recipe["algorithm"] = {"terms": terms}
    with pytest.raises(RecipeError, match="'sampler' is not allowed: grad_demonstrations reads old_logprobs of demons"):
        load_recipe(write_recipe(tiny_recipe), ["rollout.old_logprobs=sampler"], stop_at_warnings=False)
