"""The sandbox: what runs, what cannot be reached, and that nothing is left behind."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil
import pytest

from posttrain import sandbox
from posttrain.errors import MissingDependencyError
from posttrain.sandbox import Limits
from tests.living import command, left

SMALL = Limits(seconds=20.0, memory_bytes=256 << 20, disk_bytes=1 << 20, output_bytes=1000)


def test_a_program_reads_its_input_and_prints() -> None:
    assert sandbox.run("print(input()[::-1])", "abc\n") == sandbox.Ran(0, "cba\n")
    assert sandbox.run("raise SystemExit(3)").status == 3
    assert sandbox.run("import sys; print(len(sys.stdin.read()))", "x" * 3_000_000).output == "3000000\n"
    assert sandbox.run(f"text = '{'x' * 300_000}'\nprint(len(text))").output == "300000\n"


@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 22), 1)",
        "open('/etc/passwd')",
        "open('/usr/lib/x', 'w')",
        "open('/tmp/x', 'wb').write(b'0' * (2 << 20))",
        "bytearray(1 << 30)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "import os; os.kill(os.getppid() + 1000, 9)",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "import os; assert set(os.environ) - {'PWD', 'LC_CTYPE', 'LC_ALL'}",
        "import torch",
        "import os; os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import ctypes; assert ctypes.CDLL(None).syscall(57) >= 0",
        "import ctypes; assert ctypes.CDLL(None).syscall(0x40000000 + 57) >= 0",
        "import ctypes; assert ctypes.CDLL(None).syscall(435, 0, 0) >= 0",
    ],
)
def test_what_is_outside_cannot_be_reached(code: str) -> None:
    ran = sandbox.run(code, limits=SMALL)
    assert ran.status not in (0, None)


@pytest.mark.parametrize("code", ["while True: pass", "import time; time.sleep(9)"])
def test_time_is_limited_and_nothing_goes_on(code: str) -> None:
    own = replace(SMALL, seconds=1.0, disk_bytes=SMALL.disk_bytes + os.getpid())  # a size that no other sandbox has
    with ThreadPoolExecutor() as pool:
        running = pool.submit(sandbox.run, code, limits=own)
        while not (seen := _of_size(own.disk_bytes)):
            assert not running.done()
        assert running.result(timeout=10).status is None
    assert not left([*seen, *_of_size(own.disk_bytes)])


def _of_size(disk_bytes: int) -> list[psutil.Process]:
    """The sandboxes with so much disk."""
    return [one for one in psutil.process_iter() if f"--size {disk_bytes} " in command(one)]


def test_threads_may_be_started() -> None:
    code = "from concurrent.futures import ThreadPoolExecutor as T\nprint(sum(T(4).map(abs, range(-9, 0))))"
    assert sandbox.run(code, limits=SMALL) == sandbox.Ran(0, "45\n")


def test_what_is_printed_beyond_the_limit_is_not_read() -> None:
    assert len(sandbox.run("print('x' * 10**7)", limits=SMALL).output) == 1000


def test_without_bubblewrap_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setattr(sandbox, "_problem", sandbox._problem.__wrapped__)
    with pytest.raises(MissingDependencyError, match="apt-get install bubblewrap"):
        sandbox.run("print(1)")
