"""Environments: what the policy talks to. One file each, holding one factory of that name.

An environment is made once per run; `reset` starts one episode and returns its own state object, so that hundreds of
episodes can run side by side against one engine. Everything that happens in an episode follows from its data row, its
seed and the policy's actions: a run that goes on after a kill plays what it had not finished again, so no state of an
episode is stored. Each call of the collector runs an event loop of its own: what an environment keeps between episodes
must not belong to one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from posttrain.trajectory import Message, Prompt, Turn


@dataclass(frozen=True)
class Observation:
    """What the policy sees: the whole prompt at reset, the new messages after a step.

    tools: JSON schemas of functions, which the chat template shows; those of reset hold for the episode. actions: every
    action that can be taken here, where there are only so many; empty: any text. state: the name of the state, equal
    where every action would do the same (`Turn.state`); "": it has none. info: for people, and for rewards; its
    "screenshot", a picture as a data URI, is kept with the turn. prompt_ids: the tokens that the policy continues, in
    place of what the template makes of the messages; None: what it makes.
    """

    messages: Prompt = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    actions: tuple[str, ...] = ()
    state: str = ""
    info: Mapping[str, Any] = field(default_factory=dict)
    prompt_ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Step:
    """The answer to one action.

    reward: of this step alone; None: it has none. terminated: the task ended; truncated: cut off. solved: whether the
    task is achieved, once it ended; None: the environment does not say. invalid: why the action could not be carried
    out, in words for the policy; the state has not changed. info: for people.

    said: what the conversation goes on with in place of the policy's own text; off_path: what follows is therefore not
    the action's consequence, and returns do not reach across. aside: messages that are added for one turn alone, to ask
    the policy for something in between; that turn's answer gives `said`. masked: nothing is learnt from the turn.
    anew: the observation is all that the policy reads next, as at reset, not an answer to what it said.
    """

    observation: Observation = Observation()
    reward: float | None = None
    terminated: bool = False
    truncated: bool = False
    solved: bool | None = None
    invalid: str | None = None
    info: Mapping[str, Any] = field(default_factory=dict)
    said: str | None = None
    off_path: bool = False
    aside: tuple[Message, ...] = ()
    masked: bool = False
    anew: bool = False


def told(text: str) -> tuple[Message, ...]:
    """What an environment says, as the messages of an observation."""
    return ({"role": "user", "content": text},)


def shown(image: str, text: str) -> tuple[Message, ...]:
    """What an environment shows and says: an image, a data URI, and a text after it."""
    parts = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": text}]
    return ({"role": "user", "content": parts},)


class Episode(Protocol):
    """One running episode."""

    async def step(self, action: str) -> Step:
        """Answer the policy's completion."""
        ...

    async def close(self) -> None:
        """Free what the episode holds."""
        ...


@runtime_checkable
class TakesTurns(Protocol):
    """An episode that is to know the tokens of what the policy said: `take` is called in place of `step`."""

    async def take(self, turn: Turn) -> Step:
        """Answer the policy's completion."""
        ...


@runtime_checkable
class Guided(Protocol):
    """An episode that knows how its task is done: the source of demonstrations."""

    async def expert(self) -> str | None:
        """The text of an action that leads on; None where it knows of none."""
        ...


class Environment(Protocol):
    """Starts episodes. capacity: how many may run at once; None: any number."""

    @property
    def capacity(self) -> int | None:
        """Further episodes wait until one is closed."""
        ...

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Episode]:
        """A new episode for one data row; the same row and seed give the same episode."""
        ...

    def close(self) -> None:
        """Free what the environment holds (processes, servers); no episode is running."""
        ...
