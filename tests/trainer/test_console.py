"""The line of a step: what it says, and of which term."""

from __future__ import annotations

import pytest

from posttrain.trainer.console import Console


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"imitation/nll": 0.5, "grad_norm": 1.0}, "step 1/1 | nll 0.500 | grad norm 1 | 0:00 left"),
        ({"rollouts/nll": 0.5, "odd{}/nll": 2.0}, "step 1/1 | rollouts nll 0.500 | odd{} nll 2.000 | 0:00 left"),
        ({"imitation/nll": 0.5, "pass_rate": 0.25, "reward_mean": 0.5}, "step 1/1 | pass rate 25.0% | reward 0.500"),
    ],
)
def test_a_step(metrics: dict[str, float], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Console(0, 1) as console:
        console.step(1, metrics)
    assert line in capsys.readouterr().out
