"""Rollouts that are played ahead of the trainer: by which policy, the same every time, nothing lost or too old."""

from __future__ import annotations

import json
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from posttrain.config import load_recipe
from posttrain.errors import RunError
from posttrain.rollout.engine import Completion, Request, Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainer import train
from posttrain.trainer.loop import Loop
from posttrain.trainer.step import Updater
from tests.trainer.processes import Run, files, metrics, run_ranks

WriteRecipe = Callable[..., Path]

VARIED = '''
"""A reward that differs from completion to completion, and takes its time."""
import time

def varied(completion: str) -> float:
    """0 or 1."""
    time.sleep(0.002)
    return float(sum(map(ord, completion)) % 4 == 0)
'''


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """GRPO on rewards that vary, two steps a window."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "varied.py").write_text(VARIED)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    tiny_recipe["prompts"] = tiny_recipe.pop("demonstrations")
    tiny_recipe |= {"rewards": [{"name": "varied"}], "algorithm": {"name": "grpo"}}
    tiny_recipe["rollout"] |= {"updates": 2, "max_staleness": 1}
    tiny_recipe["training"] |= {"steps": 8}
    return tiny_recipe


def same(one: Path, other: Path) -> None:
    """The same run to the last byte, but for what a clock says."""
    assert metrics(one) == metrics(other)
    assert files(one / "final") == files(other / "final")
    for path in sorted((one / "rollouts").iterdir()):
        assert path.read_bytes() == (other / "rollouts" / path.name).read_bytes()


def slow(monkeypatch: pytest.MonkeyPatch, kind: type, name: str, seconds: Callable[[], float]) -> None:
    """Have a method take so much longer."""
    method = getattr(kind, name)

    def slowed(self: Any, *what: Any, **how: Any) -> Any:
        time.sleep(seconds())
        return method(self, *what, **how)

    monkeypatch.setattr(kind, name, slowed)


def spans(patch: pytest.MonkeyPatch, kind: type, name: str, seconds: float) -> list[tuple[float, float]]:
    """When each call of a method, which now takes so much longer, begins and ends."""
    slow(patch, kind, name, lambda: seconds)
    method, found = getattr(kind, name), list[tuple[float, float]]()

    def watched(self: Any, *what: Any, **how: Any) -> Any:
        began = time.monotonic()
        result = method(self, *what, **how)
        found.append((began, time.monotonic()))
        return result

    patch.setattr(kind, name, watched)
    return found


@pytest.mark.parametrize("ahead", [0, 1, 2])
def test_a_window_is_sampled_by_the_policy_of_so_many_windows_before(
    ahead: int, recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe["rollout"]["max_staleness"] = ahead
    output = tmp_path / "run"
    train(load_recipe(write_recipe(recipe)), output)
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    for step, row in enumerate(rows):
        version = 2 * max(0, step // 2 - ahead)
        assert row["staleness_mean"] == row["staleness_max"] == step - version
        assert row["num_dropped_groups"] == 0
        played = [json.loads(line) for line in (output / "rollouts" / f"step_{step + 1}.jsonl").open()]
        assert {one["policy_version"] for one in played} == {version}
    of_window = {"canary_mismatch", "rollout_seconds", "rollout_wait_seconds", *["rollout_overlap"] * (ahead > 0)}
    assert [row.keys() >= of_window for row in rows] == [True, False] * 4
    assert all(row["canary_mismatch"] < 1e-5 for row in rows[::2])
    assert ("policy/correction_weight" in rows[0]) == (ahead > 0)
    assert not [one for one in threading.enumerate() if one.name == "rollouts"]


@pytest.mark.parametrize("ahead", [1, 2])
def test_how_long_anything_takes_changes_nothing(
    ahead: int, recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe["rollout"]["max_staleness"] = ahead
    loaded = load_recipe(write_recipe(recipe))
    train(loaded, tmp_path / "plain")
    generator = random.Random(ahead)
    with monkeypatch.context() as patch:
        slow(patch, TransformersEngine, "generate", lambda: 0.1 * generator.random())
        train(loaded, tmp_path / "slow_sampler")
    with monkeypatch.context() as patch:
        slow(patch, Updater, "__call__", lambda: 0.1 * generator.random())
        train(loaded, tmp_path / "slow_trainer")
    same(tmp_path / "plain", tmp_path / "slow_sampler")
    same(tmp_path / "plain", tmp_path / "slow_trainer")


def test_it_overlaps(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An update of a run ahead is made while the next window is played; otherwise they take turns."""
    recipe["rollout"]["updates"] = 1
    for ahead in (0, 1):
        with monkeypatch.context() as patch:
            played = spans(patch, TransformersEngine, "generate", 0.15)
            updated = spans(patch, Updater, "__call__", 0.45)
            output = tmp_path / f"ahead_{ahead}"
            train(load_recipe(write_recipe(recipe), [f"rollout.max_staleness={ahead}"]), output)
        beside = sum(any(a < d and c < b for c, d in played) for a, b in updated)
        assert len(updated) == 8
        assert beside >= 6 if ahead else beside == 0
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["rollout_overlap"] > 0.5


