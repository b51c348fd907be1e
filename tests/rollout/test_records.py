"""Trajectories as plain objects: they come back from JSON equal, bit by bit."""

from __future__ import annotations

import datetime
import json
import math

import numpy as np
import pytest

from posttrain.rollout.records import as_record, from_record, group_of, group_record, to_json
from posttrain.trajectory import Dropped, Group, Prompt, StopReason, Trajectory, Turn

CONVERSATION: Prompt = ({"role": "system", "content": "Add é\u2028."}, {"role": "user", "content": "1 + 1"})


def trajectory(prompt: Prompt = CONVERSATION, seed: int = 0) -> Trajectory:
    """Two turns whose logprobs use every bit of a double, and every field set."""
    draws = np.random.default_rng(seed)
    logprobs = tuple(draws.normal(size=5).tolist())
    first = Turn(
        (1, 2, 3),
        (4, 150_000),
        logprobs[:2],
        StopReason.STOP,
        7,
        "4 \U0001f600 \udc80",
        num_given=1,
        allowed=((4, 5), (150_000,)),
    )
    second = Turn((1, 2, 3, 4, 150_000, 9), (8, 8, 2), logprobs[2:], StopReason.LENGTH, 8, "")
    return Trajectory(
        "gsm8k#3",
        1,
        prompt,
        {"answer": 2, "meta": {"level": [1, 0.1]}, "none": None},
        turns=(first, second),
        temperature=0.7,
        rewards={"math": 1 / 3, "style": None},
        reward=0.1 + 0.2,
        solved=False,
        error="reward style: too slow",
        dropped=Dropped.STALE,
        generation_seconds=1.25,
        grading_seconds=math.pi,
    )


@pytest.mark.parametrize("prompt", [CONVERSATION, "1 + 1 ="])
def test_a_trajectory_survives_json_exactly(prompt: Prompt) -> None:
    one = trajectory(prompt)
    again = from_record(json.loads(to_json(as_record(one))))
    assert again == one
    assert (again.generation_seconds, again.grading_seconds) == (1.25, math.pi), "which == leaves out"
    assert again.turns[0].stop_reason is StopReason.STOP
    assert again.dropped is Dropped.STALE
    assert type(again.turns[0].completion_ids) is tuple


def test_what_failed_before_a_turn_survives() -> None:
    one = Trajectory("p#0", 0, "hello", {}, error="engine: gone")
    assert from_record(json.loads(to_json(as_record(one)))) == one


def test_a_group_survives() -> None:
    group = Group("gsm8k#3", (trajectory(), trajectory(seed=1)))
    assert group_of(json.loads(to_json(group_record(group)))) == group


def test_a_record_shares_nothing_with_its_trajectory() -> None:
    one = trajectory()
    as_record(one)["rewards"]["math"] = 5.0
    assert one.rewards["math"] == 1 / 3


def test_a_column_that_json_does_not_have_becomes_its_text() -> None:
    one = Trajectory("p#0", 0, "hello", {"day": datetime.date(2026, 1, 2)})
    assert from_record(json.loads(to_json(as_record(one)))).columns == {"day": "2026-01-02"}


def test_a_record_that_lacks_a_field_is_no_trajectory() -> None:
    record = as_record(trajectory())
    del record["attempt"]
    with pytest.raises(KeyError, match="attempt"):
        from_record(record)
