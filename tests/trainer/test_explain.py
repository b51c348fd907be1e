"""`explain`: every constant with its origin, data, models, sizes and warnings, in the three formats."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.algorithms import load
from posttrain.config import load_recipe
from posttrain.estimator.objective import constants
from posttrain.trainer.explain import explain
from posttrain.trainer.origins import origins

FORMATS = ("text", "json", "latex")


@pytest.fixture
def written(tmp_path: Path) -> str:
    """A recipe on top of tiny/grpo, with a clip of its own."""
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny/grpo\nalgorithm:\n  clip_high: 0.28\ntraining: {max_grad_norm: 0.5}\n")
    return str(path)


@pytest.mark.parametrize("format", FORMATS)
def test_all_that_decides_an_update_is_there(written: str, format: str) -> None:
    text = explain(written, ["algorithm.kl_weight=0.1", "rollout.max_tokens=16"], format).replace("\\_", "_")
    origin = f"clip_high, {written}:3"
    for said in (
        origin,
        "kl_weight, command line",
        "default of grpo (arXiv 2402.03300)",
        "1/N_",
        "a frozen copy of the starting model",
        "qwen3 from scratch",
        "chain_sum",
        "4 prompts x 8 completions = 32 a step",
        "512 a step",
        "training.max_grad_norm",
        f"{written}:4",
        "rollout.group_size",
        "base.yaml:",
    ):
        assert said in text, said
    assert "warning" not in text or format == "json"


def test_json_holds_every_constant_value_and_origin(written: str) -> None:
    found = json.loads(explain(written, [], "json"))
    mask = found["terms"][0]["parts"]["mask"]
    assert mask["constants"] == {"low": 0.2, "high": 0.28}
    assert mask["origins"] == {"low": "default of grpo (arXiv 2402.03300)", "high": f"clip_high, {written}:3"}
    assert found["terms"][0]["normaliser"] == "1/N_sequences sum_i 1/|y_i| sum_t"
    assert found["values"]["training.max_grad_norm"] == {"value": 0.5, "from": f"{written}:4"}
    assert found["values"]["training.betas"]["from"] == "default"
    assert "training.max_length" not in found["values"], "nothing reads it"
    assert found["warnings"] == []


@pytest.mark.parametrize("format", FORMATS)
def test_an_agent_s_world_and_the_bounds_of_its_episodes_are_there(format: str) -> None:
    world = ["environment={name: new_recruit}", "partner={path: hub/model, max_tokens: 40}"]
    limits = ["episode={max_turns: 6, max_seconds: 30, history_turns: 2, invalid: mask}", "rollout.max_tokens=16"]
    text = explain("tiny/grpo", [*world, *limits, "rewards=episode_success"], format).replace("\\_", "_")
    for said in (
        "4 prompts x 8 episodes = 32 a step, at most 16 tokens a turn, ",
        "new_recruit",
        "at most 6 turns, 30 seconds; the policy sees the last 2 turns before; invalid actions: mask",
        "hub/model, frozen, at most 40 tokens a line",
    ):
        assert said in text, said


@pytest.mark.parametrize("format", FORMATS)
def test_warnings_are_printed_and_do_not_stop_it(written: str, format: str) -> None:
    override = ["rollout.top_p=0.9"]
    text = explain(written, override, format).replace("\\_", "_")
    assert "truncated_sampling" in text
    assert "right: top_p 1" in text
    acknowledged = explain(written, [*override, "acknowledge=[truncated_sampling]"], format)
    assert ('"acknowledged": true' if format == "json" else "(acknowledged)") in acknowledged


def test_a_preset_and_terms_of_a_recipe_are_origins_too(tmp_path: Path) -> None:
    found = json.loads(explain("tiny/grpo", ["algorithm.preset=openrlhf"], "json"))
    advantage = found["terms"][0]["parts"]["advantage"]
    assert advantage["origins"]["weight"] == "preset, command line"
    path = tmp_path / "terms.yaml"
    path.write_text(
        "extends: tiny/base\nalgorithm:\n  terms:\n    - source: rollouts\n      denominator: old\n      weight: 0.5\n"
        "      mask: {name: product, first: {name: clip, high: 0.3}, second: dual_clip}\n      advantage: reward\n"
    )
    term = json.loads(explain(str(path), [], "json"))["terms"][0]["parts"]
    assert term["mask"]["origins"]["clip.high"] == f"terms.0.mask.first.high, {path}:7"
    assert term["mask"]["origins"]["clip.low"] == "default of the part"
    assert term["weight"]["origins"]["value"] == f"terms.0.weight, {path}:6"


def test_what_a_run_records_is_what_is_explained(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    from posttrain.trainer import train

    for name in ("rewards", "rollout"):
        del tiny_recipe[name]
    path = write_recipe(tiny_recipe | {"algorithm": "sft", "training": {"steps": 1, "prompts_per_step": 2}})
    train(load_recipe(path), tmp_path / "run")
    assert (tmp_path / "run" / "objective.txt").read_text().strip() == explain(str(path), [], "text")


def test_a_constant_that_a_setting_does_not_change_is_a_default() -> None:
    algorithm = load("grpo", clip_low=0.2, clip_high=0.4)
    found = origins(algorithm, {"clip_low": 0.2, "clip_high": 0.4}, {"clip_low": "a:1", "clip_high": "a:2"})
    assert found.keys() == constants(algorithm).keys()
    assert found["policy", "mask", "low"] == "default of grpo"
    assert found["policy", "mask", "high"] == "clip_high, a:2"
    assert found["kl", "weight", "value"] == "default of grpo"
