"""Phases of one run: what has no weight in a step is not sampled for it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from posttrain.algorithms import load
from posttrain.config import load_recipe
from posttrain.estimator import Algorithm, PolicyTerm, Source
from posttrain.estimator.weights import During, SolvedGate
from posttrain.trainer import train


def test_imitation_first_then_rollouts(tmp_path: Path) -> None:
    assert train(load_recipe("tiny/sft_then_grpo", ["training.steps=6"]), tmp_path / "run") is None
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["num_groups"] for row in rows] == [0, 0, 0, 0, 4, 4]
    assert all(row["grad_norm"] > 0 and "imitation/nll" in row for row in rows[:4])
    assert all("policy/nll" in row and "imitation/nll" not in row for row in rows[4:])
    assert sum("completion" in line for line in (tmp_path / "run" / "rollouts" / "step_5.jsonl").open()) > 0


def test_what_is_read_is_sampled() -> None:
    early, late = During(last=2), During(first=2)
    both = (
        PolicyTerm(Source.DEMONSTRATIONS, weight=early, name="a"),
        PolicyTerm(Source.ROLLOUTS, weight=late, name="b"),
    )
    assert [Algorithm("x", both).samples_at(step) for step in range(4)] == [False, False, True, True]
    gated = (PolicyTerm(Source.DEMONSTRATIONS, weight=SolvedGate(0, above=False), name="a"), both[1])
    assert Algorithm("x", gated).samples_at(0)
    assert load("grpo").samples_at(0)


def test_a_phase_without_a_step() -> None:
    with pytest.raises(ValueError, match="last above first"):
        During(first=3, last=3)
    assert torch.equal(
        torch.tensor([During(1, 3).at(step) for step in range(4)]), torch.tensor([False, True, True, False])
    )
