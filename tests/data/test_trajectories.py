"""Recorded trajectories: gathered by prompt, from tables and from the rollouts of a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.config.schema import SourceSettings
from posttrain.data.examples import Outcome
from posttrain.data.sources import load_source
from posttrain.errors import DataError


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def rollout(prompt: str, completion: str, reward: float | None, **more: Any) -> dict[str, Any]:
    """A line as a run writes it."""
    messages = [{"role": "user", "content": prompt}]
    known = {"solved": reward == 1, "stop_reason": "stop", "error": None, "num_turns": 1, "tokens": ["x"]}
    return {"prompt": messages, "completion": completion, "reward": reward} | known | more


def said(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "assistant", "content": text},)


def test_a_table_is_gathered_by_prompt(tmp_path: Path) -> None:
    rows = [("1 + 1", "2", 1.0), ("2 + 2", "5", 0.0), ("1 + 1", "3", 0.25), ("2 + 2", "", None)]
    path = write(tmp_path / "t.jsonl", [{"prompt": p, "completion": c, "reward": r} for p, c, r in rows])
    first, second = load_source(SourceSettings(path=str(path)), "trajectories")
    assert first.id == f"{path}#0"
    assert first.prompt == "1 + 1"
    assert first.outcomes == (Outcome("2", 1.0, solved=True), Outcome("3", 0.25))
    assert second.outcomes == (Outcome("5", 0.0), Outcome("", None))


def test_plain_text_becomes_a_conversation_where_the_recipe_says_so(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"prompt": "1 + 1", "completion": "", "reward": 0}])
    (example,) = load_source(SourceSettings(path=str(path), chat=True), "trajectories")
    assert example.outcomes == (Outcome(said(""), 0.0),)


def test_a_run_without_rollouts_is_no_source(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("seed: 0\n")
    with pytest.raises(DataError, match="this run left no rollouts to read; allowed: "):
        load_source(SourceSettings(path=str(tmp_path)), "trajectories")


@pytest.mark.parametrize("place", ["", "rollouts"])
def test_the_rollouts_of_a_run_are_a_source(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "run" / "rollouts"
    write(folder / "step_10.jsonl", [rollout("b", "late", 1.0), rollout("a", "cut", 0.0, stop_reason="length")])
    write(folder / "step_2.jsonl", [rollout("a", "good", 0.5, solved=True), rollout("a", "", None, error="no luck")])
    source = load_source(SourceSettings(path=str(tmp_path / "run" / place)), "trajectories")
    assert [example.prompt[0]["content"] for example in source] == ["a", "b"]  # type: ignore[index]
    assert source[0].outcomes == (
        Outcome(said("good"), 0.5, solved=True),
        Outcome(said("cut"), 0.0, finished=False),
    )
    assert source.num_skipped == 1
    assert "the rollout had failed: no luck" in source.description


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (rollout("a", "b", 1.0, num_turns=3), "the rollout has 3 turns, of which only the last was kept"),
        ({"prompt": "a", "completion": "b"}, "column 'reward' is missing"),
        ({"prompt": "a", "completion": "b", "reward": "much"}, "must be a number"),
        ({"completion": "", "reward": 1}, "column 'prompt'"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    path = write(tmp_path / "t.jsonl", [row])
    with pytest.raises(DataError, match=f"t.jsonl:1: .*{message}"):
        load_source(SourceSettings(path=str(path)), "trajectories")


def test_rollouts_that_all_failed_are_no_source(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [rollout("a", "", None, error="no luck")])
    with pytest.raises(DataError, match=r"no usable rows .* 1 bad rows"):
        load_source(SourceSettings(path=str(path)), "trajectories")
