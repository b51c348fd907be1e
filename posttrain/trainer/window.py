"""A window: the data of the optimiser steps that follow one rollout phase.

Prompts are drawn, played, graded and scored once per window; each of its steps then takes its share. The steps that
are not yet done are part of a checkpoint, so that a run killed inside a window goes on with the same tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from posttrain.batch import Source, TokenSequence
from posttrain.config import Recipe
from posttrain.data.chat import encode_demonstration
from posttrain.data.examples import Example
from posttrain.data.stream import Stream
from posttrain.errors import DataError
from posttrain.estimator import Algorithm
from posttrain.rollout.collector import Collector
from posttrain.rollout.sequences import rollout_sequences
from posttrain.trajectory import Group, Trajectory


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


@dataclass
class WindowBuilder:
    """Draws and plays what `recipe`'s algorithm needs; this rank's share of it.

    Every rank draws the same examples and keeps each `num_ranks`-th, so the data cursor is the same everywhere; a
    rollout's seed depends on its prompt, not on the rank, so any number of ranks plays the same rollouts.
    prompts: where rollouts start (the demonstrations' stream where a recipe names no prompts; then each group carries
    its prompt's demonstration). demonstrations: drawn on their own where prompts come from elsewhere.
    """

    recipe: Recipe
    algorithm: Algorithm
    tokenizer: Any
    prompts: Stream | None
    demonstrations: Stream | None
    rank: int = 0
    num_ranks: int = 1

    @property
    def num_steps(self) -> int:
        """Optimiser steps of one window."""
        return self.recipe.rollout.updates if self.prompts is not None else 1

    def build(self, index: int, collector: Callable[[], Collector]) -> tuple[list[StepData], list[Group]]:
        """The steps of window `index`, and the groups that were played for them."""
        drawn = [self._draw() for _ in range(self.num_steps)]
        groups: list[Group] = []
        if self.prompts is not None:
            examples = [example for prompts, _ in drawn for example in prompts]
            groups = collector().collect(examples, self.recipe.rollout.group_size, self._seed(index))
        remaining = iter(groups)
        steps = [self._step(prompts, extra, remaining) for prompts, extra in drawn]
        return steps, groups

    def state_dict(self) -> dict[str, Any]:
        """The data cursors."""
        streams = {"prompts": self.prompts, "demonstrations": self.demonstrations}
        return {name: stream.state_dict() for name, stream in streams.items() if stream is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Back to `state`."""
        for name, cursor in state.items():
            stream = getattr(self, name)
            stream.load_state_dict(cursor)

    @property
    def epoch(self) -> float:
        """Epochs of the leading stream."""
        stream = self.prompts or self.demonstrations
        return 0.0 if stream is None else stream.epoch

    def _seed(self, index: int) -> int:
        return self.recipe.seed * 1_000_003 + index

    def _draw(self) -> tuple[list[Example], list[Example]]:
        training = self.recipe.training
        mine = slice(self.rank, None, self.num_ranks)
        if self.prompts is None:
            assert self.demonstrations is not None
            return [], self.demonstrations.take(training.prompts_per_step)[mine]
        extra = self.demonstrations.take(training.demonstrations_per_step)[mine] if self.demonstrations else []
        return self.prompts.take(training.prompts_per_step)[mine], extra

    def _step(self, prompts: list[Example], extra: list[Example], groups: Any) -> StepData:
        sequences: list[TokenSequence] = []
        played: list[Played] = []
        paired = self.demonstrations is None and Source.DEMONSTRATIONS in self.algorithm.sources
        for index, (example, group) in enumerate(zip(prompts, groups, strict=False)):
            for trajectory in group.trajectories:
                before = len(sequences)
                sequences += rollout_sequences(trajectory, index)
                played.append(Played(trajectory, index, range(before, len(sequences))))
            if paired:
                sequences += self._demonstration(example, index)
        for index, example in enumerate(extra, start=len(prompts)):
            sequences += self._demonstration(example, index)
        return StepData(sequences, played)

    def _demonstration(self, example: Example, group: int) -> list[TokenSequence]:
        if example.completion is None:
            raise DataError(f"{example.id} has no completion, and {self.algorithm.name} imitates demonstrations")
        limit = self.recipe.training.max_length
        encoded = encode_demonstration(example.prompt, example.completion, self.tokenizer)
        sequences = [
            TokenSequence(one.token_ids[:limit], one.action_mask[:limit], Source.DEMONSTRATIONS, group)
            for one in encoded
        ]
        return [sequence for sequence in sequences if sequence.num_actions]


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
