"""Rewards that raise, hang, exhaust memory or kill their process cost their own calls and nothing else."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch

from posttrain.batch import Source, TokenBatch, TokenSequence
from posttrain.estimator.advantages import GroupRelative
from posttrain.reward import Grader, RewardSpec
from posttrain.trajectory import StopReason, Trajectory, Turn
from tests.living import descendants, left

FAULTY = '''
import os, signal, sys, time

leaked = []

def faulty(completion):
    """The number that the completion is, or the fault that it names."""
    match completion.split():
        case ["raise"]:
            raise ValueError("two\\nlines")
        case ["hang"]:
            time.sleep(1000)
        case ["spin"]:
            return len(str(9 ** (9 ** 8)))
        case ["deaf"]:
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            time.sleep(1000)
        case ["memory"]:
            return float(len(bytearray(20 << 30)))
        case ["slowly"]:
            return float(len([bytes(1 << 20) for _ in range(20 << 10)]))
        case ["exit", status]:
            os._exit(int(status))
        case ["quit"]:
            sys.exit("enough")
        case ["crash"]:
            os.kill(os.getpid(), signal.SIGSEGV)
        case ["silence"]:
            os.closerange(3, 100)
            time.sleep(1000)
        case ["leak"]:
            leaked.append(b"x" * (40 << 20))
        case ["wait", seconds]:
            time.sleep(float(seconds))
    return float(completion) if completion[0].isdigit() else 1.0
'''


@pytest.fixture
def plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plug-in folder with the faulty reward."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "faulty.py").write_text(FAULTY)
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def grader(plugins: Path) -> Iterator[Grader]:
    """Two workers, a second a call."""
    with Grader([RewardSpec("faulty")], workers=2, deadline_seconds=1.0, memory_bytes=256 << 20) as made:
        yield made


@pytest.fixture
def patient(plugins: Path) -> Iterator[Grader]:
    """Two workers, as long as a busy machine may need for a call."""
    with Grader([RewardSpec("faulty")], workers=2, deadline_seconds=60.0, memory_bytes=256 << 20) as made:
        yield made


def played(text: str, attempt: int = 0) -> Trajectory:
    turn = Turn((1,), (2, 3), (-0.5, -0.5), StopReason.STOP, 0, text)
    return Trajectory("p", attempt, "question", {}, (turn,))


CAUSES = {
    "raise": "ValueError",
    "hang": "deadline",
    "spin": "deadline",
    "deaf": "deadline",
    "memory": "memory",
    "slowly": "memory",
    "exit 0": "worker died",
    "exit 3": "worker died",
    "quit": "worker died",
    "crash": "worker died",
    "silence": "worker died",
}


@pytest.mark.parametrize(("fault", "cause"), CAUSES.items())
def test_each_fault_costs_its_own_call(grader: Grader, fault: str, cause: str) -> None:
    texts = [fault if i % 15 == 7 else f"{i}" for i in range(60)]
    trajectories = [played(text) for text in texts]
    grader.grade(trajectories)
    assert [t.reward for t in trajectories] == [None if text == fault else float(text) for text in texts]
    assert [t.solved for t in trajectories] == [None if text == fault else float(text) >= 1 for text in texts]
    assert grader.failures == {f"faulty: {cause}": 4}
    errors = {t.error for t in trajectories if t.error}
    assert len(errors) == 1
    assert cause in errors.pop()


def test_a_fifth_of_the_calls_fails_and_group_statistics_ignore_them(grader: Grader) -> None:
    """Groups of five: one fault and the rewards 1, 0, 1, 0, so a mean of 0.5 and a deviation of 1/sqrt(3)."""
    faults = ["raise", "hang", "memory", "exit 1", "exit 0"] * 3
    groups = [[played(text, i) for i, text in enumerate(["1", "0", fault, "1", "0"])] for fault in faults]
    grader.grade([trajectory for group in groups for trajectory in group])
    assert grader.failures == Counter(
        {"faulty: ValueError": 3, "faulty: deadline": 3, "faulty: memory": 3, "faulty: worker died": 6}
    )
    sequences = [
        TokenSequence((1, 2, 3), (False, True, True), Source.ROLLOUTS, number, reward=trajectory.reward)
        for number, group in enumerate(groups)
        for trajectory in group
    ]
    batch = TokenBatch.from_sequences(sequences, torch.float64)
    expected = torch.tensor([0.5, -0.5, 0.0, 0.5, -0.5] * len(groups), dtype=torch.float64)
    assert torch.equal(GroupRelative(std=False)(batch), expected)
    torch.testing.assert_close(GroupRelative(epsilon=0.0)(batch), expected * 3**0.5)


def test_hangs_cost_one_deadline_each(grader: Grader) -> None:
    grader.grade([played("1"), played("1")])
    trajectories = [played("hang" if i % 5 == 0 else "1") for i in range(60)]
    began = time.monotonic()
    grader.grade(trajectories)
    seconds = time.monotonic() - began
    assert grader.failures == {"faulty: deadline": 12}
    assert 12 * 1.0 / 2 <= seconds < 12 * 1.0 / 2 + 12 * 0.75  # a restart takes some 0.3 s of a busy core


def test_slow_but_legal_calls_survive(grader: Grader) -> None:
    trajectories = [played("wait 0.2") for _ in range(20)]
    grader.grade(trajectories)
    assert [t.reward for t in trajectories] == [1.0] * 20


def test_workers_are_kept_unless_they_have_grown(patient: Grader) -> None:
    patient.grade([played("1") for _ in range(10)])
    workers = workers_of(os.getpid())
    patient.grade([played("1") for _ in range(1000)])
    assert workers_of(os.getpid()) == workers
    trajectories = [played("leak") for _ in range(20)]
    patient.grade(trajectories)
    assert [t.reward for t in trajectories] == [1.0] * 20
    patient.grade([played("1") for _ in range(100)])
    assert not set(workers_of(os.getpid())) & set(workers)
    assert not patient.failures


def test_a_worker_killed_while_idle_costs_nothing(patient: Grader) -> None:
    patient.grade([played("1") for _ in range(10)])
    workers = workers_of(os.getpid())
    assert len(workers) == 2
    for worker in workers:
        worker.kill()
    trajectories = [played("2") for _ in range(10)]
    patient.grade(trajectories)
    assert [t.reward for t in trajectories] == [2.0] * 10
    assert not patient.failures


def test_an_interrupted_grading_leaves_a_usable_grader(patient: Grader) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    patient.grade([played("1")])
    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            patient.grade([played("wait 0.4") for _ in range(40)])
    finally:
        signal.signal(signal.SIGALRM, former)
    trajectories = [played(f"{i}") for i in range(40)]
    patient.grade(trajectories)
    assert [t.reward for t in trajectories] == [float(i) for i in range(40)]


SCRIPT = """
import signal, sys, time
from posttrain.reward import Grader, RewardSpec
from posttrain.trajectory import StopReason, Trajectory, Turn

