"""A window: the data of the optimiser steps that follow one rollout phase.

Prompts are drawn, played, graded and scored once per window; each of its steps then takes its share. The steps that
are not yet done are part of a checkpoint, so that a run killed inside a window goes on with the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from posttrain.batch import Source, TokenSequence
from posttrain.config import Recipe
from posttrain.data.chat import Encoded, encode_demonstration
from posttrain.data.examples import Completion, Example
from posttrain.data.stream import Stream
from posttrain.errors import DataError
from posttrain.estimator import Algorithm
from posttrain.estimator.pairing import Chances
from posttrain.rollout.collector import Collector
from posttrain.rollout.sequences import rollout_sequences
from posttrain.trainer.comparisons import mismatched, needs_both_sides, rollouts_of, sides, usable
from posttrain.trainer.redraw import Gather, redraw
from posttrain.trajectory import Group, Prompt, Trajectory


@dataclass(frozen=True)
class Played:
    """A trajectory and the rows that its training sequences have in their step's batch."""

    trajectory: Trajectory
    group: int
    rows: Sequence[int]
    by_reference: bool = False


@dataclass(frozen=True)
class StepData:
    """What one optimiser step trains on; `played` is there for the record and is not kept in checkpoints."""

    sequences: list[TokenSequence]
    played: list[Played] = field(default_factory=list)


@dataclass(frozen=True)
class Drawn:
    """The examples of one optimiser step, this rank's share; neighbours: the next of all preferences after each."""

    prompts: list[Example]
    demonstrations: list[Example]
    preferences: list[Example]
    neighbours: list[Example]
    trajectories: list[Example]


Replay = Callable[[Sequence[Example], int, int], list[Group]]
"""The reference's rollouts of examples, at a seed, after a number of the policy's."""

Ask = Callable[[Sequence[Sequence[Trajectory]]], list[Chances]]
"""The policy's judgement of groups of trajectories."""


