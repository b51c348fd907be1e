"""A window: the data of the optimiser steps that follow one rollout phase.

Its prompts are drawn, played and graded by a policy that may be some steps old (`Window`), and made into the data of
its steps when its turn has come: judged and scored by the policy of that moment.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.batch import Source
from posttrain.config import Recipe
from posttrain.data.curriculum import Curriculum
from posttrain.data.examples import Example
from posttrain.data.stream import Stream
from posttrain.estimator import Algorithm
from posttrain.estimator.pairing import Chances
from posttrain.reward_specs import outcome_of
from posttrain.rollout.collector import Collector
from posttrain.trainer.comparisons import usable
from posttrain.trainer.redraw import Gather, redraw
from posttrain.trainer.step_data import Drawn, Judged, StepData, StepMaker, is_stale
from posttrain.trajectory import Dropped, Group, Trajectory

Replay = Callable[[Sequence[Example], int, int], list[Group]]
"""The reference's rollouts of examples, at a seed, after a number of the policy's."""

Ask = Callable[[Sequence[Sequence[Trajectory]]], list[Chances]]
"""The policy's judgement of groups of trajectories."""


@dataclass(frozen=True)
class Window:
    """What was drawn and played for the steps of window `index`, this rank's share.

    drawn: the examples of each step. groups: of the policy's rollouts, one a prompt, in order; anchors: of the
    reference's, where it plays. replaced: groups that dynamic sampling has drawn another prompt for. epoch: of the data
    once it was drawn. seconds: that drawing, playing and grading took. mismatch: the canary's at the last sync, in
    nats. counters: the engine's figures of that moment. curriculum: figures of how its prompts were drawn.
    """

    index: int
    drawn: list[Drawn]
    groups: list[Group]
    anchors: list[Group] = field(default_factory=list)
    replaced: list[Group] = field(default_factory=list)
    epoch: float = 0.0
    seconds: float = 0.0
    mismatch: float | None = None
    counters: Mapping[str, float] = field(default_factory=dict)
    curriculum: Mapping[str, float] = field(default_factory=dict)

    @property
    def played(self) -> list[Group]:
        """Every group that was played for it."""
        return [*self.groups, *self.anchors, *self.replaced]


