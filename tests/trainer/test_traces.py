"""Rollouts in trackio: some of each step, as traces that its own database holds."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from posttrain.models.tokenizer import character_tokenizer
from posttrain.trainer.step_data import Played
from posttrain.trainer.traces import trace
from posttrain.trajectory import StopReason, Trajectory, Turn
from tests.trainer.processes import Run

TOKENIZER = character_tokenizer()


def ids(text: str) -> tuple[int, ...]:
    return tuple(TOKENIZER.encode(text, add_special_tokens=False))


def test_a_conversation_has_every_turn_and_what_was_said_in_between() -> None:
    turns = (
        Turn(ids("ask<|assistant|>"), ids("call"), (-0.5,) * 4, StopReason.STOP, 3, "call"),
        Turn(ids("ask<|assistant|>call<|user|>7<|assistant|>"), ids("ok"), (-0.5,) * 2, StopReason.LENGTH, 4, "ok"),
    )
    prompt = ({"role": "system", "content": "be brief"}, {"role": "user", "content": "ask"})
    made = Trajectory("p#0", 1, prompt, {}, turns, rewards={"math": 0.5}, reward=0.5, solved=False)
    made.generation_seconds = 1.5
    found = trace(Played(made, 2, [0]), 9, TOKENIZER)
    assert [(one["role"], one["content"]) for one in found.messages] == [
        ("system", "be brief"),
        ("user", "ask"),
        ("assistant", "call"),
        ("user", "7"),
        ("assistant", "ok"),
    ]
    assert found.metadata["duration_ms"] == 1500
    assert found.metadata["status"] == "ok"
    assert [(one["policy_version"], one["completion_tokens"]) for one in found.metadata["turns"]] == [(3, 4), (4, 2)]
    assert (found.metadata["step"], found.metadata["group"], found.metadata["reward"]) == (9, 2, 0.5)


def test_a_rollout_that_failed_before_a_turn_is_a_trace_too() -> None:
    found = trace(Played(Trajectory("p#0", 0, "ask", {}, error="engine: gone"), 0, []), 1, TOKENIZER)
    assert found.messages == [{"role": "user", "content": "ask"}]
    assert (found.metadata["status"], found.metadata["error"]) == ("error", "engine: gone")


def test_a_run_leaves_traces_of_its_first_groups(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    tiny_recipe["tracking"] = {"trackers": ["trackio"], "project": "tiny", "groups_per_step": 2}
    tiny_recipe["training"]["steps"] = 2
    tracked = {"TRACKIO_DIR": str(tmp_path / "trackio")}
    Run(write_recipe(tiny_recipe), tmp_path / "run", environment=tracked).finish()
    with sqlite3.connect(tmp_path / "trackio" / "tiny.db") as database:
        rows = database.execute("select step, messages, metadata from traces").fetchall()
    metadata = [json.loads(row[2]) for row in rows]
    known = sorted((row[0], one["step"], one["group"]) for row, one in zip(rows, metadata, strict=True))
    assert known == [(step, step, group) for step in (1, 2) for group in (0, 1) for _ in range(4)]
    assert all([one["role"] for one in json.loads(row[1])] == ["user", "assistant"] for row in rows)
