"""Recorded trajectories by prompt: what was sampled for it once, and what became of it.

Rows come from a table of prompt, completion and reward, or from the `rollouts/` directory of a former run. Their text
is what is trained on; it is encoded anew, as a demonstration's is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from posttrain.data.examples import Example, Examples, Outcome

_STEPS = "step_*.jsonl"


def by_prompt(rows: Examples) -> Examples:
    """One example a prompt, with the outcomes of all rows that ask it, in their order; reads every row once.

    A row that failed (its column `error` is set) has nothing to learn from: it is left out and counted as skipped.
    """
    groups: dict[str, list[Example]] = {}
    skipped, problem = rows.num_skipped, rows.first_problem
    for example in rows:
        if example.columns.get("error"):
            skipped += 1
            problem = problem or f"{example.id}: the rollout had failed: {example.columns['error']}"
        else:
            groups.setdefault(json.dumps(example.prompt, sort_keys=True), []).append(example)
    found = [replace(group[0], outcomes=tuple(map(_outcome, group))) for group in groups.values()]
    return replace(rows, num_examples=len(found), read=found.__getitem__, num_skipped=skipped, first_problem=problem)


def rollout_files(path: Path) -> Sequence[Path]:
    """The files of a `rollouts/` directory, or of a run directory that has one, in the order of steps; else nothing."""
    directory = path / "rollouts" if (path / "rollouts").is_dir() else path
    return sorted(directory.glob(_STEPS), key=lambda file: (len(file.stem), file.stem))


def _outcome(example: Example) -> Outcome:
    """Solved is the row's column, or else a reward of at least 1; finished: it was not cut off at its token limit."""
    columns = example.columns
    assert example.completion is not None
    reward = columns["reward"]
    solved = columns.get("solved")
    return Outcome(
        completion=example.completion,
        reward=reward,
        solved=reward is not None and reward >= 1 if solved is None else bool(solved),
        finished=columns.get("stop_reason") != "length",
    )