@dataclass
class WindowBuilder:
    """Draws and plays what `recipe`'s algorithm needs; this rank's share of it.

    Every rank draws the same examples and keeps each `num_ranks`-th, so the data cursor is the same everywhere; a
    rollout's seed depends on its prompt, not on the rank, so any number of ranks plays the same rollouts.
    prompts: where rollouts start (the demonstrations' stream where a recipe names no prompts; then each group carries
    its prompt's demonstration). demonstrations: drawn on their own where prompts come from elsewhere. preferences:
    prompts_per_step pairs a step, beside whatever else the step trains on. trajectories: prompts_per_step prompts with
    all that was recorded for them. gather: see `redraw`. epoch: passes over the leading stream, up to the window whose
    steps were made last.
    """

    recipe: Recipe
    algorithm: Algorithm
    tokenizer: Any
    prompts: Stream | Curriculum | None
    demonstrations: Stream | None
    rank: int = 0
    num_ranks: int = 1
    preferences: Stream | None = None
    trajectories: Stream | None = None
    gather: Gather = list
    epoch: float = 0.0
    maker: StepMaker = field(init=False)
    _drawn: Counter[str] = field(init=False, default_factory=Counter)

    def __post_init__(self) -> None:
        """What makes the sequences."""
        paired = self.demonstrations is None and Source.DEMONSTRATIONS in self.algorithm.sources
        self.maker = StepMaker(self.algorithm, self.tokenizer, self.recipe.training.max_length, paired)

    @property
    def num_steps(self) -> int:
        """Optimiser steps of one window."""
        return self.recipe.rollout.updates if self.prompts is not None else 1

    def samples(self, index: int) -> bool:
        """Whether window `index` reads rollouts of the policy."""
        first = index * self.num_steps
        return self.prompts is not None and any(map(self.algorithm.samples_at, range(first, first + self.num_steps)))

    def oldest_version(self, index: int) -> int:
        """The oldest policy that window `index` may train on: as it was before window max(0, index - max_staleness)."""
        return max(0, index - self.recipe.rollout.max_staleness) * self.num_steps

    def play(self, index: int, collector: Callable[[], Collector], replay: Replay | None = None) -> Window:
        """Window `index`, drawn and played; collector: asked for where something is sampled. replay: the reference's.

        Windows must be played in their order: each goes on where the data of the one before ended.
        """
        start = time.monotonic()
        if isinstance(self.prompts, Curriculum):
            self.prompts.begin(index, last=index - 1 - self.recipe.rollout.max_staleness)
        self._drawn.clear()
        drawn = [self._draw() for _ in range(self.num_steps)]
        groups = [Group(example.id, ()) for one in drawn for example in one.prompts]
        anchors: list[Group] = []
        replaced: list[Group] = []
        if self.samples(index):
            drawn, groups, replaced = self._sample(drawn, index, collector())
            examples = [example for one in drawn for example in one.prompts]
            anchors = [] if replay is None else replay(examples, self._seed(index), self.recipe.rollout.group_size)
        stream = self.prompts or self.demonstrations or self.preferences or self.trajectories
        epoch = 0.0 if stream is None else stream.epoch
        figures = self.prompts.figures() if isinstance(self.prompts, Curriculum) else {}
        seconds = time.monotonic() - start
        return Window(index, drawn, groups, anchors, replaced, epoch, seconds, curriculum=figures)

    def record(self, window: Window, gather: Gather) -> None:
        """Tell the curriculum what became of the window's prompts; every rank must call it, in the order of windows."""
        if isinstance(self.prompts, Curriculum):
            groups = [*window.groups, *window.replaced]
            results = [(one.prompt_id, one.num_graded, one.num_solved) for one in groups]
            self.prompts.record(window.index, results, gather)

    def steps(self, window: Window, ask: Ask | None = None) -> list[StepData]:
        """The data of its steps; ask: where a pairing has a judge. Groups that are too old are marked and left out."""
        self.epoch = window.epoch
        oldest = self.oldest_version(window.index)
        for group in window.groups:
            if any(turn.policy_version < oldest for one in group.trajectories for turn in one.turns):
                for one in group.trajectories:
                    one.dropped = Dropped.STALE
        used = [[] if is_stale(group) else usable(group, self.algorithm) for group in window.groups]
        chances: list[Chances | None] = [None] * len(used) if ask is None else [*ask(used)]
        anchors = window.anchors or [Group(group.prompt_id, ()) for group in window.groups]
        judged = iter([Judged(*one) for one in zip(window.groups, used, chances, anchors, strict=True)])
        return [self.maker.step(one, judged) for one in window.drawn]

    def _sample(
        self, drawn: list[Drawn], index: int, collector: Collector
    ) -> tuple[list[Drawn], list[Group], list[Group]]:
        """The prompts with their groups, after dynamic sampling, and the groups that it has replaced."""
        rollout = self.recipe.rollout
        examples = [example for one in drawn for example in one.prompts]
        groups = collector.collect(examples, rollout.group_size, self._seed(index))
        if rollout.max_draws == 1:
            return drawn, groups, []
        after = redraw(
            examples,
            groups,
            outcome=outcome_of(self.recipe.rewards),
            rounds=rollout.max_draws - 1,
            draw=self._next_prompts,
            play=lambda own, number: collector.collect(own, rollout.group_size, self._seed(index, number)),
            places=[
                step * self.recipe.training.prompts_per_step + own * self.num_ranks + self.rank
                for step, one in enumerate(drawn)
                for own in range(len(one.prompts))
            ],
            gather=self.gather,
        )
        for one in (one for group in after.dropped for one in group.trajectories):
            one.dropped = Dropped.ALIKE
        kept = iter(after.examples)
        drawn = [replace(one, prompts=[next(kept) for _ in one.prompts]) for one in drawn]
        return drawn, after.groups, after.dropped

    def state_dict(self) -> dict[str, Any]:
        """The data cursors."""
        names = ("prompts", "demonstrations", "preferences", "trajectories")
        streams = {name: getattr(self, name) for name in names}
        return {name: stream.state_dict() for name, stream in streams.items() if stream is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to `state`."""
        for name, cursor in state.items():
            stream = getattr(self, name)
            stream.load_state_dict(cursor)

    def _seed(self, index: int, redrawn: int = 0) -> int:
        return self.recipe.seed * 1_000_003 + index + redrawn * 1_000_000_007

    def _draw(self) -> Drawn:
        training = self.recipe.training
        beside = training.prompts_per_step if self.prompts is None else training.demonstrations_per_step
        preferences = [] if self.preferences is None else self.preferences.take(training.prompts_per_step)
        return Drawn(
            prompts=self._share(self._next_prompts(training.prompts_per_step)),
            demonstrations=self._take(self.demonstrations, beside),
            preferences=self._share(preferences),
            neighbours=self._share(preferences[1:] + preferences[:1]),
            trajectories=self._take(self.trajectories, training.prompts_per_step),
        )

    def _next_prompts(self, number: int) -> list[Example]:
        """The next prompts of all ranks together; those that this window has had before say so."""
        found = []
        for example in [] if self.prompts is None else self.prompts.take(number):
            found.append(replace(example, occurrence=self._drawn[example.id]))
            self._drawn[example.id] += 1
        return found

    def _take(self, stream: Stream | None, number: int) -> list[Example]:
        return [] if stream is None else self._share(stream.take(number))

    def _share(self, examples: list[Example]) -> list[Example]:
        return examples[self.rank :: self.num_ranks]
