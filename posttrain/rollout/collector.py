"""Plays and grades groups of trajectories: all episodes in lockstep, one engine call a turn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from posttrain.data.chat import encode_prompt
from posttrain.data.examples import Example
from posttrain.environments import Environment
from posttrain.errors import TooManyFailuresError
from posttrain.rollout.engine import Engine, Request, Sampling
from posttrain.rollout.episode import RunningEpisode, Slot
from posttrain.trajectory import Group, StopReason, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Grades(Protocol):
    """What the collector asks of a grader (`posttrain.reward.Grader`)."""

    def grade(self, trajectories: Sequence[Trajectory]) -> None:
        """Fill in rewards, reward, solved and error; a trajectory with an error stays ungraded."""
        ...


@dataclass(frozen=True)
class Collector:
    """Turns examples into graded groups.

    attempts: how often a trajectory is tried where the engine or the environment fails; after the last it is kept
    with its error, ungraded. Grading is not tried again: the same completion would fail the same way.
    """

    engine: Engine
    environment: Environment
    grader: Grades
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    attempts: int = 2

    def collect(self, examples: Sequence[Example], group_size: int, seed: int) -> list[Group]:
        """One group of `group_size` trajectories per example, in order.

        Draws derive from (seed, example's id, its occurrence in this call, sample, attempt, turn): give every call
        its own seed. It runs an event loop of its own, so it must not be called from inside a running one.
        """
        seen: Counter[str] = Counter()
        slots = []
        for example in examples:
            slots += [Slot(example, seen[example.id], sample) for sample in range(group_size)]
            seen[example.id] += 1
        trajectories = asyncio.run(self._play(slots, seed))
        self.grader.grade(trajectories)
        members = (tuple(trajectories[i : i + group_size]) for i in range(0, len(trajectories), group_size))
        return [Group(example.id, group) for example, group in zip(examples, members, strict=True)]

    async def _play(self, slots: Sequence[Slot], seed: int) -> list[Trajectory]:
        """One trajectory per slot; slots that failed are played again together, up to `attempts` times."""
        trajectories: dict[int, Trajectory] = {}
        pending = list(range(len(slots)))
        for attempt in range(self.attempts):
            episodes = [RunningEpisode(slots[i], attempt, seed, self.sampling.temperature) for i in pending]
            try:
                await asyncio.gather(*(episode.start(self.environment) for episode in episodes))
                while running := [episode for episode in episodes if not episode.ended]:
                    await self._turn(running)
            finally:
                await asyncio.gather(*(episode.close() for episode in episodes))
            trajectories |= {i: episode.trajectory for i, episode in zip(pending, episodes, strict=True)}
            pending = [i for i in pending if trajectories[i].error is not None]
        return [trajectories[i] for i in range(len(slots))]

    async def _turn(self, episodes: Sequence[RunningEpisode]) -> None:
        """Sample one completion for each episode, then let the environments answer side by side."""
        # Samples of one prompt hold the same object: each is rendered once.
        rendered = {id(episode.conversation): episode.conversation for episode in episodes}
        encoded = {key: encode_prompt(prompt, self.tokenizer) for key, prompt in rendered.items()}
        prompts = [encoded[id(episode.conversation)] for episode in episodes]
        requests = [Request(ids, episode.turn_seed) for ids, episode in zip(prompts, episodes, strict=True)]
        completions = self.engine.generate(requests, self.sampling)
        texts = self.tokenizer.batch_decode([list(c.token_ids) for c in completions], skip_special_tokens=True)
        taken = zip(episodes, prompts, completions, texts, strict=True)
        await asyncio.gather(*(episode.take(ids, completion, text) for episode, ids, completion, text in taken))


@dataclass(frozen=True)
class RolloutCounts:
    """What became of a set of groups, in trajectories (groups: in groups).

    retried: that took more than one attempt. truncated: whose last turn was cut off. causes: errors of the ungraded.
    """

    groups: int
    trajectories: int
    graded: int
    ungraded: int
    retried: int
    truncated: int
    causes: Counter[str] = field(default_factory=Counter)


def rollout_counts(groups: Sequence[Group]) -> RolloutCounts:
    """Count over `groups`."""
    played = [trajectory for group in groups for trajectory in group.trajectories]
    ungraded = [trajectory for trajectory in played if trajectory.reward is None]
    return RolloutCounts(
        groups=len(groups),
        trajectories=len(played),
        graded=len(played) - len(ungraded),
        ungraded=len(ungraded),
        retried=sum(trajectory.attempt > 0 for trajectory in played),
        truncated=sum(trajectory.stop_reason is StopReason.LENGTH for trajectory in played),
        causes=Counter(trajectory.error or "no reward" for trajectory in ungraded),
    )


def check_failure_rate(groups: Sequence[Group], limit: float) -> None:
    """TooManyFailuresError where more than the share `limit` of all trajectories is ungraded."""
    counts = rollout_counts(groups)
    if counts.ungraded > limit * counts.trajectories:
        causes = "; ".join(f"{count} x {cause}" for cause, count in counts.causes.most_common(3))
        raise TooManyFailuresError(
            f"{counts.ungraded} of {counts.trajectories} trajectories are ungraded; allowed: {limit:.0%} "
            f"(rollout.max_failure_rate). Most frequent: {causes}"
        )
