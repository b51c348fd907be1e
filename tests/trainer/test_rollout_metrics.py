"""Figures of a step's rollouts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from posttrain.trainer.rollout_metrics import rollout_metrics
from posttrain.trainer.step_data import Played, StepData
from posttrain.trajectory import StopReason, Trajectory, Turn

ALONE = SimpleNamespace(num_processes=1)


def episode(*invalid: bool) -> Trajectory:
    turns = tuple(Turn((1,), (2,), (-0.5,), StopReason.STOP, 0, "", invalid="no" if bad else None) for bad in invalid)
    return Trajectory("p", 0, "", {}, turns, reward=1.0, solved=True)


@pytest.mark.parametrize(
    ("played", "expected"),
    [
        ((episode(False, True), episode(True, True, False, False)), {"turns_mean": 3.0, "invalid_actions_share": 0.5}),
        ((episode(False), episode(False)), {}),
    ],
)
def test_episodes_of_several_turns_have_figures_of_their_own(
    played: tuple[Trajectory, ...], expected: dict[str, float]
) -> None:
    data = StepData([], [Played(one, 0, ()) for one in played])
    found = rollout_metrics(data, 1, graded=True, accelerator=ALONE)
    assert {key: found[key] for key in ("turns_mean", "invalid_actions_share") if key in found} == expected
    assert found["pass_rate"] == 1.0 and found["completion_tokens_mean"] == sum(len(t.turns) for t in played) / 2
