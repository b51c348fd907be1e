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
from posttrain.data.chat import encode_demonstration
from posttrain.data.examples import Completion, Example
from posttrain.data.stream import Stream
from posttrain.errors import DataError
from posttrain.estimator import Algorithm
from posttrain.rollout.collector import Collector
from posttrain.rollout.sequences import rollout_sequences
from posttrain.trajectory import Group, Prompt, Trajectory


@dataclass(frozen=True)
class Played:
    """A trajectory and the rows that its training sequences have in their step's batch."""

    trajectory: Trajectory
    group: int
    rows: range


@dataclass(frozen=True)
class StepData:
    """What one optimiser step trains on; `played` is there for the record and is not kept in checkpoints."""

    sequences: list[TokenSequence]
    played: list[Played] = field(default_factory=list)


@dataclass(frozen=True)
class Drawn:
    """The examples of one optimiser step, this rank's share."""

    prompts: list[Example]
    demonstrations: list[Example]
    preferences: list[Example]


@dataclass
class WindowBuilder:
    """Draws and plays what `recipe`'s algorithm needs; this rank's share of it.

    Every rank draws the same examples and keeps each `num_ranks`-th, so the data cursor is the same everywhere; a
    rollout's seed depends on its prompt, not on the rank, so any number of ranks plays the same rollouts.
    prompts: where rollouts start (the demonstrations' stream where a recipe names no prompts; then each group carries
    its prompt's demonstration). demonstrations: drawn on their own where prompts come from elsewhere. preferences:
    prompts_per_step pairs a step, beside whatever else the step trains on. num_cut: sequences that training.max_length
    has cut short so far.
    """

    recipe: Recipe
    algorithm: Algorithm
    tokenizer: Any
    prompts: Stream | None
    demonstrations: Stream | None
    rank: int = 0
    num_ranks: int = 1
    preferences: Stream | None = None
    num_cut: int = 0

    @property
    def num_steps(self) -> int:
        """Optimiser steps of one window."""
        return self.recipe.rollout.updates if self.prompts is not None else 1

    def build(self, index: int, collector: Callable[[], Collector]) -> tuple[list[StepData], list[Group]]:
        """The steps of window `index`, and the groups that were played for them."""
        drawn = [self._draw() for _ in range(self.num_steps)]
        groups: list[Group] = []
        if self.prompts is not None:
            examples = [example for one in drawn for example in one.prompts]
            groups = collector().collect(examples, self.recipe.rollout.group_size, self._seed(index))
        remaining = iter(groups)
        steps = [self._step(one, remaining) for one in drawn]
        return steps, groups

    def state_dict(self) -> dict[str, Any]:
        """The data cursors."""
        streams = {name: getattr(self, name) for name in ("prompts", "demonstrations", "preferences")}
        return {name: stream.state_dict() for name, stream in streams.items() if stream is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to `state`."""
        for name, cursor in state.items():
            stream = getattr(self, name)
            stream.load_state_dict(cursor)

    @property
    def epoch(self) -> float:
        """Epochs of the leading stream."""
        stream = self.prompts or self.demonstrations or self.preferences
        return 0.0 if stream is None else stream.epoch

    def _seed(self, index: int) -> int:
        return self.recipe.seed * 1_000_003 + index

    def _draw(self) -> Drawn:
        training = self.recipe.training
        beside = training.prompts_per_step if self.prompts is None else training.demonstrations_per_step
        return Drawn(
            prompts=self._take(self.prompts, training.prompts_per_step),
            demonstrations=self._take(self.demonstrations, beside),
            preferences=self._take(self.preferences, training.prompts_per_step),
        )

    def _take(self, stream: Stream | None, number: int) -> list[Example]:
        return [] if stream is None else stream.take(number)[self.rank :: self.num_ranks]

    def _step(self, drawn: Drawn, groups: Any) -> StepData:
        sequences: list[TokenSequence] = []
        played: list[Played] = []
        paired = self.demonstrations is None and Source.DEMONSTRATIONS in self.algorithm.sources
        for index, (example, group) in enumerate(zip(drawn.prompts, groups, strict=False)):
            for trajectory in group.trajectories:
                before = len(sequences)
                sequences += rollout_sequences(trajectory, index)
                played.append(Played(trajectory, index, range(before, len(sequences))))
            if paired:
                sequences += self._demonstration(example, index)
        first = len(drawn.prompts)
        for index, example in enumerate(drawn.demonstrations, start=first):
            sequences += self._demonstration(example, index)
        for index, example in enumerate(drawn.preferences, start=first + len(drawn.demonstrations)):
            sequences += self._pair(example, index)
        return StepData(sequences, played)

    def _demonstration(self, example: Example, group: int) -> list[TokenSequence]:
        if example.completion is None:
            raise DataError(f"{example.id} has no completion, and {self.algorithm.name} imitates demonstrations")
        sequences = self._encoded(example.prompt, example.completion, Source.DEMONSTRATIONS, group)
        return [sequence for sequence in sequences if sequence.num_actions]

    def _pair(self, example: Example, group: int) -> list[TokenSequence]:
        """Chosen (reward 1) and rejected (reward 0); nothing where max_length leaves one of them without an action."""
        pair: list[TokenSequence] = []
        for name, reward in (("chosen", 1.0), ("rejected", 0.0)):
            side = getattr(example, name)
            if side is None:
                raise DataError(f"{example.id} has no {name!r} side, and {self.algorithm.name} reads preferences")
            sequences = self._encoded(example.prompt, side, Source.PREFERENCES, group)
            if len(sequences) != 1:
                raise DataError(
                    f"{example.id}: the chat template breaks the {name} side into {len(sequences)} sequences; a "
                    "preference needs one a side: keep its last turn alone, or set tokenizer.chat_template"
                )
            pair.append(replace(sequences[0], pair=group, reward=reward))
        return pair if all(side.num_actions for side in pair) else []

    def _encoded(self, prompt: Prompt, completion: Completion, source: Source, group: int) -> list[TokenSequence]:
        """A completion's training sequences, cut at training.max_length."""
        limit = self.recipe.training.max_length
        encoded = encode_demonstration(prompt, completion, self.tokenizer)
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
