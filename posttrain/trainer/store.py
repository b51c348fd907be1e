"""Writes the trajectory store of a run (`data.recorded`): every rollout, whether it was trained on or not.

Each rank writes a shard of its own a window, under a hidden name, flushed to disk and then renamed: a checkpoint never
knows of a window whose shard is not whole. A shard is named for its window's first step, so a run that goes on from
step N drops those of later steps and plays them again: no trajectory is there twice, none is missing.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from posttrain.data.recorded import (
    AS_JSON,
    FOLDER,
    ROWS_PER_GROUP,
    TOKENIZER,
    first_step,
    metadata_of,
    schema,
    shard_name,
    shards,
)
from posttrain.durable import flush
from posttrain.errors import RunError
from posttrain.rollout.records import as_record, to_json
from posttrain.trainer.step_data import Played, StepData
from posttrain.trajectory import Dropped, Group

_DICTIONARY = ["by", "prompt_id", "prompt", "columns", "error", "dropped", "turns.list.element.stop_reason"]
_TEXTS = ("text", "state", "invalid")
_SPLIT = ["turns.list.element.logprobs.list.element", "advantage.list.element"]

Row = dict[str, Any]


@dataclass
class TrajectoryStore:
    """The store of a run in `output`, as one rank writes it."""

    output: Path
    rank: int
    tokenizer: Any

    def write(
        self,
        step: int,
        window: int,
        steps: Sequence[StepData],
        groups: Sequence[Group],
        advantages: Sequence[Sequence[Tensor]],
    ) -> Path | None:
        """The shard of a window, published; None where nothing was played.

        step: the number of its first step, from 1. groups: all that were played for it, those that no step took with
        them. advantages: of each step, of each of its sequences, those of its action tokens (`Algorithm.pulls`).
        RunError where the file system does not take it.
        """
        places = {"window": window, "rank": self.rank}
        rows = [places | row for row in _rows(step, steps, groups, advantages)]
        if not rows:
            return None
        directory = self.output / FOLDER
        path = directory / shard_name(step, self.rank)
        unfinished = path.with_name(f".{path.name}")
        try:
            directory.mkdir(exist_ok=True)
            if self.rank == 0:
                self._write_tokenizer(directory / TOKENIZER)
            _write(rows, unfinished, self._metadata)
            unfinished.rename(path)
            flush(directory)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            raise RunError(
                f"{path}: the rollouts of step {step} cannot be written: {error}; make room and go on with --resume, "
                "or set tracking.trajectories=none"
            ) from error
        return path

    @cached_property
    def _metadata(self) -> dict[bytes, bytes]:
        return metadata_of(self.tokenizer)

    def _write_tokenizer(self, path: Path) -> None:
        """The vocabulary, for whoever reads the ids; a tokenizer without a fast backend has no such file."""
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is not None and not path.exists():
            unfinished = path.with_name(f".{path.name}")
            backend.save(str(unfinished), pretty=False)
            unfinished.rename(path)


def forget_shards(output: Path, step: int) -> None:
    """Drop the shards of windows that begin after `step`, and what a kill left unfinished."""
    for path in shards(output):
        if first_step(path) > step:
            path.unlink()
    for path in (output / FOLDER).glob(".*"):
        path.unlink()


def _rows(
    step: int, steps: Sequence[StepData], groups: Sequence[Group], advantages: Sequence[Sequence[Tensor]]
) -> Iterator[Row]:
    """The trajectories of each step, group by group, and then those of `groups` that no step took."""
    taken: set[int] = set()
    for number, (data, pulls) in enumerate(zip(steps, advantages, strict=True), start=step):
        samples: Counter[int] = Counter()
        for one in data.played:
            taken.add(id(one.trajectory))
            yield {"step": number, "group": one.group, "sample": samples[one.group]} | _row(one, pulls)
            samples[one.group] += 1
    left = (group for group in groups if any(id(one) not in taken for one in group.trajectories))
    first = max((one.group for one in steps[0].played), default=-1) + 1 if steps else 0
    for index, group in enumerate(left, start=first):
        for sample, trajectory in enumerate(group.trajectories):
            yield {"step": step, "group": index, "sample": sample} | _row(Played(trajectory, index, ()), ())


def _row(played: Played, pulls: Sequence[Tensor]) -> Row:
    trajectory = played.trajectory
    record = as_record(trajectory)
    rows = () if trajectory.dropped else played.rows
    advantage = [value for row in rows for value in pulls[row].tolist()]
    return (
        record
        | {name: to_json(record[name]) for name in AS_JSON}
        | {
            "turns": [turn | {name: _utf8(turn[name]) for name in _TEXTS if turn[name]} for turn in record["turns"]],
            "prompt_id": _utf8(trajectory.prompt_id),
            "error": None if trajectory.error is None else _utf8(trajectory.error),
            "by": "reference" if played.by_reference else "policy",
            "num_turns": len(trajectory.turns),
            "num_completion_tokens": trajectory.num_completion_tokens,
            "advantage": advantage if rows else None,
            "dropped": None if rows else str(trajectory.dropped or Dropped.UNUSED),
        }
    )


def _utf8(text: str) -> str:
    """Lone surrogates, which UTF-8 does not have, as their escapes."""
    return text.encode("utf-8", "backslashreplace").decode()


def _write(rows: Sequence[Row], path: Path, metadata: dict[bytes, bytes]) -> None:
    """A Parquet file, flushed to disk. Doubles are stored byte by byte: a float32's lower half costs nothing."""
    import pyarrow as pa  # type: ignore[import-untyped]
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    columns = schema().with_metadata(metadata)
    with path.open("wb") as file:
        options = {"compression": "zstd", "use_dictionary": _DICTIONARY, "use_byte_stream_split": _SPLIT}
        with pq.ParquetWriter(file, columns, **options) as writer:
            for start in range(0, len(rows), ROWS_PER_GROUP):
                part = pa.Table.from_pylist(rows[start : start + ROWS_PER_GROUP], schema=columns)
                writer.write_table(part, row_group_size=ROWS_PER_GROUP)
        file.flush()
        os.fsync(file.fileno())
