"""A process between the trainer and a replica: when either is gone, however it went, it ends the replica's whole group.

The trainer holds the other end of its standard input, which closes when the trainer ends, by SIGKILL too. It imports
nothing, so that it costs a few megabytes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def main(command: Sequence[str]) -> None:
    """Run `command` in this process's group until it or the trainer ends."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=_follow_trainer, daemon=True).start()
    status = child.wait()
    print(f"\nthe server ended with status {status}", file=sys.stderr, flush=True)
    os.killpg(0, signal.SIGKILL)


def _follow_trainer() -> None:
    sys.stdin.buffer.read()
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main(sys.argv[1:])
