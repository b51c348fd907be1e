"""Runs whose policy reads images: they learn, go on bit for bit, and leave a model that reads images."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.config import load_recipe
from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.data.recorded import read, shards
from posttrain.models.load import load_model
from posttrain.models.tokenizer import load_tokenizer
from posttrain.rollout.records import from_record
from posttrain.trainer import train
from posttrain.trainer.explain import explain
from tests.trainer.processes import LAUNCH, run_ranks
from tests.vision import QWEN3_VL

ENVIRONMENT = '''
from tests.vision import Slides

def slides() -> Slides:
    """Images to look at."""
    return Slides()
'''
OF_EPISODES = {
    "algorithm": {"name": "grpo", "kl_weight": 0.05},
    "environment": {"name": "slides"},
    "episode": {"max_turns": 4},
    "rewards": "episode_return",
    "prompts": {"path": "tasks", "config": {"size": 40, "seed": 0}},
    "rollout": {"group_size": 4, "max_tokens": 6, "dtype": "float32", "reward_workers": 1, "updates": 2},
    "training": {"steps": 4, "prompts_per_step": 2, "learning_rate": 1e-2, "schedule": "constant"},
    "tracking": {"trajectories": "all"},
}


@pytest.fixture
def recipe(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """GRPO on episodes that show an image a turn."""
    (tmp_path / "environments").mkdir()
    (tmp_path / "environments" / "slides.py").write_text(ENVIRONMENT)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    del tiny_recipe["demonstrations"]
    tiny_recipe["model"]["config"] = QWEN3_VL
    return write_recipe(tiny_recipe | OF_EPISODES)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "final" / "model.safetensors")


def test_a_run_learns_from_images_and_goes_on_bit_for_bit(recipe: Path, tmp_path: Path) -> None:
    assert train(load_recipe(str(recipe)), tmp_path / "whole") is None
    assert train(load_recipe(str(recipe), ["training.steps=1"]), tmp_path / "parts") is None  # within a window
    assert train(load_recipe(str(recipe), ["training.steps=3"]), tmp_path / "parts", resume=True) is None
    assert train(load_recipe(str(recipe)), tmp_path / "parts", resume=True) is None
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    loaded = load_recipe(str(recipe)).recipe
    start = load_model(loaded.model, load_tokenizer(loaded.tokenizer, loaded.model), loaded.seed).state_dict()
    tower = {name for name in whole if ".visual." in name}
    assert tower and all(torch.equal(whole[name], start[name]) for name in tower), "it is frozen"
    assert not any(torch.equal(whole[name], start[name]) for name in whole if "_proj.weight" in name)
    rows = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert len(rows) == 4 and all(row["num_ungraded"] == 0 and row["grad_norm"] > 0 for row in rows)
    assert max(row["canary_mismatch"] for row in rows if "canary_mismatch" in row) < 1e-4


def test_what_it_leaves_reads_images(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(load_recipe(str(recipe), ["training.steps=2"]), run) is None
    settings = ModelSettings(path=str(run / "final"))
    tokenizer = load_tokenizer(TokenizerSettings(), settings)
    model = load_model(settings, tokenizer, seed=0)
    assert model.images.processor.patch_size == 4
    trajectory = from_record(read(f"{shards(run)[0]}#0"))
    assert [len(turn.pictures) for turn in trajectory.turns] == [1, 2, 3, 4]
    (span,) = trajectory.turns[0].pictures
    assert model.images.grid(span.image) == (span.height, span.width)
    page = (run / "report.html").read_text()
    assert trajectory.turns[3].pictures[3].image in page and "image_pad|><|image_pad" not in page
    again = {"model.path": run / "final", "model.config": "null", "tokenizer.path": "null"}
    more = load_recipe(str(recipe), [f"{name}={value}" for name, value in again.items()] + ["training.steps=1"])
    assert train(more, tmp_path / "more") is None
    assert "grpo" in explain(str(recipe), [], "text")


@pytest.mark.parametrize(
    "changes",
    [
        ["rollout.max_staleness=1", "rollout.updates=1"],
        ["model.freeze_vision=false", "training.tokens_per_microbatch=64"],
        ["lora.rank=2", "episode.history_turns=0"],
        ["algorithm={name: ppo}"],
    ],
    ids=["staleness", "tower", "lora", "ppo"],
)
def test_settings_beside_images(recipe: Path, tmp_path: Path, changes: list[str]) -> None:
    assert train(load_recipe(str(recipe), ["training.steps=2", *changes]), tmp_path / "run") is None
    loaded = load_recipe(str(recipe)).recipe
    start = load_model(loaded.model, load_tokenizer(loaded.tokenizer, loaded.model), loaded.seed).state_dict()
    end = weights(tmp_path / "run")
    moved = {name for name in end if not torch.equal(end[name], start[name])}
    assert any("language_model" in name for name in moved)
    assert any(".visual." in name for name in moved) == ("model.freeze_vision=false" in changes)


def test_ranks_of_which_one_has_no_image(recipe: Path, tmp_path: Path) -> None:
    """Two ranks train the tower, of which one rank's rows may have no image: nobody waits for it, nothing changes."""
    changes = ["model.freeze_vision=false", "training.steps=2", "training.tokens_per_microbatch=64"]
    assert train(load_recipe(str(recipe), changes), tmp_path / "one") is None
    one = weights(tmp_path / "one")
    for way in ("cpu_2", "cpu_fsdp2", "cpu_zero3"):
        run_ranks(recipe, tmp_path / way, *changes, launch_file=LAUNCH / f"{way}.yaml")
        two = weights(tmp_path / way)
        for name, weight in one.items():
            torch.testing.assert_close(two[name], weight, rtol=0, atol=1e-4, msg=f"{way}: {name}")
