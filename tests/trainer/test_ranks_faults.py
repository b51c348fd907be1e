"""One rank's failure is everybody's, soon and with the cause; a pre-empted job leaves a checkpoint (real processes)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from posttrain.config.schema import TrackingSettings, TrainingSettings
from posttrain.errors import UserError
from posttrain.trainer.distributed import make_accelerator
from tests.living import command, left
from tests.trainer.processes import CPU_2, Run, run_ranks, start_ranks

DEADLINE_SECONDS = 60  # a launcher gives its ranks 30
WHOLE_SECONDS = 300

_RANK_REWARD = '''
"""A reward that fails on the second rank."""
import os

def of_rank(completion: str) -> float:
    """0, except on rank 1."""
    if os.environ["RANK"] == "1":
        raise ValueError("no grader on this machine")
    return 0.0
'''


_STUCK_REWARD = '''
"""A reward that never comes on the second rank."""
import os, time

def stuck(completion: str) -> float:
    """0, except on rank 1."""
    time.sleep(1000 * int(os.environ["RANK"]))
    return 0.0
'''


class Job:
    """`posttrain train` on two ranks, as a user launches it."""

    def __init__(self, recipe: Path, output: Path, *more: str) -> None:
        launcher = ["accelerate.commands.launch", "--config_file", str(CPU_2), "--main_process_port", "0"]
        run = ["-m", "posttrain", "train", str(recipe), "--output", str(output), *more]
        self.output = output
        self.log = output.with_suffix(".log").open("w+")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "POSTTRAIN_PATH": str(recipe.parent)}
        command = [sys.executable, "-m", *launcher, *run]
        self.process = subprocess.Popen(command, env=environment, stdout=self.log, stderr=subprocess.STDOUT)

    @property
    def printed(self) -> str:
        self.log.seek(0)
        return self.log.read()

    @property
    def ranks(self) -> list[psutil.Process]:
        return [one for one in psutil.Process(self.process.pid).children() if "posttrain" in command(one)]

    def after_steps(self, number: int) -> None:
        metrics = self.output / "metrics.jsonl"
        while not (metrics.exists() and len(metrics.read_text().splitlines()) >= number):
            assert self.process.poll() is None, self.printed
            time.sleep(0.05)

    def status(self, within_seconds: float = WHOLE_SECONDS) -> int:
        """The launcher's, once all ranks have ended."""
        ranks = self.ranks if self.process.poll() is None else []
        status = self.process.wait(timeout=within_seconds)
        assert not left(ranks, seconds=0)
        return status


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path) -> Path:
    """Far too many steps, and no checkpoint but those that are asked for."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "of_rank.py").write_text(_RANK_REWARD)
    tiny_recipe["training"]["steps"] = 100_000
    tiny_recipe["checkpoint"] = {"every_steps": 0}
    return write_recipe(tiny_recipe)


def test_a_killed_rank_ends_the_job(recipe: Path, tmp_path: Path) -> None:
    job = Job(recipe, tmp_path / "run")
    job.after_steps(2)
    job.ranks[1].kill()
    assert job.status(DEADLINE_SECONDS) != 0
    assert "Signal 9 (SIGKILL)" in job.printed


def test_the_other_rank_says_so(recipe: Path, tmp_path: Path) -> None:
    """Where no launcher is quicker to end it."""
    first, second = start_ranks(recipe, tmp_path / "run")
    second.kill_when(lambda: first.num_steps() >= 2)
    assert first.status(DEADLINE_SECONDS) == 1
    assert "the run failed: rank 0 of 2 lost the others" in first.printed


def test_a_failing_rank_ends_the_job_with_its_message(
    tiny_recipe: dict[str, Any], recipe: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    tiny_recipe["rewards"] = [{"name": "of_rank"}]
    tiny_recipe["rollout"]["max_failure_rate"] = 0.1
    ranks = start_ranks(write_recipe(tiny_recipe), tmp_path / "run")
    assert [rank.status(DEADLINE_SECONDS) for rank in ranks] == [1, 1]
    assert any("no grader on this machine" in rank.printed for rank in ranks)
    assert not (tmp_path / "run" / "final").exists()


def test_preemption_leaves_one_checkpoint_to_resume_from(recipe: Path, tmp_path: Path) -> None:
    """The signal reaches launcher and ranks, as a scheduler sends it; the launcher passes its own on."""
    job = Job(recipe, tmp_path / "run")
    job.after_steps(2)
    for one in [psutil.Process(job.process.pid), *job.ranks]:
        one.terminate()
    assert job.status() != 0
    (checkpoint,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = json.loads((checkpoint / "state.json").read_text())["step"]
    assert f"stopped by SIGTERM after step {step}; go on with:" in job.printed
    printed = run_ranks(recipe, tmp_path / "run", "--resume", f"training.steps={step + 1}")
    assert f"resuming at step {step} of {step + 1}" in printed


def test_a_rank_that_never_comes_is_not_waited_for_longer_than_said(recipe: Path, tmp_path: Path) -> None:
    ranks = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    run = Run(recipe, tmp_path / "run", "training.collective_timeout_seconds=2", environment=ranks)
    assert run.status(DEADLINE_SECONDS) == 1
    assert "the run failed: rank 0 of 2 lost the others" in run.printed
    assert "training.collective_timeout_seconds (2)" in run.printed


def test_nor_is_a_rank_whose_rollouts_ahead_never_come(
    tiny_recipe: dict[str, Any], recipe: Path, write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    """What the threads that play tell one another has the same deadline."""
    (tmp_path / "rewards" / "stuck.py").write_text(_STUCK_REWARD)
    tiny_recipe["prompts"] = tiny_recipe.pop("demonstrations")
    tiny_recipe |= {"algorithm": {"name": "grpo"}, "rewards": [{"name": "stuck"}]}
    tiny_recipe["rollout"] |= {"max_staleness": 1, "max_draws": 2, "deadline_seconds": 1000.0}
    tiny_recipe["training"]["collective_timeout_seconds"] = 6.0
    first, stuck = start_ranks(write_recipe(tiny_recipe), tmp_path / "run")
    assert first.status(DEADLINE_SECONDS) == 1
    stuck.kill_when(lambda: True)  # it does not see a polite signal
    assert "the run failed: rank 0 of 2 lost the others" in first.printed
    assert "training.collective_timeout_seconds (6)" in first.printed


def test_the_first_fsdp_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match="the launch file says fsdp_version 1; allowed: 2, as in recipes/launch"):
        make_accelerator(TrainingSettings(), TrackingSettings(), tmp_path)
