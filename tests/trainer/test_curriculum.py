"""Curricula in real runs: what is drawn, that it is the same after a crash and on other ranks, and rates of a run."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import load_recipe
from posttrain.errors import DataError
from posttrain.trainer import train
from tests.trainer.processes import Run, run_ranks

WriteRecipe = Callable[..., Path]

_LUCK = '''
"""A reward for easy prompts, none for hard ones, and for the others by luck."""

def luck(completion: str, kind: str) -> float:
    """1 where the prompt is easy, or the characters of a completion add up to an even number and it is not hard."""
    return float(kind == "easy" or (kind == "even" and sum(map(ord, completion)) % 2 == 0))
'''


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """GRPO on twelve prompts of each kind, which no training changes."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "luck.py").write_text(_LUCK)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    rows = [
        {"prompt": f"{n} {kind}", "kind": kind, "known": known}
        for n in range(12)
        for kind, known in (("easy", 1.0), ("even", 0.5), ("hard", 0.0))
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    del tiny_recipe["demonstrations"]
    tiny_recipe |= {
        "algorithm": {"name": "grpo", "kl_weight": 0.0},
        "prompts": {"path": str(tmp_path / "rows.jsonl"), "chat": True},
        "rewards": [{"name": "luck"}],
        "curriculum": {"strategy": "target", "exploration": 0.2},
    }
    tiny_recipe["rollout"] |= {"group_size": 8, "max_tokens": 4}
    tiny_recipe["training"] |= {"steps": 20, "learning_rate": 1e-9}
    tiny_recipe["tracking"] = {"groups_per_step": 100}
    tiny_recipe["checkpoint"] = {"every_steps": 0}
    return tiny_recipe


def kinds(run: Path, first: int = 1) -> Counter[str]:
    """How often each kind of prompt was drawn, from a step on."""
    found: Counter[str] = Counter()
    for path in (run / "rollouts").glob("step_*.jsonl"):
        if int(path.stem.removeprefix("step_")) >= first:
            groups = {row["group"]: row["prompt"] for row in map(json.loads, path.read_text().splitlines())}
            found.update(prompt[-1]["content"].split()[1] for prompt in groups.values())
    return found


def metrics(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def drawn(run: Path) -> list[dict[str, float]]:
    """What is said of how the prompts of each step were drawn."""
    return [{name: row[name] for name in row if name.startswith("curriculum/")} for row in metrics(run)]


@pytest.mark.parametrize(
    "settings", [{"strategy": "target"}, {"strategy": "buckets", "weights": [0.1, 1, 4, 1, 0.1]}], ids=str
)
def test_a_run_draws_more_of_what_is_informative(
    settings: dict[str, Any], recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe["curriculum"] |= settings
    assert train(load_recipe(write_recipe(recipe)), tmp_path / "run") is None
    late = kinds(tmp_path / "run", first=11)
    assert late["even"] > 0.6 * late.total(), late
    rows = metrics(tmp_path / "run")
    assert (rows[0]["curriculum/explored"], rows[0]["curriculum/known"]) == (1.0, 0.0)
    assert rows[-1]["curriculum/known"] > 0.5
    estimates = [row["curriculum/pass_rate"] for row in rows[10:] if "curriculum/pass_rate" in row]
    assert sum(estimates) / len(estimates) == pytest.approx(0.5, abs=0.15)
    assert sum(row["pass_rate"] for row in rows[10:]) / 10 == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("more", [["rollout.max_draws=3"], ["rollout.updates=2"], ["rollout.max_staleness=1"]], ids=str)
def test_a_run_that_was_stopped_goes_on_exactly(
    more: list[str], recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    settings = ["training.steps=6", "training.learning_rate=1e-3", "checkpoint.every_steps=3", *more]
    loaded = load_recipe(write_recipe(recipe), settings)
    assert train(loaded, tmp_path / "whole") is None
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "step_6")
    shutil.rmtree(tmp_path / "parts" / "final")
    assert train(loaded, tmp_path / "parts", resume=True) is None
    whole, parts = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(parts[name], value) for name, value in whole.items())
    assert drawn(tmp_path / "whole") == drawn(tmp_path / "parts")


def test_two_ranks_draw_what_one_does(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe["training"] |= {"prompts_per_step": 5, "steps": 5}
    path = write_recipe(recipe)
    Run(path, tmp_path / "one").finish()
    run_ranks(path, tmp_path / "two")
    assert drawn(tmp_path / "one") == drawn(tmp_path / "two")
    assert drawn(tmp_path / "one")[-1]["curriculum/known"] > 0.2


def test_recorded_rates_filter_and_start_the_estimates(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe["curriculum"] = {"recorded_column": "known", "min_pass_rate": 0.1, "max_pass_rate": 0.9}
    assert train(load_recipe(write_recipe(recipe), ["training.steps=3"]), tmp_path / "first") is None
    assert kinds(tmp_path / "first") == {"even": 12}
    assert "curriculum/known" not in metrics(tmp_path / "first")[0], "without a strategy all are drawn in turn"

    recipe["curriculum"] = {"strategy": "buckets", "recorded_run": str(tmp_path / "first"), "exploration": 0.0}
    assert train(load_recipe(write_recipe(recipe), ["training.steps=2"]), tmp_path / "second") is None
    (first, _) = metrics(tmp_path / "second")
    assert first["curriculum/known"] == pytest.approx(12 / 36)
    assert first["curriculum/explored"] == 0
    assert kinds(tmp_path / "second")["even"] == 8


def test_a_record_that_cannot_be_used_stops_before_the_model_is_loaded(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    for settings, message in (
        ({"recorded_column": "knwn"}, r"curriculum.recorded_column: .*rows.jsonl#0 has no column 'knwn'; did you mean"),
        ({"recorded_column": "kind"}, r"column 'kind' is 'easy'; allowed: a pass rate from 0 to 1"),
        ({"recorded_run": str(tmp_path / "gone")}, r"curriculum.recorded_run: .*gone: no graded rollouts"),
    ):
        with pytest.raises(DataError, match=message):
            train(load_recipe(write_recipe(recipe | {"curriculum": settings})), tmp_path / "run")
