"""Recorded trajectories by prompt: what was sampled for it once, and what became of it.

They come from the trajectory store of a former run (`data.recorded`), and then exactly the tokens that were sampled
are trained on, with their logprobs; or from a table of prompt, completion and reward, or the `rollouts/` directory of
a former run: then their text is, encoded anew as a demonstration's is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from posttrain.data.examples import Example, Examples, Outcome
from posttrain.data.labels import attributes_of, step_labels
from posttrain.data.recorded import metadata, scan, vocabulary_digest
from posttrain.errors import DataError
from posttrain.trajectory import Prompt

_STEPS = "step_*.jsonl"


RECORDED = ("trajectories", "steps", "attributes")
"""Kinds of rows that are recorded trajectories: graded as a whole, or labelled (`data.labels`)."""


def by_prompt(rows: Examples, kind: str = "trajectories") -> Examples:
    """One example a prompt, with the outcomes of all rows that ask it, in their order; reads every row once.

    Rows that have a column `prompt_id` are of one prompt only where that agrees too: tasks of an environment may open
    with the same words.
    A row that failed (its column `error` is set) has nothing to learn from: it is left out and counted as skipped.
    """
    groups: dict[str, list[Example]] = {}
    skipped, problem = rows.num_skipped, rows.first_problem
    for example in rows:
        if example.columns.get("error"):
            skipped += 1
            problem = problem or f"{example.id}: the rollout had failed: {example.columns['error']}"
        else:
            task = example.prompt, example.columns.get("prompt_id")
            groups.setdefault(json.dumps(task, sort_keys=True), []).append(example)
    found = [replace(group[0], outcomes=tuple(map(partial(_outcome, kind), group))) for group in groups.values()]
    return replace(rows, num_examples=len(found), read=found.__getitem__, num_skipped=skipped, first_problem=problem)


def from_store(source: str, files: Sequence[Path], limit: int | None = None) -> Examples:
    """One example a prompt with all its stored trajectories, `limit` of them in all; tokens are read when asked for.

    What failed, or ended before a turn, is left out and counted as skipped. DataError where shards cannot be read or
    are of different tokenizers.
    """
    vocabularies = {str(metadata(file)["vocabulary"]): file for file in files}
    if len(vocabularies) > 1:
        raise DataError(
            f"{source}: its shards are of different tokenizers: {', '.join(map(str, vocabularies.values()))}"
        )
    groups: dict[tuple[str, str], list[tuple[str, dict[str, Any]]]] = {}
    num_kept = num_skipped = 0
    problem = ""
    for place, row in scan(files, ("prompt", "prompt_id", "num_turns", "error", "reward", "solved")):
        if row["error"] is not None or not row["num_turns"]:
            num_skipped += 1
            problem = problem or f"{row['prompt_id']}: the rollout had failed: {row['error']}"
            continue
        groups.setdefault((row["prompt"], row["prompt_id"]), []).append((place, row))
        num_kept += 1
        if num_kept == limit:
            break
    found = list(groups.items())

    def example(number: int) -> Example:
        (written, _), rows = found[number]
        prompt: Any = json.loads(written)
        known: Prompt = prompt if isinstance(prompt, str) else tuple(prompt)
        return Example(f"{source}#{number}", known, outcomes=tuple(_stored(place, row) for place, row in rows))

    return Examples(source, len(found), example, num_skipped, problem, next(iter(vocabularies), None))


def check_recorded(examples: Examples, tokenizer: Any, *, logprobs: bool) -> None:
    """Whether the stored tokens, where there are some, are `tokenizer`'s. DataError where they are not.

    logprobs: also whether every trajectory has those of the policy that sampled it.
    """
    if examples.vocabulary is None:
        if logprobs:
            raise DataError(
                f"{examples.source} holds texts without the logprobs of the policy that wrote them, and the algorithm "
                "reads behavior_logprobs; allowed: the directory of a run made with tracking.trajectories=all"
            )
    elif (own := vocabulary_digest(tokenizer)) != examples.vocabulary:
        raise DataError(
            f"{examples.source} holds tokens of another tokenizer (vocabulary {examples.vocabulary}) than this run's "
            f"{tokenizer.name_or_path!r} ({own}); allowed: the tokenizer of the run that sampled them, or its texts: "
            f"{examples.source}/rollouts"
        )


def _stored(place: str, row: dict[str, Any]) -> Outcome:
    return Outcome("", row["reward"], row["solved"] is True, sampled=place)


def rollout_files(path: Path) -> Sequence[Path]:
    """The files of a `rollouts/` directory, or of a run directory that has one, in the order of steps; else nothing."""
    directory = path / "rollouts" if (path / "rollouts").is_dir() else path
    return sorted(directory.glob(_STEPS), key=lambda file: (len(file.stem), file.stem))


def _outcome(kind: str, example: Example) -> Outcome:
    """Solved is the row's column, or else a reward of at least 1; finished: it was not cut off at its token limit."""
    columns = example.columns
    assert example.completion is not None
    reward = columns.get("reward")
    solved = columns.get("solved")
    labels: dict[str, Any] = {}
    if kind == "steps":
        labels = dict(zip(("steps", "step_labels"), step_labels(columns), strict=True))
    elif kind == "attributes":
        labels = {"attributes": attributes_of(columns)}
    return Outcome(
        completion=example.completion,
        reward=reward,
        solved=reward is not None and reward >= 1 if solved is None else bool(solved),
        finished=columns.get("stop_reason") != "length",
        **labels,
    )
