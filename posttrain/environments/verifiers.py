"""Environments of verifiers' v1 API (Prime Intellect): any installed taskset trains unmodified, with its own harness.

There the environment drives: its program asks a model again and again, and grades what became of it. So the policy is a
server here (`policy_server`), and each of its calls is a turn: the collector samples it, with all its tokens recorded,
and the program goes on. A call that continues what was said before continues the training sequence too; another, as of
a second agent or a shortened conversation, begins its own (`rollout.sequences`). The reward comes with the last turn.

`episode.history_turns` has no effect: what the policy reads is the program's to say. Where a limit of `episode` ends
one, verifiers does not grade it: use its own (`args: {agent: {max_turns: 8}}`) to have the part graded that was played.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import threading
import weakref
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from posttrain import children
from posttrain.catalog.lookup import install_command
from posttrain.environments import Environment, Episode, Observation, Step
from posttrain.environments.calls import Call, Calls, Ended
from posttrain.environments.policy_server import PolicyServer
from posttrain.environments.processes import START_SECONDS, EpisodeLostError
from posttrain.environments.verifiers_worker import Cancel, Over, Play, Ready, Setup, Speaks
from posttrain.errors import MissingDependencyError, RecipeError, RunError
from posttrain.trajectory import Prompt, StopReason, Turn

_STOP_SECONDS = 10.0
_TOLD_SECONDS = 5.0


def verifiers(
    *,
    env: str,
    args: dict[str, Any] | None = None,
    train_client: dict[str, Any] | None = None,
    solved_from: float = 1.0,
    episodes: int = 32,
    deadline_seconds: float = 600.0,
) -> Environment:
    """Episodes of the taskset `env`, an installed package or a module; a row's column seed is the number of its task.

    args: verifiers' own [env] block, `{id: user-sim, taskset: {...}, agent: {harness: {id: "null"}, max_turns: 8}}`. A
    role without a runtime gets `subprocess` where its harness runs no code; else it must name one. Speakers that are
    not trainable there are not trained on. solved_from: the reward (the mean over the trained speakers) from which an
    episode counts as solved. train_client: settings of verifiers' TrainClientConfig, as {renderer_model_name: DIR}: its
    renderers tokenise in place of our chat template, and call /inference/v1/generate. episodes: how many at once, no
    more than its sandboxes let start together. deadline_seconds: from an answer to the next call.
    MissingDependencyError without verifiers, RecipeError where it refuses the settings.
    """
    if find_spec("verifiers") is None:
        raise MissingDependencyError(f"environment 'verifiers' needs that package: {install_command('verifiers')}")
    for name, value in (("episodes", episodes), ("deadline_seconds", deadline_seconds)):
        if value <= 0:
            raise RecipeError(f"environment verifiers: {name} is {value}; allowed: above 0")
    return _Verifiers(Setup(env, args or {}, train_client), solved_from, episodes, deadline_seconds)


@dataclass
class _Verifiers:
    setup: Setup
    solved_from: float
    capacity: int
    deadline_seconds: float
    server: PolicyServer = field(default_factory=PolicyServer)
    host: _Host = field(init=False)

    def __post_init__(self) -> None:
        """Load the environment, so that a mistake shows at once."""
        self.host = _Host(self.setup)

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Episode]:
        """Start the row's task; the observation is its program's first call."""
        task = columns.get("seed")
        if not isinstance(task, int) or isinstance(task, bool) or task < 0:
            raise RecipeError(
                f"environment verifiers: a row's column seed is {task!r}; allowed: the number of a task, from 0 on "
                "(prompts: {path: tasks, config: {size: ...}})"
            )
        if self.host.dead is not None:
            self.host.close()
            self.host = _Host(self.setup)
        url, calls = self.server.open()
        episode = _Played(self, self.host, self.host.play(task, url, calls), calls)
        try:
            return await episode.begin(), episode
        except BaseException:
            await episode.close()
            raise

    def close(self) -> None:
        """End the process that plays, and the server."""
        self.host.close()
        self.server.close()


@dataclass
class _Played:
    """An `Episode` that takes turns (`TakesTurns`)."""

    environment: _Verifiers
    host: _Host
    number: int
    calls: Calls
    asked: Call | None = None

    async def begin(self) -> Observation:
        """The first call."""
        event = await self._event()
        if isinstance(event, Ended):
            raise EpisodeLostError(event.error or "it ended without a call of the policy")
        self.asked = event
        return self.calls.observation(event)

    async def take(self, turn: Turn) -> Step:
        """Answer the call; the next one is what the policy reads, or the episode is over."""
        asked, self.asked = self.asked, None
        assert asked is not None, "a turn answers a call"
        self.calls.answer(asked, turn)
        event = await self._event()
        if isinstance(event, Ended) and event.error is not None:
            raise EpisodeLostError(event.error)
        masked = asked.abandoned or not await self._trained(asked.speaker)
        if isinstance(event, Call):
            self.asked = event
            return Step(self.calls.observation(event), anew=True, masked=masked)
        return Step(
            reward=event.reward,
            terminated=not event.truncated,
            truncated=event.truncated,
            solved=None if event.reward is None else event.reward >= self.environment.solved_from,
            info=event.info,
            masked=masked,
        )

    async def step(self, action: str) -> Step:
        """Answer the call with a text of which no tokens are known."""
        return await self.take(Turn((), (), (), StopReason.STOP, 0, action))

    async def close(self) -> None:
        """Stop the program, where it is not done."""
        self.host.stop(self.number)
        self.environment.server.forget(self.calls)

    async def _event(self) -> Call | Ended:
        seconds = self.environment.deadline_seconds
        try:
            event = await asyncio.wait_for(asyncio.wrap_future(self.calls.next()), seconds)
        except TimeoutError as error:
            raise EpisodeLostError(f"no call of the policy and no end within {seconds:g} s") from error
        if isinstance(event, Ended) and event.mistake is not None:
            raise event.mistake
        return event

    async def _trained(self, speaker: str) -> bool:
        """Told before its first call, on another way; one that is never told of is none of the environment's own."""
        if not speaker:
            return True
        told = asyncio.shield(asyncio.wrap_future(self.calls.trained(speaker)))
        try:
            return await asyncio.wait_for(told, _TOLD_SECONDS)
        except TimeoutError:
            return False


