"""Runs in processes of their own, to be killed, and what they leave behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Run:
    """One `posttrain train` of the recipe, in a process of its own."""

    def __init__(self, recipe: Path, output: Path, *more: str) -> None:
        environment = os.environ | {"POSTTRAIN_PATH": str(recipe.parent), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "posttrain", "train", str(recipe), "--output", str(output), *more]
        self.output = output
        self.process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    def kill_when(self, ready: Callable[[], bool], number: signal.Signals = signal.SIGKILL) -> str:
        """Send the signal as soon as `ready` says so; returns what the run printed."""
        while not ready():
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.0005)
        self.process.send_signal(number)
        return self.process.communicate(timeout=60)[0]

    def finish(self) -> str:
        """Wait for the end; returns what the run printed."""
        printed = self.process.communicate(timeout=120)[0]
        assert self.process.returncode == 0, printed
        return printed

    def num_steps(self) -> int:
        """Steps that metrics.jsonl holds."""
        path = self.output / "metrics.jsonl"
        return len(path.read_text().splitlines()) if path.exists() else 0


def files(directory: Path) -> dict[str, bytes]:
    """Every file below it, by its name."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def metrics(output: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock says."""
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    timed = ("seconds", "tokens_per_second", "overlap")
    return [{name: value for name, value in row.items() if not name.endswith(timed)} for row in rows]
