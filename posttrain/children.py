"""Python processes that this one starts, talks to over a pipe, and can kill with everything they have started.

A child imports nothing of the parent's `__main__`. It is in a session of its own, where a terminal's Ctrl-C does not
reach it, and ends when its parent is gone, even by SIGKILL: its end of the pipe closes (and see `die_with_parent`).
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import psutil


@dataclass(eq=False)
class Child:
    """A process, and this side of the pipe to it."""

    process: subprocess.Popen[bytes]
    pipe: Connection[Any, Any]

    def kill(self) -> int:
        """End the process and whatever it started; its return code."""
        kill_family(self.process.pid)
        self.pipe.close()
        return self.process.wait()


def start(main: str) -> Child:
    """Start a process that runs `main` ("module:function") with the file descriptor of its side of the pipe.

    It computes in one thread, has a fixed hash seed, no input, and what it prints is lost; its errors are shown.
    """
    ours, theirs = Pipe()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    environment.setdefault("PYTHONHASHSEED", "0")
    module, function = main.split(":")
    boot = (
        "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
        f"from {module} import {function} as main; main(int(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", boot, json.dumps(sys.path), str(theirs.fileno())],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        pass_fds=[theirs.fileno()],
        env=environment,
        start_new_session=True,
    )
    theirs.close()
    return Child(process, ours)


def kill_family(pid: int) -> None:
    """SIGKILL to a process that leads a group, to its group, and to what they started in other groups."""
    started: Sequence[psutil.Process] = ()
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid).children(recursive=True)
    for one in started:  # first, since this process may itself be in the group
        with suppress(psutil.NoSuchProcess):
            one.kill()
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def die_with_parent() -> None:
    """In a child whose main thread may be busy for long: watch for the parent's end, and then kill the whole family."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            threading.Event().wait(_WATCH_SECONDS)
        kill_family(os.getpid())

    threading.Thread(target=watch, name="parent", daemon=True).start()


_WATCH_SECONDS = 0.5
