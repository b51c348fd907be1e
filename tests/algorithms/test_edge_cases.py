"""Extreme ratios, degenerate groups, empty completions and ungraded rollouts, with known numbers.

What holds for every algorithm is in test_numerics.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from posttrain import catalog
from posttrain.algorithms import load
from posttrain.batch import TokenBatch
from posttrain.estimator import Source


def rollout(row_type: Any, reward: float | None, *, length: int = 2, group: int = 0, **changes: Any) -> Any:
    old = [-1.6094379124341003] * length  # log 1/5: the uniform policy
    values: dict[str, Any] = {"old": old, "reference": old, "reward": reward, "solved": reward == 1.0} | changes
    return row_type(Source.ROLLOUTS, group, [0] * length, [1] * length, **values)


def demonstration(row_type: Any, *, length: int = 2, group: int = 0) -> Any:
    return row_type(Source.DEMONSTRATIONS, group, [0] * length, [2] * length, [0.0] * length, [0.0] * length)


def token_gradient(name: str, rows: list[Any], world_of: Any, gradient: Any, **settings: Any) -> list[float]:
    here = world_of(rows)
    flat = torch.cat(here.logprobs()).detach().requires_grad_()
    return gradient(load(name, **settings)(here.batch(flat)).loss, flat).tolist()


def test_only_the_harmless_side_passes_at_extreme_ratios(row_type: Any, world_of: Any, gradient: Any) -> None:
    far = {sign: [-1.6094379124341003 - sign * 20] for sign in (-1, 1)}
    for sign, clipped in ((1, 1.0), (-1, 0.0)):  # r = e^20: the good one is clipped; e^-20: the bad one
        rows = [rollout(row_type, reward, length=1, old=far[sign]) for reward in (0.0, 1.0)]
        by_reward = token_gradient("grpo", rows, world_of, gradient, kl_weight=0.0)
        assert by_reward[int(clipped)] == 0
        assert by_reward[1 - int(clipped)] != 0


def test_ungraded_are_left_out_of_the_statistics(row_type: Any, world_of: Any, gradient: Any) -> None:
    rows = [rollout(row_type, reward, length=1) for reward in (1.0, 0.0, None, 0.0)]
    # three graded: mean 1/3, deviation sqrt((4/9 + 1/9 + 1/9) / 2) = 0.57735
    deviation = 3**-0.5 + 1e-6
    expected = [-(2 / 3) / deviation / 3, (1 / 3) / deviation / 3, 0.0, (1 / 3) / deviation / 3]
    assert token_gradient("grpo", rows, world_of, gradient, kl_weight=0.0) == pytest.approx(expected, rel=1e-12)
    expected = [-2 / 3 / 3, 1 / 3 / 3, 0.0, 1 / 3 / 3]
    found = token_gradient("grpo", rows, world_of, gradient, kl_weight=0.0, std=False)
    assert found == pytest.approx(expected, rel=1e-12)
    assert token_gradient("reinforce", rows, world_of, gradient) == pytest.approx([-1 / 3, 0, 0, 0], rel=1e-12)
    found = token_gradient("reinforce", rows, world_of, gradient, baseline=0.5)
    assert found == pytest.approx([-0.5 / 3, 0.5 / 3, 0.0, 0.5 / 3], rel=1e-12)


def test_an_ungraded_rollout_is_as_if_it_were_not_there(world: Any, gradient: Any) -> None:
    for name in ("reinforce", "hpt"):
        here = world(5, ungraded=0.4)
        kept = [row for row in here.rows if row.source is not Source.ROLLOUTS or row.reward is not None]
        without = type(here)(here.theta, kept)
        ours, expected = (gradient(load(name)(w.batch()).loss, here.theta) for w in (here, without))
        torch.testing.assert_close(ours, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("name", [m.name for m in catalog.members("algorithms") if m.name != "terms"])
def test_a_rank_without_a_sequence_takes_part(name: str) -> None:
    algorithm, empty = load(name), TokenBatch.from_sequences([], step=0)
    prepared = algorithm.prepare(empty)
    assert not algorithm.active(prepared).any()
    assert not algorithm.counts(prepared).any()


def test_hpt_says_nothing_about_a_prompt_without_a_graded_rollout(row_type: Any, world_of: Any, gradient: Any) -> None:
    rows = [rollout(row_type, None), rollout(row_type, None), demonstration(row_type)]
    assert not any(token_gradient("hpt", rows, world_of, gradient))
    # and with one graded, unsolved rollout the demonstration is imitated: -1/|y| each
    rows = [rollout(row_type, 0.0), rollout(row_type, None), demonstration(row_type)]
    assert token_gradient("hpt", rows, world_of, gradient) == [0, 0, 0, 0, -0.5, -0.5]


@pytest.mark.parametrize(
    "rewards",
    [[0.1, 0.1, 0.1], [1.0], [None, None], [None], [0.3, None, 0.3]],
    ids=["equal", "group of one", "all ungraded", "one ungraded", "equal where graded"],
)
@pytest.mark.parametrize("std", [True, False])
def test_a_group_that_says_nothing_has_no_gradient_and_is_pruned(
    rewards: list[float | None], std: bool, row_type: Any, world_of: Any, gradient: Any
) -> None:
    rows = [rollout(row_type, reward) for reward in rewards]
    assert not any(token_gradient("grpo", rows, world_of, gradient, std=std, kl_weight=0.0))
    algorithm = load("grpo", std=std, kl_weight=0.0)
    assert not algorithm.active(algorithm.prepare(world_of(rows).batch())).any()
    other = [rollout(row_type, reward, group=1, length=1) for reward in (0.0, 1.0)]
    found = token_gradient("grpo", rows + other, world_of, gradient, std=std, kl_weight=0.0)
    assert not any(found[: 2 * len(rows)])
    assert found[-2] == pytest.approx(-found[-1])
    assert found[-2] > 0


def test_an_empty_completion_counts_in_its_group(row_type: Any, world_of: Any, gradient: Any) -> None:
    rows = [rollout(row_type, 1.0, length=1), rollout(row_type, 0.0, length=0)]
    assert token_gradient("grpo", rows, world_of, gradient, std=False, kl_weight=0.0) == pytest.approx([-0.25])


def test_a_missing_tensor_is_named(world: Any) -> None:
    batch = world().batch()
    with pytest.raises(ValueError, match=r"TokenBatch.old_logprobs"):
        load("grpo")(batch.replace(old_logprobs=None))
    with pytest.raises(ValueError, match=r"TokenBatch.reference_logprobs"):
        load("grpo")(batch.replace(reference_logprobs=None))
