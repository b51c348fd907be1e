"""The report of a run with a trajectory store: turns, versions, marks and counts, and a page of bounded size."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.evaluation import report_data, report_store
from posttrain.evaluation.report import write_report
from posttrain.evaluation.report_store import stored_rollouts
from posttrain.models.tokenizer import character_tokenizer
from posttrain.trainer.step_data import Played, StepData
from posttrain.trainer.store import TrajectoryStore
from posttrain.trajectory import Dropped, EpisodeEnd, Group, StopReason, Trajectory, Turn

TOKENIZER = character_tokenizer()


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


def turn(prompt: str, completion: str, version: int, **more: Any) -> Turn:
    sampled = ids(completion)
    return Turn(ids(prompt), sampled, (-0.5,) * len(sampled), StopReason.STOP, version, completion, **more)


def episode(step: int = 1, **changes: Any) -> Trajectory:
    """Two turns, sampled by two versions of the policy."""
    turns = (turn("ask", "call", step), turn("askcall<|user|>7", "ok", step + 1))
    prompt = ({"role": "user", "content": f"ask {step}"},)
    made = Trajectory("p#0", 0, prompt, {}, turns, rewards={"math": 1.0}, reward=1.0, solved=True)
    return replace(made, generation_seconds=1.5, **changes)


def write(run: Path, step: int, groups: Sequence[Sequence[Trajectory]], left: Sequence[Group] = ()) -> None:
    run.mkdir(exist_ok=True)
    rows = [(one, number) for number, group in enumerate(groups) for one in group]
    played = [Played(one, number, [] if one.error else [row]) for row, (one, number) in enumerate(rows)]
    pulls = [torch.arange(one.num_completion_tokens, dtype=torch.float32) for one, _ in rows]
    TrajectoryStore(run, 0, TOKENIZER).write(step, step - 1, [StepData([], played)], left, [pulls])


def data(run: Path) -> Any:
    page = write_report(run).read_text()
    found = re.search(r'id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return json.loads(found[1])


def test_every_turn_is_shown_with_its_version_and_what_was_said_before_it(tmp_path: Path) -> None:
    write(tmp_path, 3, [[episode(3)]])
    (record,) = data(tmp_path)["rollouts"]
    assert "".join(record["tokens"]) == "callok"
    assert record["advantage"] == [0, 1, 2, 3, 4, 5]
    assert record["logprobs"] == [-0.5] * 6
    assert [(one["start"], one["num_tokens"], one["policy_version"], one["before"]) for one in record["turns"]] == [
        (0, 4, 3, ""),
        (4, 2, 4, "<|user|>7"),
    ]
    assert (record["step"], record["sample"], record["generation_seconds"]) == (3, 0, 1.5)
    assert record["dropped"] is None


def test_tokens_given_by_a_demonstration_are_shown(tmp_path: Path) -> None:
    given = turn("askfirst", "second", 0, num_given=5)
    write(tmp_path, 1, [[episode(turns=(replace(given, text="firstsecond"),))]])
    (record,) = data(tmp_path)["rollouts"]
    assert record["turns"][0]["before"] == "first"
    assert "".join(record["tokens"]) == "second"


def test_what_the_environment_said_of_a_turn_is_shown(tmp_path: Path) -> None:
    picture = "data:image/png;base64,iVBORw0KGgo="
    turns = (
        turn("page 1", "click", 0, reward=0.0, invalid="no such element", masked=True, screenshot=picture),
        turn("page 2", "type", 0, reward=1.0, screenshot="data:image/svg+xml,<svg onload='alert(1)'/>"),
        turn("page 2type more", "ok", 0, screenshot=picture + "A" * report_store.MAX_PICTURE),
    )
    write(tmp_path, 1, [[episode(turns=turns, end=EpisodeEnd.TURNS, outcome=False)]])
    (record,) = data(tmp_path)["rollouts"]
    assert (record["end"], record["outcome"]) == ("turns", False)
    first, second, third = record["turns"]
    assert (first["reward"], first["invalid"], first["masked"]) == (0.0, "no such element", True)
    assert [one["before"] for one in record["turns"]] == ["", "page 2", " more"], "all, where nothing is gone on with"
    assert [one["screenshot"] for one in (first, second, third)] == [picture, "", ""]


def test_what_was_not_trained_on_is_marked_and_counted(tmp_path: Path) -> None:
    failed = episode(turns=(), error="environment: gone", reward=None, solved=None)
    alike = [Group(f"a#{i}", (episode(dropped=Dropped.ALIKE), episode(dropped=Dropped.ALIKE))) for i in range(3)]
    write(tmp_path, 1, [[episode(), failed], [episode(dropped=Dropped.STALE)]], alike)
    records = data(tmp_path)["rollouts"]
    assert [one["dropped"] for one in records] == [None, "unused", "stale"], "one whole group of those left out"
    page = (tmp_path / "report.html").read_text()
    assert "3 of the run's 9 rollouts are here" in page
    for count, cause in (
        (1, "environment: gone"),
        (6, "dynamic sampling drew another prompt"),
        (1, "by a policy older"),
    ):
        assert re.search(rf"<td>{count}</td><td>[^<]*{cause}", page), cause


def test_the_page_is_bounded_and_its_rollouts_are_spread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in range(1, 41):
        write(tmp_path, step, [[episode(step)] * 20] * 6)
    found = stored_rollouts(tmp_path)
    assert found is not None
    assert (len(found.records), found.num_played) == (report_store.MAX_ROLLOUTS // 64 * 64, 40 * 120)
    steps = sorted({one["step"] for one in found.records})
    assert steps[0] == 1
    assert steps[-1] == 40
    assert max(after - before for before, after in pairwise(steps)) <= 20
    assert {sum(one["step"] == step for one in found.records) for step in steps} == {4 * 16}
    small = stored_rollouts(tmp_path, limit=10_000)
    assert small is not None
    assert 0 < len(small.records) < 40
    assert len(json.dumps(small.records)) < 11_000


def test_the_middle_of_a_long_rollout_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_data, "MAX_TOKENS", 10)
    monkeypatch.setattr(report_store, "MAX_TOKENS", 10)
    turns = (turn("a", "1234567", 0), turn("a1234567b", "89abcdef", 1), turn("x", "ghij", 2))
    write(tmp_path, 1, [[episode(turns=turns)]])
    (record,) = data(tmp_path)["rollouts"]
    assert record["tokens"] == [*"12345", " [… 9 tokens left out …] ", *"fghij"]
    starts = [one["start"] for one in record["turns"]]
    assert starts == [0, 5, 7], "the second turn begins in what was left out, the third after it"
    assert record["tokens"][starts[2]] == "g"


def test_a_damaged_shard_is_counted_and_the_rest_is_shown(tmp_path: Path) -> None:
    write(tmp_path, 1, [[episode()]])
    write(tmp_path, 2, [[episode(2)]])
    (tmp_path / "trajectories" / "step_1_rank_0.parquet").write_bytes(b"PAR1")
    assert [one["step"] for one in data(tmp_path)["rollouts"]] == [2]
    assert "1 unreadable shard(s) of trajectories/ left out" in (tmp_path / "report.html").read_text()


def test_without_a_vocabulary_the_text_is_shown(tmp_path: Path) -> None:
    write(tmp_path, 1, [[episode()]])
    (tmp_path / "trajectories" / "tokenizer.json").unlink()
    (record,) = data(tmp_path)["rollouts"]
    assert record["completion"] == "call\n\nok"
    assert "tokens" not in record