signal.signal(signal.SIGINT, signal.default_int_handler)  # what was started in the background ignores it
grader = Grader([RewardSpec("faulty")], workers=2, deadline_seconds=float(sys.argv[3]))
turn = lambda text: Turn((1,), (2,), (-0.5,), StopReason.STOP, 0, text)
trajectories = [Trajectory("p", 0, "q", {}, (turn(text),)) for text in sys.argv[1].split(",")]
print("started", flush=True)
grader.grade(trajectories)
print([t.reward for t in trajectories], flush=True)
time.sleep(float(sys.argv[2]))
"""


@contextmanager
def launch(plugins: Path, texts: str, seconds: float, deadline: float = 1.0) -> Iterator[subprocess.Popen[str]]:
    """A program without a `__main__` guard that grades and then sleeps."""
    script = plugins / "program.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(script), texts, str(seconds), str(deadline)]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
    try:
        yield program
    finally:
        program.kill()
        program.communicate()


def workers_of(pid: int) -> list[psutil.Process]:
    return descendants(pid, "reward.worker")


def ignores_interrupts(process: psutil.Process) -> bool:
    """As a worker does as soon as it has started."""
    (mask,) = re.findall(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{process.pid}/status").read_text(), re.MULTILINE)
    return bool(int(mask, 16) >> (signal.SIGINT - 1) & 1)


def test_workers_end_with_the_interpreter(plugins: Path) -> None:
    with launch(plugins, "1,2", 1.0) as program:
        assert program.stdout is not None
        assert [program.stdout.readline(), program.stdout.readline()] == ["started\n", "[1.0, 2.0]\n"]
        workers = workers_of(program.pid)
        assert len(workers) == 2
        assert program.wait(20) == 0
        assert not left(workers, 2)


@pytest.mark.parametrize("busy", [True, False])
def test_workers_end_after_their_parent_was_killed(plugins: Path, busy: bool) -> None:
    with launch(plugins, "spin,hang" if busy else "1,1", 60) as program:
        assert program.stdout is not None
        program.stdout.readline()
        if not busy:
            program.stdout.readline()
        time.sleep(0.5)
        workers = workers_of(program.pid)
        assert len(workers) == 2
        program.kill()
        assert not left(workers, 4)


def test_ctrl_c_reaches_the_trainer_but_not_the_workers(plugins: Path) -> None:
    with launch(plugins, "wait 0.9", 60, deadline=10.0) as program:
        assert program.stdout is not None
        program.stdout.readline()
        while len(workers := workers_of(program.pid)) < 2 or not all(map(ignores_interrupts, workers)):
            time.sleep(0.02)
        for worker in workers:
            worker.send_signal(signal.SIGINT)
        assert program.stdout.readline() == "[1.0]\n"
        assert workers_of(program.pid) == workers
        os.killpg(program.pid, signal.SIGINT)
        assert program.wait(20) != 0
        assert not left(workers, 2)


def test_importing_rewards_does_not_import_torch() -> None:
    program = "import sys, posttrain.reward.worker; print('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=launch_env())
    assert run.stdout == "False\n"


def launch_env() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
