"""The rewards of a recipe: which there are, which is the outcome, and which waits for another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from posttrain.errors import RecipeError, did_you_mean


class Told(Protocol):
    """What a recipe tells of a reward, as a `RewardSpec` or as its settings."""

    @property
    def name(self) -> str:
        """Its name in the catalogue."""
        ...

    @property
    def outcome(self) -> bool:
        """Whether its full mark is what "solved" means."""
        ...

    @property
    def shaping(self) -> bool:
        """Whether it says nothing about success."""
        ...

    @property
    def gate(self) -> str | None:
        """The reward that it waits for."""
        ...


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a recipe. weight: its factor in the sum. outcome: its full mark is what "solved" means.

    shaping: it is added to what is trained on and says nothing about success, so that it cannot be the outcome. gate:
    another reward, without whose full mark this one is 0 and is not called. deadline_seconds: of one call; None: what
    its file says, else the grader's.
    """

    name: str
    weight: float = 1.0
    outcome: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    shaping: bool = False
    gate: str | None = None
    deadline_seconds: float | None = None


def outcome_of(rewards: Sequence[Told]) -> str:
    """The name of the reward that says so, else of the first that is no shaping."""
    told = [reward.name for reward in rewards if reward.outcome]
    return next(iter([*told, *(reward.name for reward in rewards if not reward.shaping)]))


def check_specs(rewards: Sequence[Told]) -> None:
    """RecipeError with the first mistake in them."""
    if not rewards:
        raise RecipeError("rewards: rollouts are graded by at least one reward, and none is given")
    mistake = next(iter(mistakes_of(rewards)), None)
    if mistake is not None:
        raise RecipeError(f"rewards: {mistake}")


def mistakes_of(rewards: Sequence[Told]) -> list[str]:
    """What is wrong with them together."""
    names = [reward.name for reward in rewards]
    found = [
        f"{name!r} is listed {count} times; allowed: each reward once"
        for name, count in Counter(names).items()
        if count > 1
    ]
    outcomes = [reward.name for reward in rewards if reward.outcome]
    if len(outcomes) > 1:
        found.append(f"{' and '.join(outcomes)} are both `outcome: true`; allowed: at most one")
    for reward in rewards:
        if reward.shaping and reward.outcome:
            found.append(f"'{reward.name}' says outcome: true and shaping: true; shaping says nothing about success")
        if reward.gate is not None and reward.gate not in names:
            found.append(f"the gate of '{reward.name}' is '{reward.gate}'; {did_you_mean(reward.gate, names)}")
    if rewards and all(reward.shaping for reward in rewards):
        found.append(f"{', '.join(names)}: all say shaping: true; at least one must say what success is")
    if not found and rewards and sum(map(len, stages(rewards))) < len(rewards):
        circle = ", ".join(reward.name for reward in rewards if reward.gate is not None)
        found.append(f"gates in a circle among {circle}; allowed: gates that lead to a reward without one")
    return found


def stages(rewards: Sequence[Told]) -> list[list[int]]:
    """Their places in the order of calling: first those without a gate, then those whose gates came before."""
    found: list[list[int]] = []
    known: set[str | None] = {None}
    left = list(range(len(rewards)))
    while ready := [place for place in left if rewards[place].gate in known]:
        found.append(ready)
        known |= {rewards[place].name for place in ready}
        left = [place for place in left if place not in ready]
    return found