class _Host:
    """The process that plays, and the thread that listens to it. The environment's error where it cannot be loaded."""

    def __init__(self, setup: Setup) -> None:
        self.dead: str | None = None
        self._played: dict[int, Calls] = {}
        self._number = 0
        self._child = children.start("posttrain.environments.verifiers_worker:main")
        self._finalizer = weakref.finalize(self, _kill, self._child, os.getpid())
        self._child.pipe.send(setup)
        try:
            ready = self._child.pipe.recv() if self._child.pipe.poll(START_SECONDS) else None
        except EOFError:
            ready = None
        if not isinstance(ready, Ready) or ready.error is not None:
            self._finalizer()
            raise RunError("environment verifiers: its process did not start") if ready is None else ready.error
        self._thread = threading.Thread(target=self._listen, name="verifiers", daemon=True)
        self._thread.start()

    def play(self, task: int, url: str, calls: Calls) -> int:
        """Start an episode: its number. Its end is put among its calls."""
        self._number += 1
        self._played[self._number] = calls
        try:
            self._child.pipe.send(Play(self._number, task, url))
        except OSError:
            self._lose()
        return self._number

    def stop(self, episode: int) -> None:
        """End an episode that is not over."""
        if self._played.pop(episode, None) is not None and self.dead is None:
            with suppress(OSError):
                self._child.pipe.send(Cancel(episode))

    def close(self) -> None:
        """Ask the process to end, and end it."""
        if self._finalizer.detach() is None:
            return
        with suppress(OSError):
            self._child.pipe.send(None)
        try:
            self._child.process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            children.kill_family(self._child.process.pid)
        self._thread.join()
        self._child.pipe.close()
        self._child.process.wait()

    def _listen(self) -> None:
        """Pass on what the process tells, until it ends."""
        while True:
            try:
                told = self._child.pipe.recv()
            except (EOFError, OSError):
                self._lose()
                return
            calls = self._played.get(told.episode)
            if calls is None:
                continue
            if isinstance(told, Speaks):
                calls.know(told.speaker, told.trained)
            elif isinstance(told, Over):
                self._played.pop(told.episode, None)
                calls.put(told.ended)

    def _lose(self) -> None:
        self.dead = "the process of verifiers ended"
        for calls in [self._played.pop(number) for number in [*self._played]]:
            calls.put(Ended(error=self.dead))


def _kill(child: children.Child, owner: int) -> None:
    if os.getpid() == owner:  # else: a fork of the process that started it
        child.kill()
