"""A game of two sides whose other side speaks: the policy's line goes in, what the partner answers comes back.

The game is an environment of its own that takes the lines of both in turn. Its observations say whose line comes next
in `info["speaks"]`, and their messages are for that one; the opening observation has the partner's opening in
`info["partner"]`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from posttrain.environments import Environment, Episode, Guided, Observation, Step
from posttrain.environments.processes import InProcesses
from posttrain.environments.speaker import Speaker
from posttrain.trajectory import Message, Prompt

PARTNER = "partner"
_LINES = 1_000_003
"""The seed of a dialogue's n-th line is seed * _LINES + n."""


@dataclass(frozen=True)
class Dialogues:
    """The environment `game`, its other side played by `partner`."""

    game: Environment
    partner: Speaker

    @property
    def capacity(self) -> int | None:
        """The game's."""
        return self.game.capacity

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Episode]:
        """The game's opening, with the partner's first line where the partner opens."""
        with self.partner.turn():
            opening, game = await self.game.reset(prompt, columns, seed)
            dialogue = _Dialogue(game, self.partner, seed, tuple(opening.info[PARTNER]))
            try:
                first = await dialogue.answered(Step(replace(opening, messages=())))
            except BaseException:
                await game.close()
                raise
            assert not isinstance(opening.messages, str)
            return replace(opening, messages=joined(opening.messages, first.observation.messages)), dialogue

    def close(self) -> None:
        """Close the game."""
        self.game.close()


@dataclass
class _Dialogue:
    """One dialogue. heard: the conversation as the partner reads it, in which its own lines are the assistant's."""

    game: Episode
    partner: Speaker
    seed: int
    heard: tuple[Message, ...]
    num_lines: int = 0

    async def step(self, action: str) -> Step:
        """The game's answer to the policy's line, after the lines with which the partner follows it."""
        with self.partner.turn():
            return await self.answered(await self.game.step(action))

    async def answered(self, step: Step) -> Step:
        """Have the partner speak until it is the policy's turn or the game is over; rewards on the way add up."""
        earned = [step.reward]
        while not (step.terminated or step.truncated) and step.observation.info.get("speaks") == PARTNER:
            self.heard = joined(self.heard, step.observation.messages)
            self.num_lines += 1
            line = await self.partner.say(self.heard, self.seed * _LINES + self.num_lines)
            self.heard += ({"role": "assistant", "content": line},)
            step = await self.game.step(line)
            earned.append(step.reward)
        known = [reward for reward in earned if reward is not None]
        return replace(step, reward=sum(known) if known else None)

    async def expert(self) -> str | None:
        """The game's, where it has one."""
        return await self.game.expert() if isinstance(self.game, Guided) else None

    async def close(self) -> None:
        """Close the game."""
        await self.game.close()


@dataclass(frozen=True)
class TwoSidedProcesses:
    """A game in processes: its own script plays the other side, unless it is given a partner."""

    scripted: Environment
    unscripted: Environment

    @classmethod
    def of(
        cls, make: str, settings: Mapping[str, Any], processes: int, deadline_seconds: float, episodes_per_process: int
    ) -> TwoSidedProcesses:
        """Of the games that "module:name" `make` makes of `settings` and `scripted`; a process starts with a game."""
        limits = processes, episodes_per_process, deadline_seconds
        return cls(*(InProcesses(make, {**settings, "scripted": own}, *limits) for own in (True, False)))

    @property
    def capacity(self) -> int | None:
        """That of the processes."""
        return self.scripted.capacity

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Episode]:
        """The game of the row's column `seed`, against the script."""
        return await self.scripted.reset(prompt, columns, seed)

    def with_partner(self, partner: Speaker) -> Environment:
        """The game between the policy and `partner`."""
        return Dialogues(self.unscripted, partner)

    def close(self) -> None:
        """End the processes."""
        self.scripted.close()


def joined(before: Prompt, after: Prompt) -> tuple[Message, ...]:
    """The messages one after the other; where two of the user's meet they become one, as chat templates want it."""
    assert not isinstance(before, str) and not isinstance(after, str)
    found = list(before)
    for message in after:
        if found and found[-1]["role"] == message["role"] == "user":
            found[-1] = {**found[-1], "content": f"{found[-1]['content']}\n\n{message['content']}"}
        else:
            found.append(message)
    return tuple(found)
