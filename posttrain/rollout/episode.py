"""One episode in progress: it turns completions into turns, asks the environment, and ends in a trajectory.

Each turn's prompt is the whole conversation rendered anew by the chat template; the sampled ids of earlier turns are
kept as they were (`rollout.sequences` joins turns where the rendering continues them exactly).
"""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import TypeVar

from posttrain.data.examples import Example
from posttrain.environments import Environment, Episode
from posttrain.errors import PosttrainError, RunError
from posttrain.rollout.engine import Completion
from posttrain.rollout.seeds import derived_seed
from posttrain.trajectory import Prompt, StopReason, Trajectory, Turn

_T = TypeVar("_T")


@dataclass(frozen=True)
class Slot:
    """One trajectory to play. occurrence: the how-manieth time its example is in this call.

    given: tokens that the first turn starts with (`rollout.resets`).
    """

    example: Example
    occurrence: int
    sample: int
    given: tuple[int, ...] = ()


class RunningEpisode:
    """The state of one attempt at a slot. `ended` once the environment ended it or something failed."""

    def __init__(self, slot: Slot, attempt: int, seed: int, temperature: float) -> None:
        self.slot, self.attempt, self.seed = slot, attempt, seed
        self.trajectory = Trajectory(
            prompt_id=slot.example.id,
            attempt=attempt,
            prompt=slot.example.prompt,
            columns=slot.example.columns,
            temperature=temperature or 1.0,
        )
        self.conversation: Prompt = slot.example.prompt
        self.ended = False
        self._episode: Episode | None = None

    @property
    def turn_seed(self) -> int:
        """The seed of the next completion's draws."""
        slot = self.slot
        turn = len(self.trajectory.turns)
        return derived_seed(self.seed, slot.example.id, slot.occurrence, slot.sample, self.attempt, turn)

    @property
    def given(self) -> tuple[int, ...]:
        """What the next completion continues beyond its prompt."""
        return () if self.trajectory.turns else self.slot.given

    async def start(self, environment: Environment) -> None:
        """Reset. Every sample and attempt of an example gets the same seed: a group plays one and the same task."""
        example = self.slot.example
        seed = derived_seed(self.seed, example.id, self.slot.occurrence)
        started = await self._guarded(environment.reset(example.prompt, example.columns, seed))
        if started is not None:
            observation, self._episode = started
            self.trajectory.prompt = self.conversation = observation.messages

    async def take(self, prompt_ids: tuple[int, ...], completion: Completion, text: str) -> None:
        """Record a completion and ask the environment for its answer."""
        if completion.error is not None or completion.stop_reason is StopReason.ERROR:
            self._fail(f"engine: {completion.error}")
            return
        turn = Turn(
            prompt_ids,
            completion.token_ids,
            completion.logprobs,
            completion.stop_reason,
            completion.policy_version,
            text,
            len(self.given),
        )
        self.trajectory.turns += (turn,)
        assert self._episode is not None
        step = await self._guarded(self._episode.step(text))
        if step is None:
            return
        if step.terminated or step.truncated:
            self.ended = True
        elif isinstance(self.conversation, str):
            raise RunError(
                f"the environment goes on after a completion of the plain text prompt {self.trajectory.prompt_id}; "
                "allowed: conversations (set `chat: true` on the source, or let reset return messages)"
            )
        else:
            said = {"role": "assistant", "content": text}
            self.conversation = (*self.conversation, said, *step.observation)

    async def close(self) -> None:
        """Let the environment free what the episode holds."""
        if self._episode is not None:
            await self._guarded(self._episode.close())

    async def _guarded(self, answer: Awaitable[_T]) -> _T | None:
        """The environment's answer; None, and a failed episode, where it raised anything but an error of ours."""
        try:
            return await answer
        except PosttrainError:
            raise
        except Exception as error:  # the environment's code is not ours: its failure is data
            self._fail(f"environment: {type(error).__name__}: {next(iter(str(error).splitlines()), '')}")
            return None

    def _fail(self, cause: str) -> None:
        self.trajectory.error = self.trajectory.error or cause
        self.ended = True
