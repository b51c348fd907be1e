"""`posttrain label-steps`: steps of rollouts, labelled by rollouts that go on from them (Math-Shepherd).

A step is as good as the chance to end well from there (arXiv 2312.08935, sec. 3.3): the policy's own completions of the
recipe's prompts are cut after each of their lines, and continued several times.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from posttrain.config import Recipe
from posttrain.curation.parts import in_parts
from posttrain.curation.written import check_output, write_rows
from posttrain.data.examples import Example
from posttrain.data.labels import step_ends, steps_of
from posttrain.errors import RecipeError
from posttrain.rollout.collector import Collector
from posttrain.trajectory import Group, Trajectory

_PROMPTS_AT_ONCE = 16


@dataclass(frozen=True)
class Labelled:
    """Numbers of completions and of their steps; of the labels, their mean and how many steps got none."""

    completions: int
    steps: int
    unlabelled: int
    mean: float
    left_out: int

    def text(self) -> str:
        """In words."""
        return (
            f"{self.completions:,} completions of {self.steps:,} steps; mean label {self.mean:.3f}, "
            f"{self.unlabelled:,} steps without one; {self.left_out:,} completions left out: they failed, or had "
            "several turns"
        )


def label_steps(
    recipe: Recipe, output: Path, *, count: int, samples: int = 8, hard: bool = False, separator: str = "\n"
) -> Labelled:
    """Play `count` prompts of the recipe, `rollout.group_size` completions each, and write them with labelled steps.

    The label of a step is the share of `samples` continuations from its end that are solved (arXiv 2312.08935, eq. 4),
    or with `hard` 1 where any is (eq. 3); of the last step, whether the completion is. Continuations that could not be
    graded do not count; a step without a graded one has no label. Rows are what `process_reward` reads: prompt,
    completions (each step with what separates it from the next), labels, and `solved`. After a kill the same command
    goes on. RecipeError where the recipe samples or grades nothing, UserError as `train`.
    """
    from posttrain.trainer.setup import build

    check_output(output)
    with ExitStack() as stack, TemporaryDirectory() as scratch:
        loop = build(recipe, Path(scratch), stack, say=lambda line: None)
        if loop.collector is None or loop.builder.prompts is None or loop.collector.grader is None:
            raise RecipeError(
                f"algorithm {recipe.algorithm.name} samples or grades nothing; allowed: one that does both"
            )
        labeller = _Labeller(loop.collector, recipe.rollout.group_size, samples, hard, separator, recipe.seed)
        made_by = {"recipe": recipe, "samples": samples, "hard": hard, "separator": separator}
        rows = in_parts(output, made_by, loop.builder.prompts.take(count), labeller.rows, _PROMPTS_AT_ONCE)
    if not rows:
        raise RecipeError("no completion could be labelled: all failed, or had several turns")
    write_rows(output, rows)
    labels = [label for row in rows for label in row["labels"]]
    known = [label for label in labels if label is not None]
    mean = sum(known) / max(1, len(known))
    return Labelled(
        len(rows), len(labels), len(labels) - len(known), mean, count * recipe.rollout.group_size - len(rows)
    )


@dataclass(frozen=True)
class _Labeller:
    collector: Collector
    group_size: int
    samples: int
    hard: bool
    separator: str
    seed: int

    def rows(self, examples: Sequence[Example]) -> list[dict[str, Any]]:
        """The labelled completions of some prompts."""
        played = self.collector.collect(examples, self.group_size, self.seed)
        usable = [
            (example, one)
            for example, group in zip(examples, played, strict=True)
            for one in group.trajectories
            if one.error is None and len(one.turns) == 1 and one.completion
        ]
        cuts = [self._cuts(one) for _, one in usable]
        asked = [example for (example, _), ends in zip(usable, cuts, strict=True) for _ in ends]
        given = [
            tuple(one.turns[0].completion_ids[: end + 1])
            for (_, one), ends in zip(usable, cuts, strict=True)
            for end in ends
        ]
        continued = iter(self.collector.collect(asked, self.samples, self.seed + 1, given=given) if asked else [])
        found = []
        for (example, one), ends in zip(usable, cuts, strict=True):
            labels = [self._label(next(continued)) for _ in ends]
            steps = list(steps_of(one.completion, self.separator))
            prompt = example.prompt if isinstance(example.prompt, str) else [dict(m) for m in example.prompt]
            row = {"prompt": prompt, "completions": steps, "labels": [*labels, float(bool(one.solved))]}
            found.append(row | {"separator": "", "solved": bool(one.solved)})
        return found

    def _cuts(self, one: Trajectory) -> list[int]:
        """The action tokens that end each step but the last."""
        steps = steps_of(one.completion, self.separator)
        ends = step_ends(steps, one.turns[0].completion_ids, self.collector.tokenizer)[:-1]
        return [end for end in ends if end is not None]

    def _label(self, group: Group) -> float | None:
        graded = [one.solved for one in group.trajectories if one.reward is not None]
        if not graded:
            return None
        return float(any(graded)) if self.hard else sum(map(bool, graded)) / len(graded)
