"""Replicas that the run starts itself: child processes with a port, a log and a group of their own."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_HOST = "127.0.0.1"
_LAST_LINES, _LAST_BYTES = 12, 1 << 17
_FIRST_ERRORS = 3
_ERROR = re.compile(r"\b(\w+\.)*[A-Z]\w*(Error|Exception): .*")


class ServerProcess:
    """One replica on this machine. log: what it prints, over all its starts."""

    def __init__(self, command: Sequence[str], variables: Mapping[str, str], log: Path) -> None:
        self.port = _free_port()
        self.url = f"http://{_HOST}:{self.port}"
        self.log = log
        self._command = [*command, "--host", _HOST, "--port", str(self.port)]
        self._variables = variables
        self._process: subprocess.Popen[bytes] | None = None
        self._start_byte = 0

    def start(self) -> None:
        """Start it; whoever wants to use it must wait until it answers."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as log:
            self._start_byte = log.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-m", "posttrain.rollout.server_watch", *self._command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | self._variables,
                start_new_session=True,  # a group of its own, which Ctrl-C on the terminal does not reach
            )

    @property
    def pid(self) -> int | None:
        """The process group's id; None before the first start."""
        return None if self._process is None else self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is there; a frozen one is."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> None:
        """End it and everything it has started, at once."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):  # the group may outlive its first process
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process = None

    def last_words(self) -> str:
        """What it has printed since its last start: its first errors, or where it names none its last lines."""
        with self.log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._start_byte, size - _LAST_BYTES))
            lines = [line for line in log.read().decode(errors="replace").splitlines() if line.strip()]
        errors = dict.fromkeys(found[0] for line in lines if "WARNING" not in line and (found := _ERROR.search(line)))
        return "\n".join(f"  {line}" for line in [*errors][:_FIRST_ERRORS] or lines[-_LAST_LINES:])


def _free_port() -> int:
    with socket.socket() as found:
        found.bind((_HOST, 0))
        port: int = found.getsockname()[1]
        return port
