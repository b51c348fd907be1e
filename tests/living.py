"""Processes that may end at any time: questions about them that hold while they do."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

import psutil


def descendants(pid: int | None = None, running: str = "") -> list[psutil.Process]:
    """The processes that this one, or another, has started and those have; running: with this in their command."""
    started = []
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid).children(recursive=True)
    return [one for one in started if running in command(one)]


def command(process: psutil.Process) -> str:
    """Its command line; "" of one that has ended."""
    try:
        return " ".join(process.cmdline())
    except psutil.NoSuchProcess:  # also a zombie
        return ""


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended; a zombie has."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left(processes: Iterable[psutil.Process], seconds: float = 10.0) -> list[psutil.Process]:
    """Those that still run after so many seconds."""
    end = time.monotonic() + seconds
    found = [one for one in processes if runs(one)]
    while found and time.monotonic() < end:
        time.sleep(0.05)
        found = [one for one in found if runs(one)]
    return found
