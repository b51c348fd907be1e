"""Every algorithm has a recipe in recipes/tiny, and each of these trains: two real steps through `train`, here."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from posttrain import catalog
from posttrain.__main__ import main
from posttrain.config import load_recipe
from posttrain.models.load import load_model
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer import train
from posttrain.trainer.corrected import algorithm_of

TINY = sorted(member.name for member in catalog.members("recipes") if member.name.startswith("tiny/"))
STEPS = 2


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they give for a model of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_every_algorithm_has_its_tiny_recipe() -> None:
    trained = {load_recipe(name).recipe.algorithm.name for name in TINY}
    algorithms = {member.name for member in catalog.members("algorithms")} - {"terms"}
    missing = sorted(name for name in algorithms if f"tiny/{name}" not in TINY or name not in trained)
    assert not missing, f"write recipes/tiny/NAME.yaml (extends: tiny/base) for {', '.join(missing)}"


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_trains(name: str, tmp_path: Path) -> None:
    steps = STEPS + load_recipe(name).recipe.critic.warmup_steps  # in which the policy stands still
    loaded = load_recipe(name, [f"training.steps={steps}"])
    output = tmp_path / "run"
    assert train(loaded, output) is None
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        wrong = {key: value for key, value in row.items() if isinstance(value, float) and not math.isfinite(value)}
        assert not wrong, f"{name}: step {row['step']}: {wrong}"
    recipe = loaded.recipe
    start = load_model(recipe.model, load_tokenizer(recipe.tokenizer, recipe.model), recipe.seed).state_dict()
    end = _weights(output / "final")
    head = {"score.weight"} if algorithm_of(recipe).plan.scores else set()  # a reward model's, and then there is one
    assert set(end) - set(start) == head
    assert any(not torch.equal(end[key], start[key]) for key in set(end) - head), f"{name} has not moved the model"
    assert all(end[key].any() for key in head)


@pytest.mark.parametrize("name", TINY)
def test_a_tiny_recipe_is_short(name: str) -> None:
    text = catalog.recipe_path(name).read_text()
    if name != "tiny/base":
        assert "\nextends: tiny/" in text
        assert len(text.split("\n\n", maxsplit=1)[1].splitlines()) <= 25


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_a_recipe_in_a_folder_has_its_run_there_and_resumes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for steps, more in ((1, []), (2, ["--resume"])):
        monkeypatch.setattr(sys, "argv", ["posttrain", "train", "tiny/sft", f"training.steps={steps}", *more])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code
    run = tmp_path / "runs" / "tiny" / "sft"
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert "tiny/base.yaml:" in (run / "recipe.yaml").read_text(), "a value of the base names the base"
