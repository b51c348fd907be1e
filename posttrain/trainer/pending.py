"""What a checkpoint keeps of steps that are not done yet: their tokens, what was played for them, windows ahead.

One file a rank and kind, one JSON object a line; numbers survive exactly.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from posttrain.batch import Source, TokenSequence
from posttrain.data.examples import Example, Outcome
from posttrain.picture import Picture
from posttrain.rollout.records import as_record, from_record, group_of, group_record
from posttrain.trainer.step_data import Drawn, Played, StepData
from posttrain.trainer.window import Window

_SEQUENCES, _PLAYED, _AHEAD = "pending_{}.jsonl", "played_{}.jsonl", "ahead_{}.jsonl"

Record = dict[str, Any]


def save_pending(directory: Path, rank: int, steps: Sequence[StepData], ahead: Sequence[Window]) -> None:
    """Write a rank's steps that are not done, and its windows that are played and not begun, both in their order.

    Lines begin with the step (its index among `steps`). Of the examples of windows ahead the columns are left out:
    nothing reads them once rewards have.
    """
    rows = [{"step": i} | asdict(sequence) for i, step in enumerate(steps) for sequence in step.sequences]
    _write(directory / _SEQUENCES.format(rank), rows)
    played = [_played_row(i, one) for i, step in enumerate(steps) for one in step.played]
    _write(directory / _PLAYED.format(rank), played)
    _write(directory / _AHEAD.format(rank), map(window_record, ahead))


def load_pending(directory: Path, rank: int, num_steps: int) -> tuple[list[StepData], list[Window]]:
    """What `save_pending` wrote of `num_steps` steps."""
    steps = [StepData([]) for _ in range(num_steps)]
    for row in _read(directory / _SEQUENCES.format(rank)):
        index = row.pop("step")
        values: Record = {n: tuple(value) if isinstance(value, list) else value for n, value in row.items()}
        values["targets"] = values["targets"] and tuple(map(_text, values["targets"]))
        values["pictures"] = tuple(Picture(*one) for one in values["pictures"])
        steps[index].sequences.append(TokenSequence(**values | {"source": Source(values["source"])}))
    for row in _read(directory / _PLAYED.format(rank)):
        trajectory = from_record(row["trajectory"])
        steps[row["step"]].played.append(Played(trajectory, row["group"], row["rows"], row["by_reference"]))
    return steps, [window_of(row) for row in _read(directory / _AHEAD.format(rank))]


def window_record(window: Window) -> Record:
    """A window as a plain object."""
    groups = {name: [group_record(one) for one in getattr(window, name)] for name in ("groups", "anchors", "replaced")}
    drawn = [{name: [_example_record(one) for one in getattr(step, name)] for name in _DRAWN} for step in window.drawn]
    plain = {entry.name: getattr(window, entry.name) for entry in fields(Window)}
    return plain | groups | {"drawn": drawn}


def window_of(record: Mapping[str, Any]) -> Window:
    """What `window_record` made a record of."""
    groups = {name: [group_of(one) for one in record[name]] for name in ("groups", "anchors", "replaced")}
    drawn = [Drawn(**{name: [_example(one) for one in step[name]] for name in _DRAWN}) for step in record["drawn"]]
    return Window(**{**record, **groups, "drawn": drawn})


_DRAWN = tuple(entry.name for entry in fields(Drawn))
_TEXTS = ("prompt", "completion", "chosen", "rejected")


def _played_row(step: int, played: Played) -> Record:
    row = {"step": step, "group": played.group, "rows": list(played.rows), "by_reference": played.by_reference}
    return row | {"trajectory": as_record(played.trajectory)}


def _example_record(example: Example) -> Record:
    texts = {name: getattr(example, name) for name in _TEXTS}
    return (
        {"id": example.id, "margin": example.margin} | texts | {"outcomes": [asdict(one) for one in example.outcomes]}
    )


def _example(record: Mapping[str, Any]) -> Example:
    texts = {name: _text(record[name]) for name in _TEXTS}
    outcomes = [Outcome(**{name: _text(value) for name, value in one.items()}) for one in record["outcomes"]]
    return Example(id=record["id"], margin=record["margin"], **texts, outcomes=tuple(outcomes))


def _text(written: Any) -> Any:
    """Text as it is, a conversation as a tuple of messages, so with other lists."""
    return tuple(written) if isinstance(written, list) else written


def _write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row, default=str) + "\n" for row in rows)


def _read(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]
