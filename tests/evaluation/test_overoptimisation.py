"""Proxy and gold reward over KL: a fall is seen, noise and rises are not, and a run's report shows it."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import load_recipe
from posttrain.evaluation.overoptimisation import KL, overoptimisation
from posttrain.evaluation.report_data import reward_weights
from posttrain.trainer import train

WEIGHTS = {"proxy": 1.0, "gold": 0.0}


def rows(gold: Any, num_steps: int = 100, noise: float = 0.05, seed: int = 0) -> list[dict[str, Any]]:
    """A run whose KL grows with the square of time and whose proxy rises."""
    draw = random.Random(seed)
    return [
        {"step": n + 1, KL: 10 * (n / num_steps) ** 2, "reward_mean": n / num_steps + draw.gauss(0, noise)}
        | {"rewards/gold": gold(n / num_steps) + draw.gauss(0, noise)}
        for n in range(num_steps)
    ]


def test_a_fall_is_seen_where_it_began() -> None:
    """Gao et al.'s form, d (alpha - beta d) with d = sqrt(KL), is highest at alpha / 2 beta: here at half time."""
    (found,) = overoptimisation(rows(lambda t: 4 * t * (1 - t)), WEIGHTS)
    assert found.name == "gold"
    assert 35 <= found.peak_step <= 65
    assert found.peak_kl == pytest.approx(10 * (found.peak_step / 100) ** 2, rel=0.1)
    assert found.fallen == pytest.approx(1 - 4 * 0.95 * 0.05, abs=0.1)
    assert found.seen
    assert "over-optimised" in found.text()


@pytest.mark.parametrize("gold", [lambda t: t, lambda t: 0.5, lambda t: math.log1p(5 * t)])
def test_noise_and_rises_are_no_fall(gold: Any) -> None:
    seen = [overoptimisation(rows(gold, noise=0.1, seed=seed), WEIGHTS)[0].seen for seed in range(40)]
    assert sum(seen) <= 4


def test_a_fall_of_both_is_no_over_optimisation() -> None:
    both = [row | {"reward_mean": row["rewards/gold"]} for row in rows(lambda t: 4 * t * (1 - t))]
    (found,) = overoptimisation(both, WEIGHTS)
    assert found.interval[0] > 0
    assert not found.seen


def test_what_is_not_there() -> None:
    assert overoptimisation(rows(lambda t: t), {"proxy": 1.0}) == []
    assert overoptimisation([{"step": 1, "reward_mean": 1.0, "rewards/gold": 1.0}] * 9, WEIGHTS) == []
    assert overoptimisation(rows(lambda t: t, num_steps=2), WEIGHTS)[0].steps == [1, 2]
    assert reward_weights("rewards:\n- name: a\n  weight: 0\n- name: b\n") == {"a": 0.0, "b": 1.0}
    assert reward_weights("") == reward_weights(": [") == reward_weights("rewards: 3") == {}


def test_a_run_with_a_gold_reward(tmp_path: Path) -> None:
    """Its means are told apart, the KL starts at 0, the gold reward weighs nothing, and the report shows both."""
    proxy = "{name: length_budget, budget_tokens: 2, exact: true, slope: 0.1}"
    gold = "{name: reasoning_gym, strict: false, weight: 0, outcome: true}"
    overrides = [f"rewards=[{proxy}, {gold}]", "training.steps=4"]
    train(load_recipe("tiny/grpo", overrides), tmp_path / "run")
    metrics = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    for row in metrics:
        assert row["reward_mean"] == pytest.approx(row["rewards/length_budget"])
        assert 0 <= row["rewards/reasoning_gym"] <= 1
    assert metrics[0][KL] == pytest.approx(0, abs=1e-4), "the reference is the starting policy"
    assert any(abs(row[KL]) > 1e-5 for row in metrics[1:])
    (found,) = overoptimisation(metrics, reward_weights((tmp_path / "run" / "recipe.yaml").read_text()))
    page = (tmp_path / "run" / "report.html").read_text()
    assert "<h2>Over-optimisation</h2>" in page
    assert f"around step {found.peak_step}" in page
