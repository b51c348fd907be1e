"""Episodes in processes: answers, failures that stay their own, and nothing left after a kill."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import psutil
import pytest

from posttrain.environments import Guided
from posttrain.environments.processes import EpisodeLostError, InProcesses
from posttrain.errors import DataError, RunError
from tests.living import left

MAKE = "tests.environments.playable:Counter"


@pytest.fixture
def counters() -> Iterator[Callable[..., InProcesses]]:
    made: list[InProcesses] = []

    def make(**changes: Any) -> InProcesses:
        made.append(InProcesses(**{"make": MAKE, "settings": {"start": 10}, "processes": 2, **changes}))
        return made[-1]

    yield make
    for one in made:
        one.close()


def run(play: Coroutine[Any, Any, None]) -> None:
    asyncio.run(play)


def test_many_episodes_share_few_processes(counters: Callable[..., InProcesses]) -> None:
    environment = counters(episodes_per_process=4)
    assert environment.capacity == 8

    async def play(seeds: range) -> None:
        started = await asyncio.gather(*(environment.reset("", {}, seed) for seed in seeds))
        assert [one.messages[0]["content"] for one, _ in started] == [f"count {10 + seed}" for seed in seeds]
        assert len({one.info["process"] for one, _ in started}) == 2
        steps = await asyncio.gather(*(episode.step("go") for _, episode in started))
        assert [one.observation.messages[0]["content"] for one in steps] == [f"count {11 + seed}" for seed in seeds]
        for _, episode in started:
            assert isinstance(episode, Guided) and await episode.expert() == "end"
            await episode.close()

    run(play(range(8)))
    run(play(range(3)))  # another event loop, the same processes


def test_a_failure_is_its_episodes_own(counters: Callable[..., InProcesses]) -> None:
    environment = counters(processes=1, deadline_seconds=1.0)

    async def play() -> None:
        (_, bad), (_, good) = await environment.reset("", {}, 1), await environment.reset("", {}, 2)
        with pytest.raises(EpisodeLostError, match="IndexError: pop from empty list"):
            await bad.step("raise")
        assert (await good.step("go")).reward == 1.0
        with pytest.raises(DataError, match="the row is bad"):
            await environment.reset("", {"bad": True}, 1)
        with pytest.raises(EpisodeLostError, match="status 7"):
            await bad.step("die")
        with pytest.raises(EpisodeLostError, match="another episode's call ended the process"):
            await good.step("go")
        await bad.close()
        await good.close()
        _, slow = await environment.reset("", {}, 1)
        with pytest.raises(EpisodeLostError, match="no answer after 1"):
            await slow.step("hang")
        await slow.close()
        observation, again = await environment.reset("", {}, 5)
        assert observation.messages[0]["content"] == "count 15"
        await again.close()

    run(play())


def test_what_cannot_start_says_so(counters: Callable[..., InProcesses]) -> None:
    with pytest.raises(RunError, match=r"cannot start: AttributeError.*NoSuchClass"):
        run(_reset(counters(make="tests.environments.playable:NoSuchClass")))
    with pytest.raises(EpisodeLostError, match="unexpected keyword argument"):
        run(_reset(counters(make="tests.environments.playable:Broken")))


async def _reset(environment: InProcesses) -> None:
    await environment.reset("", {}, 0)


def test_closing_ends_what_an_episode_has_started(counters: Callable[..., InProcesses]) -> None:
    environment = counters(processes=1)
    started: list[psutil.Process] = []

    async def play() -> None:
        observation, episode = await environment.reset("", {}, 0)
        pids = observation.info["process"], (await episode.step("helper")).info["helper"]
        started.extend(psutil.Process(pid) for pid in pids)

    run(play())
    environment.close()
    assert len(started) == 2 and not left(started)


PROGRAM = f"""
import asyncio
from posttrain.environments.processes import InProcesses

environment = InProcesses("{MAKE}", {{}}, processes=1)

async def play():
    observation, episode = await environment.reset("", {{}}, 0)
    step = await episode.step("helper")
    print(observation.info["process"], step.info["helper"], flush=True)
    await episode.step("hang")

asyncio.run(play())
"""


def test_nothing_is_left_of_a_program_that_was_killed() -> None:
    program = subprocess.Popen([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    started = [psutil.Process(int(word)) for word in program.stdout.readline().split()]
    assert len(started) == 2
    os.kill(program.pid, signal.SIGKILL)  # while the process is in the middle of a call
    program.wait()
    assert not left(started)
