"""`posttrain watch`: which action leads from one observation to the next, and demonstrations from observations alone.

Inverse dynamics, as in "Watch and Learn: Learning to Use Computers from Online Videos": recorded demonstrations teach a
model to name the action between two consecutive observations; the model then labels recordings that have no actions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from posttrain.config.schema import SourceSettings
from posttrain.curation.demonstrate import Writer, open_writer
from posttrain.curation.parts import in_parts
from posttrain.curation.record import said
from posttrain.curation.written import check_output, write_rows
from posttrain.data.examples import Example
from posttrain.data.readers import Row, read_rows
from posttrain.data.sources import load_source
from posttrain.environments import told
from posttrain.errors import DataError
from posttrain.trajectory import Message, StopReason, Trajectory


def asked(before: str, after: str) -> tuple[Message, ...]:
    """The question to the model."""
    return told(f"Before:\n{before}\n\nAfter:\n{after}\n\nWhich action was taken?")


def transitions(demonstrations: str, output: Path) -> int:
    """Write a row for each action of recorded demonstrations that an observation follows; their number.

    A row is a demonstration of its own: `prompt`, the two observations (`asked`), and `completion`, the action.
    DataError where there is none.
    """
    check_output(output)
    rows = [row for one in load_source(SourceSettings(path=demonstrations), "demonstrations") for row in _rows(one)]
    if not rows:
        raise DataError(f"{demonstrations}: no action has an observation before and after it; allowed: conversations")
    write_rows(output, rows)
    return len(rows)


def _rows(example: Example) -> Iterator[dict[str, Any]]:
    if isinstance(example.prompt, str) or example.completion is None or isinstance(example.completion, str):
        return
    messages = [(one["role"], str(one["content"])) for one in (*example.prompt, *example.completion)]
    for (_, before), (role, action), (_, after) in zip(messages, messages[1:], messages[2:], strict=False):
        if role == "assistant":
            yield {"prompt": [dict(one) for one in asked(before, after)], "completion": [said(action)]}


@dataclass(frozen=True)
class Labelled:
    """Numbers of recordings read and of demonstrations made of them; the others had an action that was not named."""

    recordings: int
    rows: int

    def text(self) -> str:
        """In words."""
        return f"{self.recordings:,} recordings, {self.rows:,} labelled"


def label(recordings: Path, output: Path, writer: Writer) -> Labelled:
    """Write recordings without actions as demonstrations, the model's most likely actions between the observations.

    A recording is a row {"observations": [text, ...]}, two at least; its other columns are kept. The last observation
    tells which action was the last, and is not part of the row. After a kill the same command goes on.
    DataError for a row without observations, or where no recording could be labelled.
    """
    check_output(output)
    read = [_observations(row) for row in read_rows(recordings)]
    examples = [
        Example(f"{recordings}#{number}.{step}", asked(before, after))
        for number, (seen, _) in enumerate(read)
        for step, (before, after) in enumerate(pairwise(seen))
    ]
    collector = open_writer(writer)

    def actions(some: Sequence[Example]) -> list[str | None]:
        return [_action(group.trajectories[0]) for group in collector.collect(some, 1, writer.seed)]

    answers = iter(in_parts(output, {"writer": writer}, examples, actions))
    rows = []
    for seen, columns in read:
        named = [action for action in [next(answers) for _ in seen[1:]] if action is not None]
        if len(named) == len(seen) - 1:
            completion = [said(named[0])]
            for text, action in zip(seen[1:-1], named[1:], strict=True):
                completion += [*map(dict, told(text)), said(action)]
            rows.append({**columns, "prompt": [dict(one) for one in told(seen[0])], "completion": completion})
    if not rows:
        raise DataError(f"{recordings}: of no recording all actions were named; allow more --max-tokens")
    write_rows(output, rows)
    return Labelled(len(read), len(rows))


def _observations(row: Row) -> tuple[Sequence[str], Mapping[str, Any]]:
    """A recording's observations and its other columns."""
    if row.problem is not None:
        raise DataError(f"{row.place}: {row.problem}")
    seen = row.columns.get("observations")
    if not isinstance(seen, list) or len(seen) < 2 or not all(isinstance(one, str) for one in seen):
        raise DataError(f"{row.place}: observations is {seen!r}; allowed: a list of two texts or more")
    return seen, {name: value for name, value in row.columns.items() if name != "observations"}


def _action(answer: Trajectory) -> str | None:
    """What the model says; None where it was cut off, failed, or is empty."""
    if answer.error is not None or answer.stop_reason is StopReason.LENGTH:
        return None
    return answer.completion.strip() or None
