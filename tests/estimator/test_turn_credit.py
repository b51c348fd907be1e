"""Returns of turns, and what they are compared with, against plain loops."""

from __future__ import annotations

import random
import statistics
from typing import Any

import pytest
import torch

from posttrain.algorithms import load
from posttrain.estimator import Source, TokenBatch, TokenSequence
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.turn_credit import EpisodeAndTurn, Peers, TurnReturn

Turn = tuple[int, float, str]
"""Tokens, reward, state."""


def sequence(group: int, turns: list[Turn], graded: bool = True) -> TokenSequence:
    mask: tuple[bool, ...] = ()
    numbers: list[tuple[int, float, str]] = []
    for index, (length, reward, state) in enumerate(turns):
        mask += (False, *(True,) * length)
        numbers += [(index, reward, state)] * length
    index, rewards, states = zip(*numbers, strict=True)
    return TokenSequence(
        tuple(range(len(mask))), mask, Source.ROLLOUTS, group, reward=sum(t[1] for t in turns) if graded else None,
        turn_index=index, turn_rewards=rewards, states=states,
    )  # fmt: skip


def episodes(seed: int) -> list[tuple[int, list[Turn], bool]]:
    draw = random.Random(seed)
    return [
        (
            number // 4,
            [
                (draw.randrange(1, 4), draw.choice([0.0, 0.5, 1.0]), draw.choice(["a", "b", ""]))
                for _ in range(draw.randrange(1, 5))
            ],
            number != 2,
        )
        for number in range(12)
    ]


def by_loop(played: list[tuple[int, list[Turn], bool]], part: TurnReturn) -> list[float]:
    returns, keys = [], []
    for number, (group, turns, graded) in enumerate(played):
        for k, (_, _, state) in enumerate(turns):
            returns.append(sum(part.gamma ** (j - k) * turns[j][1] for j in range(k, len(turns))))
            named: Any = {"group": (), "turn": k, "state": state or (number, k), "none": (number, k)}[part.peers]
            keys.append((group, named, graded))
    found, place = [], 0
    for _, turns, graded in played:
        for length, _, _ in turns:
            peers = [r for r, key in zip(returns, keys, strict=True) if key == keys[place]]
            value = returns[place]
            if not graded:
                value = 0.0
            elif part.peers != "none":
                spread = statistics.stdev(peers) if len(peers) > 1 else 0.0
                value = 0.0 if max(peers) == min(peers) else value - statistics.fmean(peers)
                value = value / (spread + part.epsilon) if part.std else value
            found += [value] * length
            place += 1
    return found


@pytest.mark.parametrize("peers", ["none", "group", "turn", "state"])
@pytest.mark.parametrize("std", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_against_loops(peers: Peers, std: bool, seed: int) -> None:
    played = episodes(seed)
    batch = TokenBatch.from_sequences([sequence(*one) for one in played], torch.float64)
    part = TurnReturn(0.9, peers, std)
    assert part(batch).tolist() == pytest.approx(by_loop(played, part), rel=1e-9, abs=1e-12)
    both = EpisodeAndTurn(GroupRelative(), part, 0.5)(batch)
    whole = batch.broadcast(GroupRelative()(batch))
    assert torch.allclose(both, whole + 0.5 * part(batch))


def test_an_empty_batch() -> None:
    batch = TokenBatch.from_sequences([], torch.float64)
    assert TurnReturn()(batch).shape == (0,)


def test_gigpo_tells_the_turn_that_mattered() -> None:
    """Two episodes of one group from the same room: one goes right and is paid, the other left and is not.

    Their later turns act in rooms of their own; only the choice in the shared state is compared turn by turn.
    """
    played = [(0, [(2, 0.0, "room"), (3, 1.0, "right")], True), (0, [(2, 0.0, "room"), (3, 0.0, "left")], True)]
    batch = TokenBatch.from_sequences([sequence(*one) for one in played], torch.float64)
    advantages = load("gigpo", kl_weight=0.0).prepare(batch).advantages
    assert advantages is not None
    (prepared,) = advantages
    episode = 0.5**0.5
    assert prepared.tolist() == pytest.approx(
        [2 * episode] * 2 + [episode] * 3 + [-2 * episode] * 2 + [-episode] * 3, 1e-5
    )


@pytest.mark.parametrize(
    ("settings", "message"), [({"gamma": 1.5}, "gamma is 1.5"), ({"peers": "all"}, "peers is 'all'")]
)
def test_mistakes(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TurnReturn(**settings)