@dataclass
class WindowBuilder:
    """Draws and plays what `recipe`'s algorithm needs; this rank's share of it.

    Every rank draws the same examples and keeps each `num_ranks`-th, so the data cursor is the same everywhere; a
    rollout's seed depends on its prompt, not on the rank, so any number of ranks plays the same rollouts.
    prompts: where rollouts start (the demonstrations' stream where a recipe names no prompts; then each group carries
    its prompt's demonstration). demonstrations: drawn on their own where prompts come from elsewhere. preferences:
    prompts_per_step pairs a step, beside whatever else the step trains on. trajectories: prompts_per_step prompts with
    all that was recorded for them. gather: see `redraw`. num_cut: sequences that training.max_length has cut short so
    far; num_redrawn: groups that dynamic sampling has replaced so far, on this rank.
    """

    recipe: Recipe
    algorithm: Algorithm
    tokenizer: Any
    prompts: Stream | None
    demonstrations: Stream | None
    rank: int = 0
    num_ranks: int = 1
    preferences: Stream | None = None
    trajectories: Stream | None = None
    gather: Gather = list
    num_cut: int = 0
    num_redrawn: int = 0

    @property
    def num_steps(self) -> int:
        """Optimiser steps of one window."""
        return self.recipe.rollout.updates if self.prompts is not None else 1

    def build(
        self, index: int, collector: Callable[[], Collector], ask: Ask | None = None, replay: Replay | None = None
    ) -> tuple[list[StepData], list[Group]]:
        """The steps of window `index`, and the groups that were played for them.

        ask: where a pairing has a judge. replay: where the reference plays the prompts too.
        """
        drawn = [self._draw() for _ in range(self.num_steps)]
        groups: list[Group] = []
        anchors: list[Group] = []
        dropped: list[Group] = []
        first = index * self.num_steps
        if self.prompts is not None and not any(map(self.algorithm.samples_at, range(first, first + self.num_steps))):
            groups = [Group(example.id, ()) for one in drawn for example in one.prompts]
        elif self.prompts is not None:
            drawn, groups, dropped = self._play(drawn, index, collector())
            examples = [example for one in drawn for example in one.prompts]
            anchors = [] if replay is None else replay(examples, self._seed(index), self.recipe.rollout.group_size)
        trajectories = [usable(group, self.algorithm) for group in groups]
        chances: list[Chances | None] = [None] * len(groups) if ask is None else [*ask(trajectories)]
        beside = anchors or [Group(group.prompt_id, ()) for group in groups]
        remaining = zip(groups, trajectories, chances, beside, strict=True)
        steps = [self._step(one, remaining) for one in drawn]
        return steps, [*groups, *anchors, *dropped]

    def _play(
        self, drawn: list[Drawn], index: int, collector: Collector
    ) -> tuple[list[Drawn], list[Group], list[Group]]:
        """The prompts with their groups, after dynamic sampling, and the groups that it has replaced."""
        rollout, stream = self.recipe.rollout, self.prompts
        assert stream is not None
        examples = [example for one in drawn for example in one.prompts]
        groups = collector.collect(examples, rollout.group_size, self._seed(index))
        if rollout.max_draws == 1:
            return drawn, groups, []
        after = redraw(
            examples,
            groups,
            outcome=next((one.name for one in self.recipe.rewards if one.outcome), self.recipe.rewards[0].name),
            rounds=rollout.max_draws - 1,
            draw=stream.take,
            play=lambda own, number: collector.collect(own, rollout.group_size, self._seed(index, number)),
            places=[
                step * self.recipe.training.prompts_per_step + own * self.num_ranks + self.rank
                for step, one in enumerate(drawn)
                for own in range(len(one.prompts))
            ],
            gather=self.gather,
        )
        self.num_redrawn += len(after.dropped)
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

    @property
    def epoch(self) -> float:
        """Epochs of the leading stream."""
        stream = self.prompts or self.demonstrations or self.preferences or self.trajectories
        return 0.0 if stream is None else stream.epoch

    def _seed(self, index: int, redrawn: int = 0) -> int:
        return self.recipe.seed * 1_000_003 + index + redrawn * 1_000_000_007

    def _draw(self) -> Drawn:
        training = self.recipe.training
        beside = training.prompts_per_step if self.prompts is None else training.demonstrations_per_step
        preferences = [] if self.preferences is None else self.preferences.take(training.prompts_per_step)
        return Drawn(
            prompts=self._take(self.prompts, training.prompts_per_step),
            demonstrations=self._take(self.demonstrations, beside),
            preferences=self._share(preferences),
            neighbours=self._share(preferences[1:] + preferences[:1]),
            trajectories=self._take(self.trajectories, training.prompts_per_step),
        )

    def _take(self, stream: Stream | None, number: int) -> list[Example]:
        return [] if stream is None else self._share(stream.take(number))

    def _share(self, examples: list[Example]) -> list[Example]:
        return examples[self.rank :: self.num_ranks]

    def _step(self, drawn: Drawn, groups: Any) -> StepData:
        sequences: list[TokenSequence] = []
        played: list[Played] = []
        paired = self.demonstrations is None and Source.DEMONSTRATIONS in self.algorithm.sources
        first_pair = len(drawn.prompts) + len(drawn.demonstrations) + len(drawn.preferences)
        for index, (example, (group, used, chances, anchors)) in enumerate(zip(drawn.prompts, groups, strict=False)):
            made, rows = rollouts_of(used, index, self.algorithm, chances, first_pair)
            shown = {id(one): [len(sequences) + row for row in own] for one, own in zip(used, rows, strict=True)}
            played += [Played(one, index, shown.get(id(one), [])) for one in group.trajectories]
            sequences += made
            first_pair = max([first_pair, *(one.pair + 1 for one in made)])
            for one in anchors.trajectories:
                before = len(sequences)
                sequences += rollout_sequences(one, index, Source.DEMONSTRATIONS)
                played.append(Played(one, index, range(before, len(sequences)), by_reference=True))
            if paired:
                sequences += self._demonstration(example, index)
        first = len(drawn.prompts)
        for index, example in enumerate(drawn.demonstrations, start=first):
            sequences += self._demonstration(example, index)
        compared = zip(drawn.preferences, drawn.neighbours, strict=True)
        for index, (example, neighbour) in enumerate(compared, start=first + len(drawn.demonstrations)):
            sequences += self._preference(example, neighbour, index)
        first += len(drawn.demonstrations) + len(drawn.preferences)
        for index, example in enumerate(drawn.trajectories, start=first):
            sequences += self._outcomes(example, index)
        return StepData(sequences, played)

    def _demonstration(self, example: Example, group: int) -> list[TokenSequence]:
        if example.completion is None:
            raise DataError(f"{example.id} has no completion, and {self.algorithm.name} imitates demonstrations")
        sequences = self._encoded(example.prompt, example.completion, Source.DEMONSTRATIONS, group)
        return [sequence for sequence in sequences if sequence.num_actions]

    def _outcomes(self, example: Example, group: int) -> list[TokenSequence]:
        """A sequence for each recorded trajectory of a prompt; one that was cut off does not learn to end there."""
        found: list[TokenSequence] = []
        for outcome in example.outcomes:
            made = self._encoded(example.prompt, outcome.completion, Source.TRAJECTORIES, group, outcome.finished)
            found += [replace(one, reward=outcome.reward, solved=outcome.solved) for one in made if one.num_actions]
        return found

    def _preference(self, example: Example, neighbour: Example, group: int) -> list[TokenSequence]:
        """Its sides, those that max_length leaves an action (or none of a pair); where planned, mismatched ones too."""
        own = self._sides(example, group)
        kept = [side for side in own if side.num_actions]
        if needs_both_sides(self.algorithm):
            return kept if len(kept) == len(own) else []
        if self.algorithm.plan.mismatched:
            num_cut = self.num_cut  # the neighbour is counted where it is drawn itself
            kept += mismatched(own, self._sides(neighbour, group), self.recipe.training.max_length)
            self.num_cut = num_cut
        return kept

    def _sides(self, example: Example, group: int) -> list[TokenSequence]:
        """A sequence for each side, chosen with reward 1 and rejected with 0."""
        found: list[TokenSequence] = []
        for name, side, reward in sides(example, self.algorithm):
            sequences = self._encoded(example.prompt, side, Source.PREFERENCES, group)
            if len(sequences) != 1:
                raise DataError(
                    f"{example.id}: the chat template breaks the {name} side into {len(sequences)} sequences; a "
                    "preference needs one a side: keep its last turn alone, or set tokenizer.chat_template"
                )
            found.append(replace(sequences[0], pair=group, reward=reward))
        return found

    def _encoded(
        self, prompt: Prompt, completion: Completion, source: Source, group: int, finished: bool = True
    ) -> list[TokenSequence]:
        """A completion's sequences, cut at training.max_length; unless finished, without the last terminator."""
        limit = self.recipe.training.max_length
        encoded = encode_demonstration(prompt, completion, self.tokenizer)
        if not finished:
            encoded[-1] = Encoded(encoded[-1].token_ids[:-1], encoded[-1].action_mask[:-1])
        self.num_cut += sum(len(one.token_ids) > (limit or len(one.token_ids)) for one in encoded)
        return [TokenSequence(one.token_ids[:limit], one.action_mask[:limit], source, group) for one in encoded]


def save_steps(steps: Sequence[StepData], path: Path) -> None:
    """Write the sequences of pending steps, one a line: {"step": index in the window, ...}. Floats survive exactly."""
    with path.open("w") as file:
        for index, step in enumerate(steps):
            for sequence in step.sequences:
                file.write(json.dumps({"step": index} | asdict(sequence)) + "\n")


def load_steps(path: Path, num_steps: int) -> list[StepData]:
    """What `save_steps` wrote."""
    steps = [StepData([]) for _ in range(num_steps)]
    for line in path.read_text().splitlines():
        row = json.loads(line)
        index = row.pop("step")
        values: dict[str, Any] = {n: tuple(value) if isinstance(value, list) else value for n, value in row.items()}
        values["source"] = Source(values["source"])
        steps[index].sequences.append(TokenSequence(**values))
    return steps
