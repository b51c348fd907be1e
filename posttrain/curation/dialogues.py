"""Dialogues of a recipe's model in its environment, with the words of both sides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self

from posttrain.config import Recipe
from posttrain.data.examples import Example
from posttrain.environments import Environment, Episode, Observation, Step
from posttrain.errors import RecipeError
from posttrain.evaluation.model import NamedModel, open_model
from posttrain.evaluation.partner import make_environment
from posttrain.reward import Grader, RewardSpec
from posttrain.rollout.collector import Collector, check_failure_rate
from posttrain.rollout.engine import Sampling
from posttrain.rollout.episode import messages_of
from posttrain.trajectory import Message, Prompt, StopReason, Trajectory

_NUMBER = "dialogue"
"""The column that tells the dialogues of one call apart."""


@dataclass(frozen=True)
class Dialogue:
    """A finished dialogue. opening, answers: what the environment said first, and between the policy's lines."""

    example: Example
    opening: tuple[Message, ...]
    lines: tuple[str, ...]
    answers: tuple[tuple[Message, ...], ...]
    reward: float
    solved: bool
    stop_reason: StopReason

    @property
    def completion(self) -> tuple[Message, ...]:
        """Everything from the policy's first line to its last."""
        found: list[Message] = []
        for line, answer in zip(self.lines, (*self.answers, ()), strict=True):
            found += [{"role": "assistant", "content": line}, *answer]
        return tuple(found)

    def row(self, **more: Any) -> dict[str, Any]:
        """The dialogue as recorded trajectories are read, with the columns of its task."""
        columns = {name: value for name, value in self.example.columns.items() if name != "prompt"}
        return columns | {
            "prompt": [dict(message) for message in self.opening],
            "completion": [dict(message) for message in self.completion],
            "reward": self.reward,
            "solved": self.solved,
            "prompt_id": self.example.id,
            "stop_reason": str(self.stop_reason),
            **more,
        }


class Player:
    """Plays dialogues with the model, environment, partner, sampling and rewards of `recipe`.

    RecipeError where it has no rewards, or a model without weights.
    """

    def __init__(self, recipe: Recipe) -> None:
        if recipe.model.path is None or not recipe.rewards:
            raise RecipeError("model.path, rewards: a dialogue is played by a model and graded; allowed: both of them")
        model = NamedModel(recipe.model.path, recipe.rollout.engine)
        model.check()
        opened = open_model(model, recipe.seed)
        rollout = recipe.rollout
        self._recorder = Recorder(make_environment(recipe.environment, recipe.partner, opened))
        self._grader = Grader(
            [RewardSpec(one.name, one.weight, one.outcome, one.settings) for one in recipe.rewards],
            workers=rollout.reward_workers,
            deadline_seconds=rollout.deadline_seconds,
            memory_bytes=rollout.memory_bytes,
        )
        sampling = Sampling(rollout.max_tokens, opened.stop_ids, rollout.temperature, rollout.top_p, rollout.top_k)
        self._collector = Collector(
            opened.engine,
            self._recorder,
            self._grader,
            opened.tokenizer,
            sampling,
            rollout.attempts,
            limits=recipe.episode,
        )
        self._recipe = recipe

    def play(
        self, tasks: Sequence[Example], lines: Sequence[Sequence[str]], first_sample: int = 0
    ) -> list[Dialogue | None]:
        """A dialogue for each task, which begins with its `lines`; None where it failed or was not graded.

        first_sample: another number draws other samples of the same tasks. TooManyFailuresError as in training.
        """
        numbered = [replace(one, columns={**one.columns, _NUMBER: number}) for number, one in enumerate(tasks)]
        groups = self._collector.collect(numbered, 1, self._recipe.seed, first_sample=first_sample, lines=lines)
        check_failure_rate(groups, self._recipe.rollout.max_failure_rate)
        played = [group.trajectories[0] for group in groups]
        return [self._dialogue(task, number, one) for number, (task, one) in enumerate(zip(tasks, played, strict=True))]

    def _dialogue(self, task: Example, number: int, played: Trajectory) -> Dialogue | None:
        if played.reward is None or isinstance(played.prompt, str):
            return None
        lines = tuple(turn.text for turn in played.turns)
        answers = tuple(self._recorder.said[number][: len(lines) - 1])
        return Dialogue(task, played.prompt, lines, answers, played.reward, played.solved is True, played.stop_reason)

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """End what it has started."""
        self._recorder.close()
        self._grader.__exit__(None, None, None)


@dataclass(frozen=True)
class Recorder:
    """The environment `inner`, with what it has said between the policy's lines in each numbered dialogue."""

    inner: Environment
    said: dict[int, list[tuple[Message, ...]]] = field(default_factory=dict)

    @property
    def capacity(self) -> int | None:
        """The inner one's."""
        return self.inner.capacity

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Episode]:
        """The inner one's."""
        heard = self.said[columns[_NUMBER]] = []
        observation, episode = await self.inner.reset(prompt, columns, seed)
        return observation, _Recorded(episode, heard)

    def close(self) -> None:
        """Close the inner one."""
        self.inner.close()


@dataclass(frozen=True)
class _Recorded:
    """An episode whose answers are kept."""

    inner: Episode
    heard: list[tuple[Message, ...]]

    async def step(self, action: str) -> Step:
        """The inner one's."""
        step = await self.inner.step(action)
        self.heard.append(tuple(messages_of(step)))
        return step

    async def close(self) -> None:
        """Close the inner one."""
        await self.inner.close()
