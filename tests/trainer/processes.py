"""Runs in processes of their own, to be killed or to be ranks, and what they leave behind.

They are forked from a process that has imported what `posttrain train` needs, so that a start takes no seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

LAUNCH = Path(__file__).parents[2] / "recipes" / "launch"
CPU_2 = LAUNCH / "cpu_2.yaml"
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *("posttrain.__main__", "posttrain.trainer.setup", "posttrain.evaluation.report", "reasoning_gym", "peft"),
        *("deepspeed", "transformers.models.auto.modeling_auto", "transformers.models.qwen3.modeling_qwen3"),
    ]
)


def _posttrain(arguments: list[str], environment: dict[str, str], directory: str, log: str) -> None:
    """What the new process does: `posttrain ARGUMENTS`, printing into a file."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(directory)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.argv = ["posttrain", *arguments]
    from posttrain.__main__ import main

    main()


class Run:
    """One `posttrain train` of the recipe, or one rank of it, in a process of its own."""

    def __init__(
        self, recipe: Path, output: Path, *more: str, environment: Mapping[str, str] | None = None, log: str = ".log"
    ) -> None:
        self.output = output
        self._log = output.with_name(output.name + log)
        arguments = ["train", str(recipe), "--output", str(output), *more]
        parts = {"POSTTRAIN_PATH": str(recipe.parent)} if (recipe.parent / "rewards").is_dir() else {}
        there = {**os.environ, **parts, **(environment or {})}
        self.process = FORKS.Process(target=_posttrain, args=(arguments, there, str(Path.cwd()), str(self._log)))
        self.process.start()

    @property
    def printed(self) -> str:
        """Up to now."""
        return self._log.read_text() if self._log.exists() else ""

    def status(self, within_seconds: float = 300) -> int:
        """Wait for the end; the exit status, of a signal -number."""
        self.process.join(within_seconds)
        status = self.process.exitcode
        self.process.kill()  # where it still runs: the tests would wait for it at their end
        assert status is not None, f"still running after {within_seconds} s: {self.printed}"
        return status

    def kill_when(self, ready: Callable[[], bool], number: signal.Signals = signal.SIGKILL) -> str:
        """Send the signal as soon as `ready` says so; returns what the run printed."""
        while not ready():
            assert self.process.exitcode is None, self.printed
            time.sleep(0.0005)
        assert self.process.pid is not None
        os.kill(self.process.pid, number)
        self.status()
        return self.printed

    def finish(self) -> str:
        """Wait for the end; returns what the run printed."""
        assert self.status() == 0, self.printed
        return self.printed

    def num_steps(self) -> int:
        """Steps that metrics.jsonl holds."""
        path = self.output / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0


def start_ranks(recipe: Path, output: Path, *more: str, launch_file: Path = CPU_2, num_ranks: int = 2) -> list[Run]:
    """A run of so many ranks, each told what `accelerate launch` with this file would tell it."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    sizes = {"WORLD_SIZE": str(num_ranks), "LOCAL_WORLD_SIZE": str(num_ranks)}
    shared = environment_of(launch_file, num_ranks) | meeting | sizes | {"DS_ACCELERATOR": "cpu"}
    own = [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]
    return [Run(recipe, output, *more, environment=one, log=f".{one['RANK']}.log") for one in own]


def run_ranks(recipe: Path, output: Path, *more: str, launch_file: Path = CPU_2, num_ranks: int = 2) -> str:
    """Such a run to its end; what the first rank printed."""
    runs = start_ranks(recipe, output, *more, launch_file=launch_file, num_ranks=num_ranks)
    printed, *_ = [run.finish() for run in runs]
    return printed


def environment_of(launch_file: Path, num_ranks: int) -> dict[str, str]:
    """The environment in which `accelerate launch` with this file would start torchrun."""
    from accelerate.commands.launch import launch_command, launch_command_parser

    found: dict[str, str] = {}
    line = ["--config_file", str(launch_file), "--num_processes", str(num_ranks), "-m", "posttrain"]
    with patch("torch.distributed.run.run", lambda _: found.update(os.environ)):
        launch_command(launch_command_parser().parse_args(line))
    return found


def files(directory: Path) -> dict[str, bytes]:
    """Every file below it, by its name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def metrics(output: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "overlap")
    return [{name: value for name, value in row.items() if not name.endswith(timed)} for row in rows]
