"""A step is selected on one split and reported on another: which one it is, its weights, and its figures."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain import catalog
from posttrain.config import load_recipe
from posttrain.errors import DataError, RecipeError
from posttrain.evaluation.runner import evaluate, make_grader
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainer import train
from posttrain.trainer.evaluations import Selection

WriteRecipe = Callable[..., Path]

SHORT = '''
from posttrain.config.schema import SourceSettings
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec


def short(*, data: str) -> Benchmark:
    """Solved where a completion has an odd number of characters."""
    return Benchmark("short", SourceSettings(path=data, chat=True), (RewardSpec("odd"),), max_tokens=16)
'''
ODD = '''
def odd(completion: str) -> float:
    """Whether it has an odd number of characters."""
    return float(len(completion) % 2 == 1)
'''


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Selects on `dev.jsonl`, reports on `test.jsonl`; what it learns changes how long completions are."""
    for kind, name, text in (("eval", "short", SHORT), ("rewards", "odd", ODD)):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / f"{name}.py").write_text(text)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    for split, first in (("dev", 0), ("test", 50)):
        rows = [{"prompt": f"{number} - {number % 7} ="} for number in range(first, first + 24)]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_recipe |= {"algorithm": {"name": "sft"}}
    del tiny_recipe["rewards"], tiny_recipe["rollout"]
    tiny_recipe["rollout"] = {"dtype": "float32", "reward_workers": 1}
    tiny_recipe["training"] = {"steps": 3, "prompts_per_step": 4, "learning_rate": 0.02}
    tiny_recipe["evaluation"] = {"name": "short", "data": str(tmp_path / "dev.jsonl"), "every_steps": 1}
    tiny_recipe["final_evaluation"] = {"name": "short", "data": str(tmp_path / "test.jsonl"), "limit": 20}
    return tiny_recipe


def _rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "evaluations.jsonl").read_text().splitlines()]


def test_the_best_step_is_kept_and_reported_on(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, best = tmp_path / "run", tmp_path / "run" / "best"
    recipe["checkpoint"] = {"every_steps": 1, "keep": 20}
    loaded = load_recipe(write_recipe(recipe))
    train(loaded, output)
    *selecting, final = _rows(output)
    assert [row["step"] for row in selecting] == list(range(4))
    rates = [row["pass_rate"] for row in selecting]
    step = rates.index(max(rates))
    assert 0 < step < 3, f"the recipe should be best in between: {rates}"
    assert json.loads((best / "selected.json").read_text()) == selecting[step]
    kept, stored = load_file(best / "model.safetensors"), output / "checkpoints" / f"step_{step}" / "model.safetensors"
    trained = {name.removeprefix("model.model."): tensor for name, tensor in load_file(stored).items()}
    assert all((tensor == trained[name.removeprefix("model.")]).all() for name, tensor in kept.items())
    assert (final["step"], final["benchmark"], final["n"]) == (step, "short (final)", 20)
    benchmark = catalog.build("eval", "short", {"data": str(tmp_path / "test.jsonl")})
    engine = TransformersEngine(AutoModelForCausalLM.from_pretrained(best), dtype="float32")
    with make_grader(benchmark, workers=1) as grader:
        again = evaluate(benchmark, engine, AutoTokenizer.from_pretrained(best), grader, limit=20, seed=7)
    assert {key: final[key] for key in ("num_solved", "num_tokens")} == {
        "num_solved": again.num_solved,
        "num_tokens": again.num_tokens,
    }
    assert f"best by short: step {step}" in capsys.readouterr().out
    assert "short (final)" in (output / "report.html").read_text()
    recipe["training"]["steps"] = 4
    train(load_recipe(write_recipe(recipe)), output, resume=True)
    assert [row["step"] for row in _rows(output)][-2:] == [4, json.loads((best / "selected.json").read_text())["step"]]


def test_splits_that_share_items_are_refused(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    with (tmp_path / "test.jsonl").open("a") as file:
        file.write('{"prompt": "3  - 3 ="}\n')
    recipe["final_evaluation"]["limit"] = 25
    with pytest.raises(DataError, match=r"final_evaluation: 1 of its 25 items .*test.jsonl#24"):
        train(load_recipe(write_recipe(recipe)), tmp_path / "run")
    del recipe["evaluation"]
    with pytest.raises(RecipeError, match="no evaluation to select its step by"):
        load_recipe(write_recipe(recipe))


def test_what_is_reported_on_is_not_trained_on(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"{number} - {number % 7} =", "completion": "1"} for number in (0, 60, 90, 91)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe["demonstrations"] = {"path": str(tmp_path / "rows.jsonl"), "chat": True}
    recipe["training"]["steps"] = 1
    train(load_recipe(write_recipe(recipe)), tmp_path / "run")
    assert "2 left out because the evaluation asks them" in capsys.readouterr().out


def test_only_a_better_step_takes_the_place(tmp_path: Path) -> None:
    selection = Selection(tmp_path / "best", None)
    assert selection.best is None
    assert selection.improves({"pass_rate": 0.0})
    selection.directory.mkdir()
    (selection.directory / "selected.json").write_text('{"step": 3, "pass_rate": 0.5}')
    assert not selection.improves({"pass_rate": 0.5})
    assert selection.improves({"pass_rate": 0.6})
