"""Grades completions that were made elsewhere: a file of responses in place of a model."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from posttrain.data.examples import Example
from posttrain.data.readers import Row, excerpt, read_rows
from posttrain.errors import DataError
from posttrain.evaluation.benchmark import Benchmark
from posttrain.evaluation.evaluation import Evaluation
from posttrain.evaluation.runner import completed
from posttrain.reward import Grader
from posttrain.trajectory import StopReason, Trajectory, Turn

_TEXTS = ("question", "problem", "prompt")


def grade_responses(benchmark: Benchmark, items: Sequence[Example], file: Path, grader: Grader) -> Evaluation:
    """The evaluation of the responses in `file` to the benchmark's `items`.

    Rows are {"id": ..., "response": text} or {"question": ..., "response": text}: id as the item's own (a column `id`
    of its row, else the id that the results show), question as its row's text. Several rows of an item are its
    samples. Items without a response count in no rate; their number is `num_unanswered`. An empty response is one.
    DataError where a row has neither, or names an item that is not there.
    """
    by_name = _names(items)
    found: dict[int, list[Trajectory]] = {}
    start = time.perf_counter()
    for row in read_rows(file):
        if row.problem:
            raise DataError(f"{row.place}: {row.problem}")
        index = _item(row, by_name)
        response = row.columns.get("response")
        if not isinstance(response, str):
            raise DataError(f"{row.place}: 'response' is {excerpt(response)}; allowed: the completion's text")
        own = found.setdefault(index, [])
        own.append(_trajectory(items[index], len(own), response))
    if not found:
        raise DataError(f'{file}: holds no responses; allowed: lines of {{"id": ..., "response": ...}}')
    trajectories = [one for index in sorted(found) for one in found[index]]
    grader.check_columns(items[0].columns)
    grader.grade(trajectories)
    samples = max(map(len, found.values()))
    made = tuple(completed(one, benchmark.outcome) for one in trajectories)
    unanswered = len(items) - len(found)
    return Evaluation(benchmark.name, samples, made, time.perf_counter() - start, num_unanswered=unanswered)


def _names(items: Sequence[Example]) -> Mapping[tuple[str, str], int | None]:
    """("id" or "question", text) -> the item; None where several have it."""
    found: dict[tuple[str, str], int | None] = {}
    for index, item in enumerate(items):
        texts = {("question", str(item.columns[name]).strip()) for name in _TEXTS if name in item.columns}
        ids = {("id", item.id)} | ({("id", str(item.columns["id"]))} if "id" in item.columns else set())
        for name in texts | ids:
            found[name] = index if name not in found else None
    return found


def _item(row: Row, by_name: Mapping[tuple[str, str], int | None]) -> int:
    given = next((key for key in ("id", "question") if key in row.columns), None)
    if given is None:
        raise DataError(f"{row.place}: has neither 'id' nor 'question'; columns: {', '.join(row.columns) or 'none'}")
    text = row.columns[given]
    name = (given, str(text).strip())
    if name not in by_name:
        raise DataError(f"{row.place}: {given} {excerpt(text)} is none of the benchmark's items")
    index = by_name[name]
    if index is None:
        raise DataError(f"{row.place}: {given} {excerpt(text)} is that of several items: give their 'id'")
    return index


def _trajectory(item: Example, sample: int, response: str) -> Trajectory:
    turn = Turn((), (), (), StopReason.STOP, 0, response)
    return Trajectory(item.id, sample, item.prompt, item.columns, (turn,))
