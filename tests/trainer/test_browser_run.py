"""A run that trains in a real Chromium: what is left of it once it is killed, and what it says of browsers that die."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from posttrain.data.recorded import read, shards
from posttrain.rollout.records import from_record
from tests.living import command, descendants, left
from tests.trainer.processes import Run, metrics
from tests.vision import QWEN3_VL


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> Path:
    """Three episodes of each of two pages a step; an untrained policy does nothing that a page understands."""
    del tiny_recipe["demonstrations"]
    tiny_recipe["model"]["config"]["max_position_embeddings"] = 512
    return write_recipe(
        tiny_recipe
        | {
            "algorithm": {"name": "grpo", "kl_weight": 0.0},
            "prompts": {"path": "tasks", "config": {"size": 40, "task": "click-test-2"}},
            "environment": {"name": "browser", "view": "compact", "processes": 1, "reload_pages": False},
            "episode": {"max_turns": 2},
            "rewards": "episode_success",
            "rollout": {
                "group_size": 3,
                "max_tokens": 4,
                "dtype": "float32",
                "reward_workers": 1,
                "max_failure_rate": 1.0,
            },
            "training": {"steps": 30, "prompts_per_step": 2, "learning_rate": 0.0},
            "checkpoint": {"every_steps": 0},
        }
    )


def test_the_recipe_of_a_policy_that_sees_takes_a_step(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    """recipes/miniwob_vision_rl.yaml as it is, but for a tiny random model and how much is played."""
    config = copy.deepcopy(QWEN3_VL)
    config["text_config"]["max_position_embeddings"] = 8192
    few = {"size": 8, "seed": 0, "task": ["click-test-2", "enter-text"]}
    changed = {
        "extends": "miniwob_vision_rl",
        "model": {"path": None, "config": config, "gradient_checkpointing": True},
        "tokenizer": {"path": "characters"},
        "prompts": {"path": "tasks", "config": few},
        "environment": {"name": "browser", "view": "tree+screenshot", "processes": 1},
        "rollout": {"group_size": 3, "max_tokens": 4, "dtype": "float32"},
        "training": {"steps": 1, "warmup_steps": 0, "prompts_per_step": 2, "mixed_precision": "no"},
        "evaluation": None,
        "tracking": {"trajectories": "all"},
    }
    run = Run(write_recipe(changed), tmp_path / "run")
    assert run.finish()
    (row,) = metrics(run.output)
    assert row["num_graded"] == 6
    for number in range(6):
        trajectory = from_record(read(f"{shards(run.output)[0]}#{number}"))
        assert trajectory.error is None and len(trajectory.turns) == 5
        assert [len(turn.pictures) for turn in trajectory.turns] == [1, 2, 2, 2, 2]
    assert (run.output / "final" / "preprocessor_config.json").is_file()


def browsers(run: Run) -> list[psutil.Process]:
    """The running Chromiums of a run, without their helpers."""
    return [one for one in descendants(run.process.pid, "chrom") if "--type=" not in command(one)]


def test_nothing_is_left_of_a_killed_run(recipe: Path, tmp_path: Path) -> None:
    run = Run(recipe, tmp_path / "run")
    started: list[psutil.Process] = []
    num_browsers: list[int] = []  # browsers and their helpers

    def playing() -> bool:
        if run.num_steps() < 1:
            time.sleep(0.1)
            return False
        started.extend(descendants(run.process.pid))
        num_browsers.append(len(descendants(run.process.pid, "chrom")))
        return True

    run.kill_when(playing)
    assert num_browsers[0] > 3
    assert not left(started)


def test_browsers_that_die_cost_their_episodes_and_not_the_run(recipe: Path, tmp_path: Path) -> None:
    run = Run(recipe, tmp_path / "run", "training.steps=6", "rollout.attempts=1")
    num_killed = 0
    while run.process.exitcode is None:
        if run.num_steps() >= 2 * num_killed + 1 and num_killed < 2 and (found := browsers(run)):
            found[0].kill()
            num_killed += 1
        time.sleep(0.05)
    assert run.finish()
    rows = metrics(run.output)
    assert num_killed == 2
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert {row["num_graded"] + row["num_ungraded"] for row in rows} == {6}
    assert 1 <= sum(row["num_ungraded"] for row in rows) <= 12, "at most the episodes of one step a kill"
    assert "closed" in run.printed or "closed" in (run.output / "report.html").read_text()
