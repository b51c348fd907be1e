"""The completions of an evaluation on disk, so that one that was killed goes on where it was.

A file holds what was played under one identity (benchmark and its settings, model, engine, seed, grading code): a line
a completion, and after each chunk of items a line that says so. What follows the last such line was cut off by a kill:
it is dropped and played again. A chunk whose items are no longer those of the data is played again too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.data.examples import Example
from posttrain.evaluation.evaluation import Completed
from posttrain.trajectory import StopReason


@dataclass(frozen=True)
class Played:
    """The completions of items that were played together, and the seconds it took."""

    completions: tuple[Completed, ...]
    seconds: float


class Samples:
    """The file of one evaluation in `directory`; made where it is missing. identity: JSON."""

    def __init__(self, directory: Path, name: str, identity: Mapping[str, Any]) -> None:
        digest = hashlib.sha256(_plain(identity).encode()).hexdigest()[:8]
        self.path = directory / f"{name.replace('/', '-')}-{digest}.jsonl"
        self._chunks: dict[int, tuple[str, Played]] = {}
        directory.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            self._read()
        if not self.path.exists() or not self.path.stat().st_size:
            self._append([{"identity": identity}])

    def forget(self) -> None:
        """Drop everything that was played."""
        head = self.path.read_text().splitlines()[0]
        self.path.write_text(head + "\n")
        self._chunks = {}

    @property
    def num_completions(self) -> int:
        """Completions that are there."""
        return sum(len(played.completions) for _, played in self._chunks.values())

    def find(self, first: int, items: Sequence[Example]) -> Played | None:
        """What was played of `items`, which start at number `first`; None where it was not these."""
        digest, played = self._chunks.get(first, (None, None))
        return played if digest == _digest(items) else None

    def add(self, first: int, items: Sequence[Example], played: Played) -> None:
        """Write a chunk, through to the disk."""
        self._chunks[first] = _digest(items), played
        end = {"first": first, "digest": _digest(items), "seconds": played.seconds}
        self._append([*map(asdict, played.completions), {"chunk": end}])

    def _append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        with self.path.open("a") as file:
            file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
            file.flush()
            os.fsync(file.fileno())

    def _read(self) -> None:
        """The whole chunks; the file is cut behind the last of them."""
        end = size = 0
        pending: list[Completed] = []
        for line in self.path.read_bytes().splitlines(keepends=True):
            size += len(line)
            try:
                row = json.loads(line)
            except ValueError:
                break
            if not line.endswith(b"\n"):
                break
            if "chunk" in row:
                found = row["chunk"]
                self._chunks[found["first"]] = found["digest"], Played(tuple(pending), found["seconds"])
            if "chunk" in row or "identity" in row:
                pending, end = [], size
            else:
                pending.append(_completed(row))
        os.truncate(self.path, end)


def _completed(row: dict[str, Any]) -> Completed:
    prompt = row["prompt"] if isinstance(row["prompt"], str) else tuple(row["prompt"])
    counts = {name: (holding, of) for name, (holding, of) in row["counts"].items()}
    return Completed(**row | {"prompt": prompt, "stop_reason": StopReason(row["stop_reason"]), "counts": counts})


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def _digest(items: Sequence[Example]) -> str:
    """Of what was asked and of what it is graded by."""
    text = _plain([(item.id, item.prompt, item.columns) for item in items])
    return hashlib.sha256(text.encode()).hexdigest()[:16]
