"""The trajectory store: what was played comes back bit by bit, once, from files that are whole or not there."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

from posttrain.data.recorded import first_step, metadata, read, scan, schema, shards, vocabulary_digest
from posttrain.models.tokenizer import character_tokenizer
from posttrain.rollout.records import from_record
from posttrain.trainer.step_data import Played, StepData
from posttrain.trainer.store import TrajectoryStore, forget_shards
from posttrain.trajectory import Dropped, Group, StopReason, Trajectory, Turn

TOKENIZER = character_tokenizer()


def trajectory(seed: int, **changes: Any) -> Trajectory:
    """One turn, or two where the seed is odd, whose logprobs use every bit of a double."""
    draws = np.random.default_rng(seed)
    turns: tuple[Turn, ...] = ()
    ids: tuple[int, ...] = (3, 7, 8)
    for version in range(1 + seed % 2):
        completion = tuple(draws.integers(0, 90, 5).tolist())
        logprobs = tuple((-draws.exponential(size=5)).tolist())
        turns += (Turn(ids, completion, logprobs, StopReason.STOP, version, TOKENIZER.decode(completion)),)
        ids += (*completion, 9)
    made = Trajectory(
        f"p#{seed // 4}",
        seed % 2,
        ({"role": "user", "content": f"{seed // 4} + 1"},),
        {"answer": seed / 3},
        turns=turns,
        rewards={"math": 1 / (seed + 1), "style": None},
        reward=float(draws.normal()),
        solved=seed % 2 == 0,
        generation_seconds=0.5,
    )
    return dataclasses.replace(made, **changes)


def window(number: int, groups: int = 2, size: int = 4) -> tuple[StepData, list[Group], list[torch.Tensor]]:
    """A step whose every trajectory is one sequence, its groups, and the advantages of the sequences."""
    made = [trajectory(number * 1000 + i) for i in range(groups * size)]
    played = [Played(one, i // size, [i]) for i, one in enumerate(made)]
    members = [Group(f"p#{g}", tuple(made[g * size : (g + 1) * size])) for g in range(groups)]
    pulls = [torch.full((one.num_completion_tokens,), float(i)) for i, one in enumerate(made)]
    return StepData([], played), members, pulls


def store(output: Path, rank: int = 0) -> TrajectoryStore:
    output.mkdir(exist_ok=True)
    return TrajectoryStore(output, rank, TOKENIZER)


def rows(output: Path) -> list[dict[str, Any]]:
    return [read(place) for place, _ in scan(shards(output), ["step"])]


def test_every_trajectory_comes_back_exactly(tmp_path: Path) -> None:
    steps, groups, pulls = zip(*(window(number, groups=20) for number in range(2)), strict=True)
    path = store(tmp_path).write(7, 3, steps, [one for own in groups for one in own], pulls)
    assert shards(tmp_path) == [path]
    found = rows(tmp_path)
    played = [one.trajectory for step in steps for one in step.played]
    assert [from_record(row) for row in found] == played
    assert [row["step"] for row in found] == [7] * 80 + [8] * 80
    assert {row["window"] for row in found} == {3}
    assert [row["sample"] for row in found] == [0, 1, 2, 3] * 40
    assert all(row["dropped"] is None and row["by"] == "policy" for row in found)
    assert found[81]["advantage"] == [1.0] * 10, "of each sampled token, over both turns"


def test_what_was_not_trained_on_is_there_and_says_why(tmp_path: Path) -> None:
    step, groups, pulls = window(0)
    failed = trajectory(1, turns=(), error="engine: gone", reward=None)
    stale = Group("old#1", (trajectory(5, dropped=Dropped.STALE),))
    alike = Group("dull#1", (trajectory(2, dropped=Dropped.ALIKE), trajectory(3, dropped=Dropped.ALIKE)))
    reference = Played(trajectory(6), 0, [0], by_reference=True)
    data = StepData([], [*step.played, Played(failed, 1, []), Played(stale.trajectories[0], 2, [0]), reference])
    store(tmp_path).write(1, 0, [data], [*groups, alike, stale], [pulls])
    found = rows(tmp_path)
    known = [(row["group"], row["sample"], row["by"], row["dropped"]) for row in found[8:]]
    assert known == [
        (1, 4, "policy", "unused"),
        (2, 0, "policy", "stale"),
        (0, 4, "reference", None),
        (3, 0, "policy", "alike"),
        (3, 1, "policy", "alike"),
    ]
    assert [row["advantage"] for row in found[8:]] == [None, None, [0.0] * 5, None, None]
    assert len({(row["step"], row["rank"], row["group"], row["sample"]) for row in found}) == len(found)
    assert from_record(found[8]) == dataclasses.replace(failed, dropped=Dropped.UNUSED)


def test_a_shard_says_whose_tokens_it_holds(tmp_path: Path) -> None:
    step, groups, pulls = window(0)
    path = store(tmp_path).write(1, 0, [step], groups, [pulls])
    assert path is not None
    assert metadata(path)["vocabulary"] == vocabulary_digest(TOKENIZER)
    saved = Tokenizer.from_file(str(tmp_path / "trajectories" / "tokenizer.json"))
    ids = rows(tmp_path)[0]["turns"][0]["completion_ids"]
    assert saved.decode(ids, skip_special_tokens=False) == TOKENIZER.decode(ids)
    written = pq.read_schema(path)
    assert written.equals(schema())
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


def test_nothing_played_leaves_nothing(tmp_path: Path) -> None:
    assert store(tmp_path).write(1, 0, [StepData([])], [], [[]]) is None
    assert list(tmp_path.iterdir()) == []


def test_ranks_write_shards_of_their_own(tmp_path: Path) -> None:
    for rank in (1, 0):
        step, groups, pulls = window(rank)
        store(tmp_path, rank).write(2, 1, [step], groups, [pulls])
    assert [path.name for path in shards(tmp_path)] == ["step_2_rank_0.parquet", "step_2_rank_1.parquet"]
    assert [row["rank"] for row in rows(tmp_path)] == [0] * 8 + [1] * 8


def test_a_run_that_goes_on_forgets_the_windows_after_its_checkpoint(tmp_path: Path) -> None:
    for index, first in enumerate((1, 3, 5, 11)):
        step, groups, pulls = window(index)
        store(tmp_path).write(first, index, [step], groups, [pulls])
    unfinished = tmp_path / "trajectories" / ".step_13_rank_1.parquet"
    unfinished.write_bytes(b"cut off")
    forget_shards(tmp_path, 4)
    assert [first_step(path) for path in shards(tmp_path)] == [1, 3], "a window that a checkpoint lies in is kept"
    assert not unfinished.exists()
    assert (tmp_path / "trajectories" / "tokenizer.json").exists()
    forget_shards(tmp_path, -1)
    assert shards(tmp_path) == []


def test_text_that_utf8_does_not_have_is_kept_as_escapes(tmp_path: Path) -> None:
    one = trajectory(0, error="bad \udcff", columns={"raw": "\ud800"})
    one.turns = (dataclasses.replace(one.turns[0], text="\udfff!"),)
    store(tmp_path).write(1, 0, [StepData([], [Played(one, 0, [])])], [], [[]])
    (row,) = rows(tmp_path)
    assert (row["error"], row["turns"][0]["text"], row["columns"]) == ("bad \\udcff", "\\udfff!", {"raw": "\ud800"})


_FULL = """
import resource, sys
from pathlib import Path
from tests.trainer.test_store import store, window
from posttrain.errors import RunError

output = Path(sys.argv[1])
step, groups, pulls = window(0, groups=200)
import pyarrow.parquet  # its libraries are loaded before the limit
writer = store(output)
writer.write(1, 0, [step], groups, [pulls])
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))
import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
try:
    writer.write(2, 1, [step], groups, [pulls])
except RunError as error:
    print(error)
"""


def test_a_file_system_that_takes_no_more_stops_the_run_with_the_cause(tmp_path: Path) -> None:
    """A real limit on the size of files, in a process of its own: the kernel refuses the write as a full disk does."""
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert "step_2_rank_0.parquet: the rollouts of step 2 cannot be written: " in done.stdout
    assert "tracking.trajectories=none" in done.stdout
    assert [path.name for path in (tmp_path / "trajectories").glob("*.parquet")] == ["step_1_rank_0.parquet"]
    assert list((tmp_path / "trajectories").glob(".*")) == []
