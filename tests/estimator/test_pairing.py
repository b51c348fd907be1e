"""Pairs out of rollouts: who is compared, with which strength, and that the sampled tokens stay as they are."""

from __future__ import annotations

import math
from typing import Any

import pytest

from posttrain.algorithms import load
from posttrain.batch import Source, TokenSequence
from posttrain.estimator.pairing import BestAgainstWorst, Judge, Neighbours, Ranked


def rollouts(*rewards: float | None) -> list[TokenSequence]:
    """A rollout for each reward; its only action is its number."""
    return [
        TokenSequence((9, number), (False, True), Source.ROLLOUTS, 3, reward=reward, behavior_logprobs=(-0.5,))
        for number, reward in enumerate(rewards)
    ]


def shown(made: list[TokenSequence]) -> list[tuple[int, int, float | None]]:
    """(pair, rollout, reward)."""
    return [(one.pair, one.token_ids[1], one.reward) for one in made]


def table(*strength: float) -> list[list[float]]:
    """The chances of a judge that finds rollout i as good as strength[i]."""
    return [[1 / (1 + math.exp(other - one)) for other in strength] for one in strength]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ((0.5, 2.0, -1.0, 2.0), [(0, 1, 1.0), (0, 2, 0.0)]),
        ((None, 1.0, 0.0, None), [(0, 1, 1.0), (0, 2, 0.0)]),
        ((1.0, 1.0), []),
        ((None, 1.0), []),
        ((None, None), []),
        ((), []),
    ],
)
def test_best_against_worst(rewards: Any, expected: Any) -> None:
    made = BestAgainstWorst()(rollouts(*rewards))
    assert shown(made) == expected
    assert {one.source for one in made} <= {Source.PREFERENCES}
    for one in made:
        assert (one.token_ids[0], one.action_mask, one.behavior_logprobs, one.group) == (9, (False, True), (-0.5,), 3)


def test_neighbours() -> None:
    made = Neighbours()(rollouts(0.0, 1.0, 2.0, 3.0))
    assert shown(made) == [(0, 0, 0.0), (0, 1, 1.0), (1, 2, 2.0), (1, 3, 3.0)]
    assert {one.source for one in made} == {Source.ROLLOUTS}
    assert shown(Neighbours()(rollouts(0.0, None, 2.0, 3.0))) == [(0, 0, 0.0), (0, 2, 2.0)], "graded ones only"
    assert Neighbours()(rollouts(1.0)) == []


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ("mirrored", [(2, 1), (0, 3)]),  # ranks: 2, 0, 3, 1
        ("adjacent", [(2, 0), (0, 3), (3, 1)]),
        ("all", [(2, 0), (2, 3), (2, 1), (0, 3), (0, 1), (3, 1)]),
    ],
)
def test_ranked(pairs: Any, expected: list[tuple[int, int]]) -> None:
    chances = table(1.0, -2.0, 2.0, 0.0)
    made = Ranked(pairs)(rollouts(None, None, None, None), chances)
    assert [one.pair for one in made] == [number for number in range(len(expected)) for _ in range(2)]
    assert [(a.token_ids[1], b.token_ids[1]) for a, b in zip(made[0::2], made[1::2], strict=True)] == expected
    for (i, j), first, second in zip(expected, made[0::2], made[1::2], strict=True):
        assert first.reward == pytest.approx(chances[i][j])
        assert second.reward == pytest.approx(chances[j][i])


def test_ranked_with_hard_labels() -> None:
    chances = table(3.0, 0.1, 0.0, -3.0)
    hard = Ranked("all", hard_threshold=0.6)(rollouts(*[None] * 4), chances)
    assert len(hard) == 10, "of six pairs, that of 0.1 and 0 is left out"
    assert {one.reward for one in hard} == {0.0, 1.0}
    assert len(Ranked("all", hard_threshold=0.5)(rollouts(*[None] * 4), chances)) == 12
    assert Ranked("all", hard_threshold=0.5)(rollouts(None, None), table(1.0, 1.0)) == [], "no strength at all"


def test_ranked_by_rewards() -> None:
    pairing = Ranked("mirrored", judge=None, reward_scale=2.0)
    assert pairing.graded
    made = pairing(rollouts(1.0, None, 3.0))
    assert shown(made) == [(0, 2, pytest.approx(1 / (1 + math.exp(-1)))), (0, 0, pytest.approx(1 / (1 + math.e)))]
    assert not Ranked().graded


@pytest.mark.parametrize("size", [0, 1])
def test_a_group_without_two_makes_no_pair(size: int) -> None:
    for pairs in ("mirrored", "adjacent", "all"):
        assert Ranked(pairs)(rollouts(*[None] * size), table(*[0.0] * size)) == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"judge_template": "{prompt} {first}"}, r"judge_template is '{prompt} {first}'; allowed: text with {prompt}"),
        ({"judge_template": "{prompt} {first} {second} {third}"}, "judge_template is"),
        ({"judge_labels": ("A", "A")}, r"judge_labels is \('A', 'A'\); allowed: two different texts"),
        ({"hard_threshold": 0.4}, r"hard_threshold is 0.4; allowed: at least 0.5, below 1"),
        ({"reward_scale": 0.0}, r"reward_scale is 0.0; allowed: above 0"),
    ],
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load("osp", **settings)


def test_a_judge_is_needed() -> None:
    with pytest.raises(ValueError, match="chances is needed"):
        Ranked()(rollouts(None, None))
    assert Judge().labels == ("A", "B")
