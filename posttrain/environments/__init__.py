"""Environments: what the policy talks to. One file each, holding one factory of that name.

An environment is made once per run; `reset` starts one episode and returns its own state object, so that hundreds of
episodes can run side by side.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from posttrain.trajectory import Message, Prompt


@dataclass(frozen=True)
class Observation:
    """What the policy sees: the whole prompt at reset, the new messages after a step."""

    messages: Prompt
    info: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """The answer to one action. reward None: this step has none. terminated: the task ended; truncated: cut off."""

    observation: tuple[Message, ...] = ()
    reward: float | None = None
    terminated: bool = False
    truncated: bool = False
    info: Mapping[str, Any] = field(default_factory=dict)


class Episode(Protocol):
    """One running episode."""

    async def step(self, action: str) -> Step:
        """Answer the policy's completion."""
        ...

    async def close(self) -> None:
        """Free what the episode holds."""
        ...


class Environment(Protocol):
    """Starts episodes."""

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Episode]:
        """A new episode for one data row; the same seed gives the same episode."""
        ...
