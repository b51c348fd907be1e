"""Plays and grades groups of trajectories: the episodes that run side by side in lockstep, one engine call a turn."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from posttrain.config.schema import EpisodeSettings
from posttrain.data.chat import encode_text
from posttrain.data.examples import Example
from posttrain.environments import Environment
from posttrain.errors import RunError, TooManyFailuresError
from posttrain.picture import Context
from posttrain.rollout.choices import Choices
from posttrain.rollout.engine import Completion, Engine, Request, Sampling, prompt_error
from posttrain.rollout.episode import RunningEpisode, Slot
from posttrain.rollout.resets import first_turn, given_tokens
from posttrain.trajectory import EpisodeEnd, Group, StopReason, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Grades(Protocol):
    """What the collector asks of a grader (`posttrain.reward.Grader`)."""

    def grade(self, trajectories: Sequence[Trajectory], group_size: int | None = None) -> None:
        """Fill in rewards, reward, solved and error; a trajectory with an error stays ungraded.

        group_size: how many in a row are one prompt's.
        """
        ...


@dataclass(frozen=True)
class Collector:
    """Turns examples into graded groups.

    grader: None where nothing reads rewards. attempts: how often a trajectory is tried where the engine or the
    environment fails; after the last it is kept with its error, ungraded. Grading is not tried again: the same
    completion would fail the same way. reset_probability: of a rollout to start inside its example's demonstration.
    limits: of episodes. listed_actions: whether a turn must be one of the actions that the environment lists there.
    """

    engine: Engine
    environment: Environment
    grader: Grades | None
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    attempts: int = 2
    reset_probability: float = 0.0
    limits: EpisodeSettings = field(default_factory=EpisodeSettings)
    listed_actions: bool = False

    def collect(
        self,
        examples: Sequence[Example],
        group_size: int,
        seed: int,
        *,
        first_sample: int = 0,
        given: Sequence[tuple[int, ...]] | None = None,
        lines: Sequence[Sequence[str]] | None = None,
    ) -> list[Group]:
        """One group of `group_size` trajectories per example, in order, numbered from `first_sample`.

        Draws derive from (seed, example's id, its occurrence, sample, attempt, turn): give every call its own seed, or
        other samples of the same tasks. One that comes again in a call counts as the next occurrence. It runs an event
        loop of its own, so it must not be called from inside a running one. given: the tokens that all completions of
        an example begin with, in place of those of a reset. lines: for each example what is said in the first turns, in
        place of samples; their logprobs are written as 0.
        """
        seen: Counter[tuple[str, int]] = Counter()
        slots = []
        for number, example in enumerate(examples):
            place = example.id, example.occurrence
            samples = range(first_sample, first_sample + group_size)
            own = self._slots(example, example.occurrence + seen[place], samples, seed)
            own = own if given is None else [replace(slot, given=given[number]) for slot in own]
            slots += own if lines is None else [replace(slot, lines=lines[number]) for slot in own]
            seen[place] += 1
        trajectories = asyncio.run(self._play(slots, seed))
        if self.grader is not None:
            start = time.monotonic()
            self.grader.grade(trajectories, group_size)
            seconds = time.monotonic() - start
            for one in trajectories:
                one.grading_seconds = seconds
        members = (tuple(trajectories[i : i + group_size]) for i in range(0, len(trajectories), group_size))
        return [Group(example.id, group) for example, group in zip(examples, members, strict=True)]

    def _slots(self, example: Example, occurrence: int, samples: Sequence[int], seed: int) -> list[Slot]:
        turn = first_turn(example, self.tokenizer) if self.reset_probability else ()
        place = example.id, occurrence
        return [
            Slot(example, occurrence, sample, given_tokens(turn, self.reset_probability, seed, *place, sample))
            for sample in samples
        ]

    async def _play(self, slots: Sequence[Slot], seed: int) -> list[Trajectory]:
        """One trajectory per slot; slots that failed are played again together, up to `attempts` times."""
        trajectories: dict[int, Trajectory] = {}
        pending = list(range(len(slots)))
        for attempt in range(self.attempts):
            episodes = [
                RunningEpisode(slots[i], attempt, seed, self.sampling.temperature, self.limits) for i in pending
            ]
            await self._play_all(episodes)
            trajectories |= {i: episode.trajectory for i, episode in zip(pending, episodes, strict=True)}
            pending = [i for i in pending if trajectories[i].error is not None]
        return [trajectories[i] for i in range(len(slots))]

    async def _play_all(self, episodes: Sequence[RunningEpisode]) -> None:
        """Play each to its end, as many at once as the environment has room for: where one ends the next starts."""
        waiting = deque(episodes)
        running: list[RunningEpisode] = []
        room = self.environment.capacity or len(episodes)
        try:
            while waiting or running:
                started = [waiting.popleft() for _ in range(min(room - len(running), len(waiting)))]
                running += started
                await asyncio.gather(*(episode.start(self.environment) for episode in started))
                await self._turn([episode for episode in running if not episode.ended])
                ended = [episode for episode in running if episode.ended]
                await asyncio.gather(*(episode.close() for episode in ended))
                running = [episode for episode in running if not episode.ended]
        finally:
            await asyncio.gather(*(episode.close() for episode in running))

    async def _turn(self, episodes: Sequence[RunningEpisode]) -> None:
        """Sample one completion for each episode, then let the environments answer side by side."""
        prompts = self._prompts(episodes)
        episodes = [episode for episode in episodes if not episode.ended]
        contexts = [prompts[id(episode)] for episode in episodes]
        requests = [
            Request(context.token_ids, episode.turn_seed, context.pictures, self._choices(episode))
            for context, episode in zip(contexts, episodes, strict=True)
        ]
        if not requests:
            return
        start = time.monotonic()
        asked = [request for episode, request in zip(episodes, requests, strict=True) if episode.line is None]
        drawn = iter(self.engine.generate(asked, self.sampling) if asked else [])
        completions = [next(drawn) if one.line is None else self._written(one.line) for one in episodes]
        seconds = time.monotonic() - start
        said = [[*episode.given, *c.token_ids] for episode, c in zip(episodes, completions, strict=True)]
        texts = self.tokenizer.batch_decode(said, skip_special_tokens=True)
        for episode, request, ids in zip(episodes, requests, said, strict=True):
            episode.trajectory.generation_seconds += seconds
            start_ids = request.prompt_ids[: len(request.prompt_ids) - len(episode.given)]
            episode.conversation.sampled(Context(start_ids, request.pictures), ids)
        taken = zip(episodes, requests, completions, texts, strict=True)
        await asyncio.gather(*(one.take(asked, answer, text) for one, asked, answer, text in taken))

    def _choices(self, episode: RunningEpisode) -> Choices:
        """What the next completion must be one of: the listed actions, less what it begins with."""
        if not self.listed_actions or episode.line is not None:
            return ()
        actions, given = episode.actions, len(episode.given)
        if not actions and not episode.trajectory.turns:
            raise RunError(
                f"listed_actions: the environment lists no actions for {episode.trajectory.prompt_id}; allowed: an "
                "environment that lists them, or listed_actions=false"
            )
        whole = dict.fromkeys(self._ids(action) for action in actions)
        return tuple(one[given:] for one in whole if one[:given] == episode.given)

    def _ids(self, line: str) -> tuple[int, ...]:
        """A completion that says a line and ends there."""
        return (*encode_text(line, self.tokenizer), *sorted(self.sampling.stop_token_ids)[:1])

    def _written(self, line: str) -> Completion:
        """A line that was not sampled, as a completion that ends there."""
        ids = self._ids(line)
        return Completion(ids, (0.0,) * len(ids), StopReason.STOP, self.engine.policy_version)

    def _prompts(self, episodes: Sequence[RunningEpisode]) -> dict[int, Context]:
        """What each episode's next completion continues, by the episode's id.

        A conversation that has filled the model's window ends its episode; one that never fitted is the engine's error.
        """
        first: dict[int, Context] = {}  # samples of one prompt hold the same object: each is rendered once
        found: dict[int, Context] = {}
        for episode in episodes:
            conversation = episode.conversation
            known = id(conversation.prompt if conversation.given_ids is None else conversation.given_ids)
            if episode.trajectory.turns:
                found[id(episode)] = conversation.encode(self.tokenizer)
                if prompt_error(len(found[id(episode)].token_ids), self.engine.window) is not None:
                    episode.end(EpisodeEnd.TOKENS)
                continue
            if known not in first:
                first[known] = conversation.encode(self.tokenizer)
            found[id(episode)] = Context(first[known].token_ids + episode.given, first[known].pictures)
        return found


NO_REWARD = "no reward"


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
        causes=Counter(trajectory.error or NO_REWARD for trajectory in ungraded),
    )


def check_failure_rate(groups: Sequence[Group], limit: float, *, graded: bool = True) -> None:
    """TooManyFailuresError where more than the share `limit` of all trajectories is ungraded.

    graded False, where nothing reads rewards: those that ended in an error are counted instead.
    """
    counts = rollout_counts(groups)
    failed = counts.ungraded if graded else sum(t.error is not None for group in groups for t in group.trajectories)
    if failed > limit * counts.trajectories:
        found = ((cause, count) for cause, count in counts.causes.most_common() if graded or cause != NO_REWARD)
        causes = "; ".join(f"{count} x {cause}" for cause, count in [*found][:3])
        raise TooManyFailuresError(
            f"{failed} of {counts.trajectories} trajectories {'are ungraded' if graded else 'failed'}; "
            f"allowed: {limit:.0%} "
            f"(rollout.max_failure_rate). Most frequent: {causes}"
        )
