"""A whole run in this process: what it leaves behind, and that failures of rewards are data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.config import load_recipe
from posttrain.errors import CheckpointError, NonFiniteGradientError, TooManyFailuresError
from posttrain.models.load import load_model
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer import train

_FAULTY_REWARD = '''
"""Fails on every fifth trajectory, each time in another way."""
import os, time

_calls = 0

def faulty(completion: str, question: str) -> float:
    """1 for a completion that is not empty; fails for questions whose checksum is a multiple of five."""
    checksum = sum(map(ord, question + completion))
    if checksum % 5:
        return float(bool(completion))
    kind = checksum // 5 % 4
    if kind == 0:
        raise RuntimeError("no luck")
    if kind == 1:
        time.sleep(3600)
    if kind == 2:
        bytearray(20 << 30)
    os._exit(3)
'''

WriteRecipe = Callable[..., Path]


def _metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def _plug_in(directory: Path, monkeypatch: pytest.MonkeyPatch, name: str, body: str) -> None:
    """A reward of one line in a directory of POSTTRAIN_PATH."""
    (directory / "rewards").mkdir()
    code = f'"""A reward."""\ndef {name}(completion: str) -> float:\n    """A reward."""\n    {body}\n'
    (directory / "rewards" / f"{name}.py").write_text(code)
    monkeypatch.setenv("POSTTRAIN_PATH", str(directory))


def test_a_run_leaves_everything_behind(tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    tiny_recipe["evaluation"] = {
        "name": "reasoning_gym",
        "dataset": "chain_sum",
        "config": {"min_terms": 2, "max_terms": 2, "max_digits": 1},
        "size": 8,
        "max_tokens": 4,
        "every_steps": 2,
    }
    output = tmp_path / "run"
    loaded = load_recipe(write_recipe(tiny_recipe))
    assert train(loaded, output) is None
    metrics = _metrics(output)
    assert [row["step"] for row in metrics] == [1, 2, 3, 4]
    assert all(row["num_groups"] == 4 and row["num_graded"] == 16 and row["num_ungraded"] == 0 for row in metrics)
    assert all(row["num_sequences"] == 20 for row in metrics), "16 rollouts and 4 demonstrations"
    evaluations = [json.loads(line) for line in (output / "evaluations.jsonl").read_text().splitlines()]
    assert [row["step"] for row in evaluations] == [0, 2, 4]
    assert "num_solved > 0" in (output / "objective.txt").read_text()
    assert load_recipe(output / "recipe.yaml").recipe == loaded.recipe
    assert sorted(path.name for path in (output / "checkpoints").iterdir()) == ["step_3", "step_4"]
    trajectories = [json.loads(line) for line in (output / "rollouts" / "step_4.jsonl").read_text().splitlines()]
    assert len(trajectories) == 16
    assert all(len(t["tokens"]) == len(t["logprobs"]) == len(t["advantage"]) for t in trajectories)
    assert "</html>" in (output / "report.html").read_text()
    with pytest.raises(CheckpointError, match="--resume"):
        train(loaded, output)


def test_the_final_model_is_the_trained_one_for_plain_transformers(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    tiny_recipe["training"] |= {"learning_rate": 0.02, "steps": 10}
    loaded = load_recipe(write_recipe(tiny_recipe))
    train(loaded, output)
    model = AutoModelForCausalLM.from_pretrained(output / "final")
    tokenizer = AutoTokenizer.from_pretrained(output / "final")
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 + 1 ="}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    generated = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    # The checkpoint of the last step holds the trainer's own weights: the same greedy tokens must come of them.
    recipe = loaded.recipe
    trained = load_model(recipe.model, load_tokenizer(recipe.tokenizer, recipe.model), recipe.seed)
    untrained_tokens = trained.generate(**prompt, max_new_tokens=12, do_sample=False)
    from safetensors.torch import load_file

    state = load_file(output / "checkpoints" / "step_10" / "model.safetensors")
    trained.load_state_dict({name.removeprefix("model."): value for name, value in state.items()}, strict=False)
    trained.tie_weights()
    assert torch.equal(trained.generate(**prompt, max_new_tokens=12, do_sample=False), generated)
    assert not torch.equal(untrained_tokens, generated)


def test_failing_rewards_are_counted_and_left_out(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "faulty.py").write_text(_FAULTY_REWARD)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    tiny_recipe["rewards"] = [{"name": "faulty"}]
    tiny_recipe["rollout"] |= {"deadline_seconds": 0.5, "reward_workers": 2}
    tiny_recipe["training"]["steps"] = 2
    output = tmp_path / "run"
    train(load_recipe(write_recipe(tiny_recipe)), output)
    files = [output / "rollouts" / f"step_{step}.jsonl" for step in (1, 2)]
    played = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    failed = 0
    for step, row in enumerate(_metrics(output), start=1):
        trajectories = [t for t in played if t["step"] == step]
        expected = [sum(map(ord, t["prompt"][-1]["content"] + t["completion"])) % 5 != 0 for t in trajectories]
        assert [t["reward"] is not None for t in trajectories] == expected
        assert (row["num_graded"], row["num_ungraded"]) == (sum(expected), len(expected) - sum(expected))
        rewards = [t["reward"] for t in trajectories if t["reward"] is not None]
        assert row["reward_mean"] == pytest.approx(sum(rewards) / len(rewards))
        failed += len(expected) - sum(expected)
        for group in range(4):
            graded = [t for t in trajectories if t["group"] == group and t["reward"] is not None]
            mean = sum(t["reward"] for t in graded) / max(1, len(graded))
            solved = any(t["solved"] for t in graded)
            for t in (t for t in trajectories if t["group"] == group):
                advantage = t["reward"] - mean if t["reward"] is not None and solved else 0.0
                assert t["advantage"] == pytest.approx([advantage] * len(t["tokens"]))
    assert failed >= 3


def test_demonstrations_cut_at_max_length_are_counted(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    tiny_recipe["algorithm"] = {"name": "sft"}
    del tiny_recipe["rewards"], tiny_recipe["rollout"]
    tiny_recipe["training"] |= {
        "max_length": 71,
        "steps": 2,
    }  # 70 tokens of prompt, then an answer of one or two and the end
    train(load_recipe(write_recipe(tiny_recipe)), tmp_path / "run")
    counts = [row["num_cut_sequences"] for row in _metrics(tmp_path / "run")]
    assert counts == [4, 8]


def test_too_many_failures_stop_the_run_with_the_causes(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plug_in(tmp_path, monkeypatch, "broken", 'raise KeyError("gold")')
    tiny_recipe["rewards"] = [{"name": "broken"}]
    with pytest.raises(TooManyFailuresError, match=r"16 of 16 .* KeyError"):
        train(load_recipe(write_recipe(tiny_recipe)), tmp_path / "run")


def test_a_run_of_gradients_that_are_not_finite_stops(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _plug_in(tmp_path, monkeypatch, "huge", "return 1e39  # inf in float32")
    tiny_recipe["rewards"] = [{"name": "huge"}]
    tiny_recipe["algorithm"] = {"name": "reinforce"}
    tiny_recipe["prompts"] = tiny_recipe.pop("demonstrations")
    tiny_recipe["training"]["max_skipped_steps"] = 2
    with pytest.raises(NonFiniteGradientError, match="2 steps in a row up to step 2"):
        train(load_recipe(write_recipe(tiny_recipe)), tmp_path / "run")


@pytest.mark.parametrize(
    ("algorithm", "data"),
    [
        ({"name": "sft"}, "demonstrations"),
        ({"name": "reinforce"}, "prompts"),
        ({"name": "raft"}, "prompts"),
        ({"name": "grpo"}, "prompts"),
        ({"name": "grpo", "preset": "openrlhf", "entropy_weight": 0.01}, "prompts"),
        ({"name": "grpo", "preset": "trl"}, "prompts"),
        ({"name": "rloo"}, "prompts"),
        ({"name": "dr_grpo"}, "prompts"),
        ({"name": "dapo"}, "prompts"),
        ({"name": "reinforce_pp"}, "prompts"),
        ({"name": "gspo"}, "prompts"),
        ({"name": "cispo"}, "prompts"),
    ],
)
def test_every_algorithm_trains(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, algorithm: dict[str, Any], data: str
) -> None:
    tiny_recipe["algorithm"] = algorithm
    tiny_recipe[data] = tiny_recipe.pop("demonstrations")
    if data == "demonstrations":
        del tiny_recipe["rewards"], tiny_recipe["rollout"]
    tiny_recipe["training"]["steps"] = 2
    assert train(load_recipe(write_recipe(tiny_recipe)), tmp_path / "run") is None
    assert len(_metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "hpt", "off_policy_gate": 1},
        {"name": "hpt_soft"},
        {"name": "luffy"},
        {"name": "srft"},
        {"name": "chord", "mu": 0.9, "mu_end": 0.0, "mu_steps": 2},
        {"terms": [{"source": "rollouts", "advantage": "group_relative"}, {"source": "demonstrations", "weight": 0.1}]},
    ],
    ids=str,
)
def test_every_hybrid_trains(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, algorithm: dict[str, Any]
) -> None:
    tiny_recipe["algorithm"] = algorithm
    tiny_recipe["training"]["steps"] = 2
    loaded = load_recipe(write_recipe(tiny_recipe))
    assert train(loaded, tmp_path / "run") is None
    assert all(row["num_sequences"] == 20 and row["grad_norm"] > 0 for row in _metrics(tmp_path / "run"))
    assert load_recipe(tmp_path / "run" / "recipe.yaml").recipe == loaded.recipe
