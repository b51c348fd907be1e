"""The trajectory store of a run: compressed shards of all its rollouts, and what their token ids mean.

    RUN_DIR/trajectories/step_7_rank_0.parquet    what rank 0 played for the window whose first step is 7
    RUN_DIR/trajectories/tokenizer.json           the vocabulary, as the `tokenizers` library writes it

A row is a trajectory (columns in `schema`), the trajectories of a group one after the other. Any reader of Parquet
opens them; here they are read row by row, so that a store may be larger than memory. `trainer.store` writes them.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrain.errors import DataError

FOLDER = "trajectories"
TOKENIZER = "tokenizer.json"
FORMAT = 2
ROWS_PER_GROUP = 64
AS_JSON = ("prompt", "columns", "rewards")
_NAME = re.compile(r"step_(\d+)_rank_(\d+)\.parquet")
_METADATA = b"posttrain"


def schema() -> Any:
    """The columns of a shard (a `pyarrow.Schema`).

    step: the optimiser step the trajectory was played for; window, rank, group (within the step and rank), sample
    (within the group); by: "policy" or "reference"; the fields of `Trajectory`, with prompt, columns and rewards as
    JSON; advantage: of each sampled token, summed over the algorithm's terms, null where nothing was trained on it.
    """
    import pyarrow as pa  # type: ignore[import-untyped]

    turn = {
        "prompt_ids": pa.list_(pa.int32()),
        "completion_ids": pa.list_(pa.int32()),
        "logprobs": pa.list_(pa.float64()),
        "stop_reason": pa.string(),
        "policy_version": pa.int64(),
        "text": pa.string(),
        "num_given": pa.int32(),
        "reward": pa.float64(),
        "state": pa.string(),
        "invalid": pa.string(),
        "masked": pa.bool_(),
        "screenshot": pa.string(),
        "off_path": pa.bool_(),
        "allowed": pa.list_(pa.list_(pa.int32())),
        "pictures": pa.list_(pa.struct([(name, pa.int32()) for name in ("start", "height", "width", "image")])),
    }
    columns = {
        "step": pa.int64(),
        "window": pa.int64(),
        "rank": pa.int32(),
        "group": pa.int32(),
        "sample": pa.int32(),
        "by": pa.string(),
        "prompt_id": pa.string(),
        "attempt": pa.int32(),
        "prompt": pa.string(),
        "columns": pa.string(),
        "turns": pa.list_(pa.struct(list(turn.items()))),
        "images": pa.list_(pa.string()),
        "num_turns": pa.int32(),
        "num_completion_tokens": pa.int32(),
        "advantage": pa.list_(pa.float32()),
        "temperature": pa.float64(),
        "end": pa.string(),
        "outcome": pa.bool_(),
        "rewards": pa.string(),
        "reward": pa.float64(),
        "shaping": pa.float64(),
        "turn_rewards": pa.list_(pa.float64()),
        "solved": pa.bool_(),
        "error": pa.string(),
        "dropped": pa.string(),
        "generation_seconds": pa.float64(),
        "environment_seconds": pa.float64(),
        "grading_seconds": pa.float64(),
    }
    return pa.schema(list(columns.items()))


def shard_name(step: int, rank: int) -> str:
    """The file of a window's first step and a rank."""
    return f"step_{step}_rank_{rank}.parquet"


def first_step(shard: Path) -> int:
    """The step in a shard's name."""
    match = _NAME.fullmatch(shard.name)
    assert match is not None, f"{shard} is no shard"
    return int(match[1])


def shards(path: Path) -> list[Path]:
    """The shards of a run directory, or of its `trajectories/`, in the order of steps and ranks; else nothing."""
    directory = path / FOLDER if (path / FOLDER).is_dir() else path
    found = {file: match for file in directory.glob("step_*.parquet") if (match := _NAME.fullmatch(file.name))}
    return sorted(found, key=lambda file: (int(found[file][1]), int(found[file][2])))


def vocabulary_digest(tokenizer: Any) -> str:
    """What tells whether two tokenizers mean the same by a token id: a digest of token -> id."""
    entries = json.dumps(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(entries.encode()).hexdigest()[:16]


def metadata_of(tokenizer: Any) -> dict[bytes, bytes]:
    """What a shard says of itself: its format, and the tokenizer that its ids belong to."""
    known = {"format": FORMAT, "vocabulary": vocabulary_digest(tokenizer), "tokenizer": tokenizer.name_or_path}
    return {_METADATA: json.dumps(known).encode()}


def metadata(shard: Path) -> dict[str, Any]:
    """What a shard says of itself. DataError where it is not a shard, or one of another version's format."""
    import pyarrow.parquet as pq  # type: ignore[import-untyped]

    with _readable(shard):
        written = pq.read_schema(shard).metadata or {}
    known: dict[str, Any] = json.loads(written.get(_METADATA, b"{}"))
    if known.get("format") != FORMAT:
        raise DataError(f"{shard}: its format is {known.get('format')}; allowed: {FORMAT}")
    return known


def scan(files: Sequence[Path], columns: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row's place ("SHARD#ROW"), and its values of the columns named; what others hold is not read.

    DataError as `metadata`'s, and where a shard cannot be read.
    """
    import pyarrow.parquet as pq

    for shard in files:
        metadata(shard)
        with _readable(shard):
            rows = pq.read_table(shard, columns=list(columns)).to_pylist()
        yield from ((f"{shard}#{number}", row) for number, row in enumerate(rows))


def read(place: str) -> dict[str, Any]:
    """The row at a place, its JSON read: a record as `rollout.records` takes it, and the store's own columns."""
    name, _, number = place.rpartition("#")
    shard = Path(name)
    group, row = divmod(int(number), ROWS_PER_GROUP)
    with _readable(shard):
        written = shard.stat().st_mtime_ns
    found: dict[str, Any] = _row_group(shard, group, written).slice(row, 1).to_pylist()[0]
    return found | {name: json.loads(found[name]) for name in AS_JSON}


@lru_cache(maxsize=16)
def _row_group(shard: Path, group: int, _written: int) -> Any:
    """The rows of one compressed block; the last ones are kept, since a group's trajectories lie together."""
    import pyarrow.parquet as pq

    with _readable(shard), pq.ParquetFile(shard) as file:
        return file.read_row_group(group)


@contextmanager
def _readable(shard: Path) -> Iterator[None]:
    """DataError, naming the file, for what pyarrow raises where it is cut off, damaged or gone."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{shard}: cannot be read as a shard of trajectories: {error}") from error
