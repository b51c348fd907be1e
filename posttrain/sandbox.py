"""Runs Python that nobody has read: bubblewrap namespaces without network, and limits that cannot be raised again.

Inside there is the standard library, an empty /tmp, no network, no process but its own and no environment. Where
bubblewrap is missing or the kernel refuses user namespaces nothing is run at all: there is no weaker way. Linux only.
"""

from __future__ import annotations

import os
import platform
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from posttrain.errors import MissingDependencyError, RunError
from posttrain.seccomp import no_processes

_LIMIT = """
import resource, sys
memory, cpu, size = map(int, sys.argv[1:4])
for kind, value in (
    (resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, cpu), (resource.RLIMIT_FSIZE, size),
    (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_CORE, 0),
):
    resource.setrlimit(kind, (value, value))
del sys.argv[1:4]
"""


_PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}  # where bwrap is looked for; inside there is none


@dataclass(frozen=True)
class Limits:
    """What one program may use; seconds is wall time, and what it prints beyond output_bytes is not read."""

    seconds: float = 6.0
    memory_bytes: int = 512 << 20
    disk_bytes: int = 16 << 20
    output_bytes: int = 1 << 20


@dataclass(frozen=True)
class Ran:
    """How a program ended. status: its exit status, negative a signal's; None where its time was over."""

    status: int | None
    output: str


def check() -> None:
    """MissingDependencyError without bubblewrap; RunError where it cannot make a sandbox here."""
    problem = _problem()
    if problem is not None:
        raise problem


def start(
    code: str, limits: Limits, *, stdin: int, stdout: int, stderr: int = subprocess.DEVNULL, keep: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """A sandboxed process that runs `code`; stdin, stdout and stderr as `subprocess.Popen` takes them.

    keep: further descriptors that it inherits.

    It is the first of a process group of its own; `stop` ends it. Errors as `check`.
    """
    check()
    given = (limits.memory_bytes, max(1, round(limits.seconds)), limits.disk_bytes)
    program = in_memory(f"{_LIMIT}\n{code}".encode())  # a command line holds no more than 128 KiB
    rules = in_memory(no_processes(platform.machine()) or b"")
    try:
        command = [*_prefix(limits.disk_bytes, rules), "-c", f"exec(open({program}).read())", *map(str, given)]
        return subprocess.Popen(
            command,
            start_new_session=True,
            cwd="/",
            env=_PATH,
            pass_fds=(program, rules, *keep),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
        )
    finally:
        os.close(program)
        os.close(rules)


def in_memory(content: bytes) -> int:
    """The descriptor of a file without a name, to be read from its start."""
    descriptor = os.memfd_create("sandbox")
    with open(descriptor, "wb", closefd=False) as file:
        file.write(content)
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def stop(process: subprocess.Popen[bytes]) -> None:
    """Kill a process of `start` and everything that it has started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def run(code: str, text: str = "", limits: Limits | None = None) -> Ran:
    """Run `code` with `text` as its standard input; its standard output, as far as it is UTF-8, and how it ended."""
    limits = limits or Limits()
    process = start(code, limits, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        output, ended = _exchange(process, text.encode(), limits)
        status = process.wait(timeout=limits.seconds) if ended else None
    except subprocess.TimeoutExpired:
        status = None
    finally:
        stop(process)
        process.stdin.close()
        process.stdout.close()
    return Ran(status, output.decode(errors="replace"))


def read(descriptor: int, deadline: float, max_bytes: int) -> bytes:
    """What comes out of a pipe until its end, the deadline (of time.monotonic) or `max_bytes`."""
    found = bytearray()
    while (left := deadline - time.monotonic()) > 0 and len(found) < max_bytes:
        if not select.select([descriptor], [], [], left)[0]:
            break
        part = os.read(descriptor, 65536)
        if not part:
            break
        found += part
    return bytes(found[:max_bytes])


def _exchange(process: subprocess.Popen[bytes], given: bytes, limits: Limits) -> tuple[bytes, bool]:
    """Feed a process and read it at the same time; what it said, and whether it closed its output in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + limits.seconds
    said = bytearray()
    feeding, reading = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(feeding, False)
    while (left := deadline - time.monotonic()) > 0:
        writable = [feeding] if given else []
        if not writable and not process.stdin.closed:
            process.stdin.close()
        ready, wanting, _ = select.select([reading], writable, [], left)
        if wanting:
            try:
                given = given[os.write(feeding, given[:65536]) :]
            except BrokenPipeError:
                given = b""
        if ready:
            part = os.read(reading, 65536)
            if not part:
                return bytes(said), True
            said += part[: limits.output_bytes - len(said)]
    return bytes(said), False


def _prefix(disk_bytes: int, rules: int) -> list[str]:
    """The command up to the interpreter."""
    python = Path(getattr(sys, "_base_executable", None) or sys.executable).resolve()
    shown: list[str] = []
    for path in map(Path, ("/bin", "/lib", "/lib64")):
        if path.is_symlink():
            shown += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            shown += ["--ro-bind", str(path), str(path)]
    for name in dict.fromkeys(("/usr", sys.base_prefix, str(python.parent), "/etc/ld.so.cache")):
        if Path(name).exists():
            shown += ["--ro-bind", name, name]
    return [
        "bwrap", "--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session",
        "--clearenv", *shown, "--proc", "/proc", "--dev", "/dev", "--size", str(disk_bytes), "--tmpfs", "/tmp",
        "--chdir", "/tmp", "--uid", "65534", "--gid", "65534", "--cap-drop", "ALL", "--seccomp", str(rules),
        "--", str(python), "-I", "-S", "-B",
    ]  # fmt: skip


@cache
def _problem() -> Exception | None:
    if shutil.which("bwrap") is None:
        return MissingDependencyError(
            "code is graded in a sandbox, which needs bubblewrap (bwrap), which is not installed: apt-get install "
            "bubblewrap, or the package of that name of your system"
        )
    rules = no_processes(platform.machine())
    if rules is None:
        return RunError(f"code is graded in a sandbox, which is not known for {platform.machine()} processors")
    descriptor = in_memory(rules)
    command = [*_prefix(1 << 20, descriptor), "-c", "print(6 * 7)"]
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, timeout=30, check=False, cwd="/", pass_fds=(descriptor,)
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return RunError(f"code is graded in a sandbox, which cannot be made here: {error}")
    finally:
        os.close(descriptor)
    if found.stdout.strip() != "42":
        return RunError(
            "code is graded in a sandbox, which cannot be made here (are unprivileged user namespaces allowed?): "
            f"{found.stderr.strip()[-300:]}"
        )
    return None
