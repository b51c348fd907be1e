"""Promise 3: killed at any step, inside any window, a resumed run ends byte-identical to an uninterrupted one."""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.trainer.processes import Run, files

_MARKING_REWARD = '''
"""A reward that leaves a mark while it grades, and takes its time."""
import pathlib, time

def marking(completion: str, answer: str, *, mark: str = "") -> float:
    """1 for an answer whose first digit is right."""
    pathlib.Path(mark).touch()
    time.sleep(0.01)
    return float(completion[:1] == answer[:1])
'''


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Made once: {"final": the uninterrupted run's files, by name}."""
    return {"directory": tmp_path_factory.mktemp("uninterrupted")}


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    """Windows of two steps, graded by the marking reward."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "marking.py").write_text(_MARKING_REWARD)
    tiny_recipe["rewards"] = [{"name": "marking", "mark": str(tmp_path / "mark")}]
    tiny_recipe["rollout"]["updates"] = 2
    tiny_recipe["training"]["steps"] = 12
    return write_recipe(tiny_recipe)


@pytest.fixture
def uninterrupted(recipe: Path, shared: dict[str, Any]) -> dict[str, bytes]:
    """The files of `final/` of a run that nobody disturbed."""
    if "final" not in shared:
        output = shared["directory"] / "run"
        Run(recipe, output).finish()
        shared["final"] = files(output / "final")
    return shared["final"]


def _same_after_resume(recipe: Path, output: Path, uninterrupted: dict[str, bytes]) -> None:
    Run(recipe, output, "--resume").finish()
    resumed = files(output / "final")
    assert resumed.keys() == uninterrupted.keys()
    assert [name for name in resumed if resumed[name] != uninterrupted[name]] == []
    steps = [json.loads(line)["step"] for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 13))


def test_killed_inside_a_generation_window(recipe: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    run = Run(recipe, tmp_path / "run")
    mark = tmp_path / "mark"

    def grading_the_third_window() -> bool:
        if run.num_steps() < 4:
            mark.unlink(missing_ok=True)
            return False
        return mark.exists()

    run.kill_when(grading_the_third_window)
    _same_after_resume(recipe, tmp_path / "run", uninterrupted)


def test_killed_during_a_checkpoint_write(recipe: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    for attempt in range(5):  # on a busy machine the write may end before the signal arrives
        output = tmp_path / f"run_{attempt}"
        run, checkpoints = Run(recipe, output), output / "checkpoints"
        run.kill_when(lambda: run.num_steps() >= 5 and any(checkpoints.glob(".step_*/*")))  # noqa: B023
        if any(checkpoints.glob(".step_*")):
            _same_after_resume(recipe, output, uninterrupted)
            return
    pytest.fail("no kill fell into a checkpoint write")


@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_a_random_moment(recipe: Path, tmp_path: Path, uninterrupted: dict[str, bytes], seed: int) -> None:
    generator = random.Random(seed)
    run = Run(recipe, tmp_path / "run")
    steps, delay = generator.randrange(12), generator.random() * 0.1
    run.kill_when(lambda: run.num_steps() >= steps and (time.sleep(delay) or True))
    _same_after_resume(recipe, tmp_path / "run", uninterrupted)


def test_terminated_politely_mid_window(recipe: Path, tmp_path: Path, uninterrupted: dict[str, bytes]) -> None:
    run = Run(recipe, tmp_path / "run")
    printed = run.kill_when(lambda: run.num_steps() >= 3, signal.SIGTERM)
    assert run.status() == 128 + signal.SIGTERM
    assert "--resume" in printed
    assert "Traceback" not in printed
    _same_after_resume(recipe, tmp_path / "run", uninterrupted)


def test_resume_on_a_changed_recipe_says_what_differs(recipe: Path, tmp_path: Path) -> None:
    run = Run(recipe, tmp_path / "run", "training.steps=1")
    run.finish()
    changed = Run(recipe, tmp_path / "run", "--resume", "training.steps=1", "training.learning_rate=0.5")
    assert changed.status() == 2
    assert "training.learning_rate: 0.001 -> 0.5" in changed.printed


_VARIED_REWARD = '''
"""A reward that differs from completion to completion."""

def varied(completion: str) -> float:
    """Between 0 and 1."""
    return sum(map(ord, completion)) % 7 / 6
'''


def test_killed_inside_a_window_with_a_critic(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """The values recorded before the window's updates, the critic's weights and its optimiser come back bit for bit."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "varied.py").write_text(_VARIED_REWARD)
    tiny_recipe["prompts"] = tiny_recipe.pop("demonstrations")
    tiny_recipe |= {"rewards": [{"name": "varied"}], "algorithm": {"name": "ppo"}}
    tiny_recipe["critic"] = {"learning_rate": 1e-3, "warmup_steps": 1}
    tiny_recipe["rollout"]["updates"] = 3
    tiny_recipe["training"]["steps"] = 6
    recipe = write_recipe(tiny_recipe)
    Run(recipe, tmp_path / "whole").finish()
    run = Run(recipe, tmp_path / "cut")
    run.kill_when((tmp_path / "cut" / "checkpoints" / "step_2" / "state.json").exists)
    Run(recipe, tmp_path / "cut", "--resume").finish()
    whole, cut = (files(tmp_path / name / "checkpoints" / "step_6") for name in ("whole", "cut"))
    weights = [name for name in whole if name.endswith(".safetensors")]
    assert weights
    assert all(whole[name] == cut[name] for name in weights)
    metrics = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    trained = ("policy/", "value/", "critic_", "grad_norm", "learning_rate")
    kept = [[{k: v for k, v in json.loads(line).items() if k.startswith(trained)} for line in one] for one in metrics]
    assert kept[0] == kept[1]
    assert kept[0][-1]["critic_grad_norm"] > 0
