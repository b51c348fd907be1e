"""One prompt, one completion: the environment of plain question answering."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from posttrain.environments import Environment, Observation, Step
from posttrain.trajectory import Prompt


@dataclass(frozen=True)
class _SingleTurn:
    """Shows the row's prompt as it is."""

    capacity: ClassVar[int | None] = None

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, _OneStep]:
        """The prompt, and an episode that ends with its first completion. Nothing is random."""
        return Observation(prompt), _OneStep()

    def close(self) -> None:
        """Nothing is held."""


@dataclass(frozen=True)
class _OneStep:
    """Ends with the first action."""

    async def step(self, action: str) -> Step:
        """Terminated, without a reward: rewards grade the trajectory."""
        return Step(terminated=True)

    async def close(self) -> None:
        """Nothing is held."""


def single_turn() -> Environment:
    """The policy reads the prompt and answers once."""
    return _SingleTurn()
