"""The other side of a dialogue as an environment sees it: something that reads a conversation and says a line.

An environment that has another side ends its own play of it where a recipe names a partner (`TwoSided`). Who that is
(a frozen model, an endpoint, the policy itself) is decided above environments, in `evaluation.partner`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

from posttrain.environments import Environment
from posttrain.trajectory import Prompt


class SpeakerError(Exception):
    """A speaker had no line: the episode failed, the program goes on."""


class Speaker(Protocol):
    """Says lines for many dialogues at once."""

    def turn(self) -> AbstractContextManager[None]:
        """Around everything an episode does between two actions of the policy, asking included.

        The lines of the dialogues inside are drawn together once each of them has asked or left: how they are batched
        follows from the dialogues alone, not from which was faster.
        """
        ...

    async def say(self, messages: Prompt, seed: int) -> str:
        """The next line of the speaker, whose earlier ones are the assistant's. SpeakerError where there is none."""
        ...


@runtime_checkable
class TwoSided(Protocol):
    """An environment with another side, which it plays itself unless it is given a partner."""

    def with_partner(self, partner: Speaker) -> Environment:
        """The same environment, its other side played by `partner`."""
        ...
