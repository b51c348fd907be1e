"""The reference beyond scoring: it follows the policy, plays rollouts, outlives a crash, and stays put if frozen."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import load_recipe
from posttrain.errors import RecipeError
from posttrain.models.weights import digest, named_weights
from posttrain.trainer import train
from posttrain.trainer.setup import build
from posttrain.trainer.step import Updater
from tests.trainer.processes import run_ranks

WriteRecipe = Callable[..., Path]
PROMPTS = {"path": "reasoning_gym", "config": {"dataset": "chain_sum", "size": 64, "seed": 1, "max_terms": 2}}


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any]) -> dict[str, Any]:
    """J-BOND with an anchor that follows quickly, two steps a window."""
    del tiny_recipe["demonstrations"]
    tiny_recipe |= {"prompts": PROMPTS, "algorithm": {"name": "j_bond", "eta": 0.25, "gamma": 0.5}}
    tiny_recipe["rewards"] = [{"name": "reasoning_gym", "strict": False}]
    tiny_recipe["rollout"] |= {"group_size": 1, "updates": 2}
    tiny_recipe["training"] |= {"learning_rate": 0.01}
    tiny_recipe["acknowledge"] = ["stale_gradient"]
    return tiny_recipe


def _rows(output: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / name).read_text().splitlines()]


def _built(recipe: Path, output: Path, stack: ExitStack) -> Any:
    return build(load_recipe(recipe).recipe, output, stack, say=lambda line: None)


@pytest.mark.parametrize(
    ("algorithm", "size", "samples"),
    [
        ({"name": "j_bond", "eta": 0.1}, 1, 2),
        ({"name": "bond", "n": 4, "samples": 3}, 2, 3),
        ({"name": "bond", "n": 2, "samples": 2, "baseline": "group", "eta": 0.1, "ties": True}, 3, 2),
    ],
    ids=str,
)
def test_the_reference_plays_beside_the_policy(
    recipe: dict[str, Any],
    write_recipe: WriteRecipe,
    tmp_path: Path,
    algorithm: dict[str, Any],
    size: int,
    samples: int,
) -> None:
    recipe["algorithm"] = algorithm
    recipe["rollout"] |= {"group_size": size, "updates": 1}
    del recipe["acknowledge"]
    output = tmp_path / "run"
    assert train(load_recipe(write_recipe(recipe)), output) is None
    for row in _rows(output, "metrics.jsonl"):
        assert row["num_sequences"] == 4 * (size + samples)
        assert row["num_graded"] == 4 * size, "the reference's rollouts are not counted as the policy's"
        assert row["best_of_n/kl_bound"] >= row["best_of_n/kl"] - 1e-6
        assert row["grad_norm"] > 0
    played = _rows(output, "rollouts/step_1.jsonl")
    assert [one["by"] for one in played] == (["policy"] * size + ["reference"] * samples) * 4
    assert all(len(one["advantage"]) == len(one["tokens"]) and one["reward"] is not None for one in played)
    texts = [one["completion"] for one in played if one["group"] == 0]
    assert len(set(texts)) == len(texts), "at the start both have the same weights, but not the same draws"


def test_the_references_sampler_frees_the_device_too(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        loop = _built(write_recipe(recipe), tmp_path, stack)
        released: list[Any] = []
        engines = [loop.sampler.engine, loop.anchor.collector.engine]
        for engine in engines:
            monkeypatch.setattr(engine, "release", lambda engine=engine: released.append(engine))
        loop._release()
        assert released == engines
        released.clear()
        monkeypatch.setattr(loop, "evaluate", dict)
        monkeypatch.setattr(type(loop.accelerator), "is_main_process", False)
        loop._evaluate(None, None)
        assert released[:1] == [loop.sampler.engine], "a rank that does not evaluate has woken its sampler all the same"


def test_a_moving_reference_is_the_average(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe["training"]["steps"] = 3
    path = write_recipe(recipe)
    with ExitStack() as stack:
        loop = _built(path, tmp_path, stack)
        expected = {name: tensor.clone() for name, tensor in named_weights(loop._model)}
        start = digest(loop.reference.model)
    train(load_recipe(path), tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    assert sorted(one.name for one in checkpoints.iterdir()) == ["step_2", "step_3"]
    found = {step: load_file(checkpoints / f"step_{step}" / "reference.safetensors") for step in (2, 3)}
    policy = load_file(checkpoints / "step_3" / "model.safetensors")
    for name, tensor in found[3].items():
        assert tensor.shape == expected[name].shape
        wanted = 0.75 * found[2][name] + 0.25 * policy[f"model.{name}"]
        torch.testing.assert_close(tensor, wanted, rtol=1e-5, atol=1e-7)
    with ExitStack() as stack:
        loop = _built(path, tmp_path, stack)
        assert digest(loop.reference.model) == start
        loop.restore(checkpoints / "step_3")
        restored = dict(named_weights(loop.reference.model))
        assert all(torch.equal(restored[name], tensor) for name, tensor in found[3].items())
        assert loop.anchor.version == 3


def test_a_skipped_step_does_not_move_the_reference(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip, calls = Updater._clip, [0]

    def broken(self: Updater) -> dict[str, float]:
        calls[0] += 1
        if calls[0] == 3:
            next(self.policy.parameters()).grad.fill_(float("nan"))
        return clip(self)

    monkeypatch.setattr(Updater, "_clip", broken)
    recipe["checkpoint"]["keep"] = 9
    train(load_recipe(write_recipe(recipe)), tmp_path / "run")
    assert [row["skipped_steps"] for row in _rows(tmp_path / "run", "metrics.jsonl")] == [0, 0, 1, 1]
    checkpoints = tmp_path / "run" / "checkpoints"
    for name in ("model.safetensors", "reference.safetensors"):
        second, third, fourth = ((checkpoints / f"step_{step}" / name).read_bytes() for step in (2, 3, 4))
        assert second == third != fourth, name


def test_the_sampler_of_the_reference_is_synced_when_it_has_changed(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    def versions(eta: float) -> list[int]:
        recipe["algorithm"]["eta"] = eta
        name = f"eta_{eta}"
        train(load_recipe(write_recipe(recipe, name)), tmp_path / name)
        steps = [_rows(tmp_path / name, f"rollouts/step_{step}.jsonl") for step in (1, 2, 3, 4)]
        assert [{one["policy_version"] for one in rows if one["by"] == "policy"} for rows in steps[::2]] == [{0}, {2}]
        return [one["policy_version"] for rows in steps for one in rows if one["by"] == "reference"][::8]

    assert versions(0.25) == [0, 0, 2, 2]
    assert versions(0.0) == [0, 0, 0, 0]
    frozen = tmp_path / "eta_0.0" / "checkpoints"
    assert not list(frozen.rglob("reference.safetensors")), "what has not changed is not written"


@pytest.mark.parametrize(
    "algorithm", [{"name": "j_bond", "eta": 0.25}, {"name": "bond", "n": 2, "samples": 2}, {"name": "red"}]
)
def test_a_resumed_run_ends_with_the_same_weights(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, algorithm: dict[str, Any]
) -> None:
    recipe["algorithm"] = algorithm
    if algorithm["name"] == "red":
        recipe["demonstrations"] = recipe.pop("prompts")
        recipe["rollout"]["group_size"] = 4
        del recipe["acknowledge"]
    recipe["checkpoint"]["keep"] = 9
    loaded = load_recipe(write_recipe(recipe))
    train(loaded, tmp_path / "whole")
    train(loaded, tmp_path / "resumed")
    resumed = tmp_path / "resumed"
    for gone in ("checkpoints/step_2", "checkpoints/step_3", "checkpoints/step_4", "final"):  # inside a window
        (resumed / gone).rename(tmp_path / gone.replace("/", "_"))
    train(loaded, resumed, resume=True)
    assert [row["step"] for row in _rows(resumed, "metrics.jsonl")] == [1, 2, 3, 4]
    whole, again = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    for kept in ("reference.safetensors", "state.json"):
        paths = [tmp_path / name / "checkpoints" / "step_4" / kept for name in ("whole", "resumed")]
        if kept == "state.json":
            first, second = (json.loads(path.read_text())["memory"] for path in paths)
            assert first == second
            assert bool(first) == (algorithm["name"] == "red")
        elif paths[0].exists():
            assert paths[0].read_bytes() == paths[1].read_bytes()


def test_two_ranks_make_the_update_of_one(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe["training"] |= {"prompts_per_step": 5, "steps": 3, "learning_rate": 1e-3}
    path = write_recipe(recipe)
    train(load_recipe(path), tmp_path / "ranks_1")
    run_ranks(path, tmp_path / "ranks_2")
    files = ("final/model.safetensors", "checkpoints/step_3/reference.safetensors")
    weights = [[load_file(tmp_path / f"ranks_{ranks}" / file) for file in files] for ranks in (1, 2)]
    for one, two in zip(*weights, strict=True):
        for name, values in one.items():
            torch.testing.assert_close(two[name], values, rtol=1e-4, atol=1e-5)


def test_demonstrations_have_no_place_where_the_reference_makes_them(
    recipe: dict[str, Any], write_recipe: WriteRecipe
) -> None:
    recipe["demonstrations"] = PROMPTS
    with pytest.raises(
        RecipeError, match="demonstrations: set, but nothing would read it: rollouts start from `prompts`"
    ):
        load_recipe(write_recipe(recipe))
    del recipe["demonstrations"], recipe["rewards"]
    with pytest.raises(RecipeError, match="rewards: missing: algorithm 'j_bond' reads rewards"):
        load_recipe(write_recipe(recipe))


def test_an_adapter_cannot_be_followed(recipe: dict[str, Any], write_recipe: WriteRecipe) -> None:
    recipe["lora"] = {"rank": 2}
    with pytest.raises(RecipeError, match="lora: algorithm 'j_bond' lets the reference follow the policy"):
        load_recipe(write_recipe(recipe))
    recipe["algorithm"]["eta"] = 0.0
    load_recipe(write_recipe(recipe))
