"""Promise 1 for the policy-gradient family: gradients of the papers' losses, written on padded tensors, to 1e-9."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.estimator import Source
from posttrain.estimator.weights import Always
from tests.algorithms.names import label
from tests.algorithms.oracle import same_gradient
from tests.algorithms.policy_gradient_losses import (
    Loss,
    cispo,
    dapo,
    dr_grpo,
    dual_clip,
    gspo,
    gspo_token,
    kl_in_reward,
    openrlhf,
    padded,
    reinforce_pp,
    reinforce_pp_baseline,
    rloo,
    sequence_mean,
    surrogate,
    token_mean,
    trl,
    verl,
    with_kl,
)

CASES: list[tuple[str, dict[str, Any], Loss]] = [
    ("rloo", {}, rloo(0.05)),
    ("rloo", {"kl_weight": 0.0}, rloo(0.0)),
    ("dr_grpo", {}, dr_grpo(3000)),
    ("dr_grpo", {"length": 7, "clip_low": 0.1, "clip_high": 0.3}, dr_grpo(7, 0.1, 0.3)),
    ("dapo", {}, dapo()),
    ("dapo", {"clip_high": 0.5}, dapo(high=0.5)),
    ("dapo", {"mixed_only": False}, dapo(mixed_only=False)),
    ("reinforce_pp", {}, reinforce_pp()),
    ("reinforce_pp", {"kl_weight": 0.0}, reinforce_pp(0.0)),
    ("reinforce_pp", {"kl_weight": 0.7}, reinforce_pp(0.7)),
    ("reinforce_pp", {"group_baseline": True}, reinforce_pp_baseline()),
    ("gspo", {}, gspo()),
    ("gspo", {"clip_low": 0.05, "clip_high": 0.1}, gspo(0.05, 0.1)),
    ("gspo", {"clip_low": 0.05, "clip_high": 0.1}, gspo_token(0.05, 0.1)),
    ("cispo", {}, cispo()),
    ("cispo", {"cap": 1.2, "floor": 0.8}, cispo(1.2, 0.8)),
    ("grpo", {"dual_clip": 1.5, "kl_weight": 0.0}, dual_clip),
    ("grpo", {"kl_estimator": "k1"}, with_kl("k1", 0.04)),
    ("grpo", {"kl_estimator": "k2", "kl_weight": 0.5}, with_kl("k2", 0.5)),
    ("grpo", {"kl_estimator": "k3", "kl_weight": 0.5}, with_kl("k3", 0.5)),
    ("grpo", {"kl_place": "reward", "kl_weight": 0.3}, kl_in_reward(0.3)),
    ("grpo", {"preset": "openrlhf"}, openrlhf),
    ("grpo", {"preset": "verl"}, verl),
    ("grpo", {"preset": "trl"}, trl),
    ("grpo", {"preset": "verl", "dual_clip": 1.5, "aggregation": "sequence_mean"}, dual_clip),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("name", "settings", "loss"), CASES, ids=label)
def test_gradient_is_the_papers(
    name: str, settings: dict[str, Any], loss: Loss, binary: bool, seed: int, world: Any
) -> None:
    same_gradient(world(seed, binary=binary), load(name, **settings), lambda here, pieces: loss(padded(here, pieces)))


@pytest.mark.parametrize("aggregation", ["sequence_mean", "token_mean"])
def test_entropy_bonus(aggregation: str, world: Any, gradient: Any) -> None:
    here = world(0)
    algorithm = load("grpo", kl_weight=0.0, entropy_weight=0.3, aggregation=aggregation)
    result = algorithm(here.batch())
    p = padded(here, here.logprobs())
    mean = token_mean if aggregation == "token_mean" else sequence_mean
    expected = gradient(-mean(p, surrogate(p.ratio, p.standard(p.rewards)[:, None]) + 0.3 * p.entropy), here.theta)
    assert (gradient(result.loss, here.theta) - expected).abs().max() <= 1e-9 * expected.abs().max()
    assert result.metrics["entropy/nats"] == pytest.approx(float(token_mean(p, p.entropy).detach()))
    with pytest.raises(ValueError, match=r"TokenBatch.entropy"):
        algorithm(replace(here.batch(), entropy=None))


def test_presets_are_starting_points() -> None:
    explicit = {"dual_clip": 0.0, "kl_weight": 0.04, "aggregation": "sequence_mean"}
    assert load("grpo", preset="verl", **explicit) == load("grpo")
    trl = load("grpo", preset="trl")
    assert trl.needs == {"old_logprobs", "behavior_logprobs", "rewards", "groups"}
    penalised = load("grpo", preset="trl", kl_weight=0.5)
    assert penalised.terms[0] == trl.terms[0]
    assert penalised.terms[1].describe()["weight"] == Always(0.5)
    with pytest.raises(ValueError, match="allowed there: k1"):
        load("grpo", preset="openrlhf", kl_estimator="k3")


def test_group_of_one_and_equal_rewards_have_no_baseline_of_their_own(row_type: Any, world_of: Any) -> None:
    uniform = [-1.6094379124341003]

    def row(reward: float | None, group: int) -> Any:
        return row_type(Source.ROLLOUTS, group, [0], [1], uniform, uniform, reward)

    rows = [row(1.0, 0), row(0.1, 1), row(0.1, 1), row(0.1, 1), row(None, 2), row(None, 2)]
    for name in ("rloo", "dr_grpo", "dapo", "gspo", "cispo"):
        algorithm = load(name)
        assert not algorithm.active(algorithm.prepare(world_of(rows).batch())).any()
    algorithm = load("reinforce_pp")  # its baseline is the batch's: the graded ones differ
    assert algorithm.active(algorithm.prepare(world_of(rows).batch())).tolist() == [True] * 4 + [False] * 2
    for equal in ([row(0.1, i) for i in range(7)], [row(0.3, 0)], [row(None, 0)]):
        assert not algorithm.active(algorithm.prepare(world_of(equal).batch())).any()


def test_batch_statistics_are_those_of_all_ranks(world: Any) -> None:
    here = world(4, ungraded=0.2)
    algorithm = load("reinforce_pp")
    halves = [type(here)(here.theta, [row for row in here.rows if row.group % 2 == part]) for part in (0, 1)]
    moments: list[Tensor] = []

    def note(values: Tensor) -> Tensor:
        moments.append(values)
        return values

    for half in halves:
        algorithm.prepare(half.batch(), note)
    together = [algorithm.prepare(half.batch(), lambda _: sum(moments)).advantages for half in halves]
    whole = algorithm.prepare(here.batch())
    assert whole.advantages is not None
    groups = torch.tensor([row.group % 2 for row in here.rows])
    for part, advantages in enumerate(together):
        rows = (whole.broadcast(groups) == part).nonzero().squeeze(1)
        torch.testing.assert_close(advantages, whole.advantages[:, rows], rtol=1e-12, atol=1e-12)