def test_an_evaluation_is_played_by_the_policy_of_its_step_and_disturbs_nothing(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe["rollout"]["max_staleness"] = 2
    train(load_recipe(write_recipe(recipe)), tmp_path / "without")
    benchmark = {"name": "reasoning_gym", "dataset": "chain_sum", "size": 4, "max_tokens": 4}
    recipe["evaluation"] = benchmark | {"every_steps": 1}
    seen, evaluate = [], Loop._evaluate

    def watched(loop: Loop, *what: Any) -> None:
        play = loop.evaluate
        assert play is not None and loop.sampler is not None
        loop.evaluate = lambda: seen.append((loop.step, loop.sampler.engine.policy_version)) or play()  # type: ignore[union-attr]
        evaluate(loop, *what)
        loop.evaluate = play

    monkeypatch.setattr(Loop, "_evaluate", watched)
    train(load_recipe(write_recipe(recipe)), tmp_path / "with")
    assert seen == [(step, step) for step in range(9)]
    assert files(tmp_path / "with" / "final") == files(tmp_path / "without" / "final")


@pytest.mark.parametrize("ahead", [0, 1])
def test_what_an_older_policy_has_sampled_is_dropped_and_counted(
    ahead: int, recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica missed a sync: one completion of the third window, in its second group, is the first policy's."""
    recipe["rollout"] |= {"max_staleness": ahead, "updates": 1}
    generate, calls = TransformersEngine.generate, [0]

    def lagging(self: TransformersEngine, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        found = generate(self, requests, sampling)
        calls[0] += len(found) == 16
        return [replace(one, policy_version=0) if calls[0] == 3 and i == 5 else one for i, one in enumerate(found)]

    monkeypatch.setattr(TransformersEngine, "generate", lagging)
    output = tmp_path / "run"
    train(load_recipe(write_recipe(recipe), ["tracking.groups_per_step=9"]), output)
    rows = metrics(output)
    assert [row["num_dropped_groups"] for row in rows] == [0, 0, 1, 0, 0, 0, 0, 0]
    assert [row["num_groups"] for row in rows] == [4, 4, 3, 4, 4, 4, 4, 4]
    assert [row["num_sequences"] for row in rows] == [16, 16, 12, 16, 16, 16, 16, 16]
    assert rows[2]["num_graded"] + rows[2]["num_ungraded"] == 12
    assert rows[2]["staleness_max"] == ahead
    played = [json.loads(line) for line in (output / "rollouts" / "step_3.jsonl").open()]
    assert [bool(one["advantage"]) for one in played] == [True] * 4 + [False] * 4 + [True] * 8


def test_a_failure_of_the_sampler_ends_the_run_with_its_cause(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate = TransformersEngine.generate

    def broken(self: TransformersEngine, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        if self.policy_version == 2:
            raise RunError("the sampler is gone")
        return generate(self, requests, sampling)

    monkeypatch.setattr(TransformersEngine, "generate", broken)
    slow(monkeypatch, Updater, "__call__", lambda: 0.3)
    with pytest.raises(RunError, match="the sampler is gone"):
        train(load_recipe(write_recipe(recipe)), tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 3, "the step that was being made, and none of those that were still there"
    assert not [one for one in threading.enumerate() if one.name == "rollouts"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path, int], Path]:
    """The output of a run that nobody disturbed; run once for each number of windows ahead."""
    found: dict[int, Path] = {}

    def output(recipe: Path, ahead: int) -> Path:
        if ahead not in found:
            found[ahead] = tmp_path_factory.mktemp("uninterrupted") / "run"
            Run(recipe, found[ahead], f"rollout.max_staleness={ahead}").finish()
        return found[ahead]

    return output


@pytest.mark.parametrize(("ahead", "seed"), [(1, 1), (2, 2)])
def test_killed_at_a_random_moment(
    ahead: int,
    seed: int,
    recipe: dict[str, Any],
    write_recipe: WriteRecipe,
    tmp_path: Path,
    uninterrupted: Callable[[Path, int], Path],
) -> None:
    path, generator = write_recipe(recipe), random.Random(seed)
    run = Run(path, tmp_path / "run", f"rollout.max_staleness={ahead}")
    steps, delay = generator.randrange(1, 7), generator.random() * 0.1
    run.kill_when(lambda: run.num_steps() >= steps and (time.sleep(delay) or True))
    Run(path, tmp_path / "run", f"rollout.max_staleness={ahead}", "--resume").finish()
    same(tmp_path / "run", uninterrupted(path, ahead))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopped_politely(
    number: signal.Signals,
    recipe: dict[str, Any],
    write_recipe: WriteRecipe,
    tmp_path: Path,
    uninterrupted: Callable[[Path, int], Path],
) -> None:
    path = write_recipe(recipe)
    run = Run(path, tmp_path / "run", "rollout.max_staleness=1")
    printed = run.kill_when(lambda: run.num_steps() >= 3, number)
    assert run.status() == 128 + number
    assert "--resume" in printed and "Traceback" not in printed
    if number == signal.SIGTERM:
        Run(path, tmp_path / "run", "rollout.max_staleness=1", "--resume").finish()
        same(tmp_path / "run", uninterrupted(path, 1))


def test_a_run_that_is_made_longer_goes_on(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    """Nothing is played beyond its end; what was not is sampled by the policy of the moment when it goes on."""
    path = write_recipe(recipe)
    train(load_recipe(path, ["training.steps=4"]), tmp_path / "run")
    train(load_recipe(path), tmp_path / "run", resume=True)
    assert [row["staleness_max"] for row in metrics(tmp_path / "run")] == [0, 1, 2, 3, 0, 1, 2, 3]


def test_two_ranks_make_the_updates_of_one_and_resume_exactly(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """With dynamic sampling, for which the threads of both ranks must agree on what is drawn again."""
    recipe["rollout"] |= {"max_draws": 3}
    recipe["training"] |= {"prompts_per_step": 5, "steps": 6, "epsilon": 1e-4}
    path = write_recipe(recipe)
    train(load_recipe(path), tmp_path / "alone")
    run_ranks(path, tmp_path / "ranks")
    alone, ranks = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("alone", "ranks"))
    for name, expected in alone.items():
        assert (ranks[name] - expected).norm() / expected.norm() < 1e-5, name
    rows = metrics(tmp_path / "alone")
    assert rows[-1]["num_redrawn_groups"] == metrics(tmp_path / "ranks")[-1]["num_redrawn_groups"] > 0
    shutil.copytree(tmp_path / "ranks", tmp_path / "again")
    shutil.rmtree(tmp_path / "again" / "checkpoints" / "step_6")
    run_ranks(path, tmp_path / "again", "--resume")
    same(tmp_path / "ranks", tmp_path / "again")
