"""An episode that a chat template breaks into several training sequences counts once, in every algorithm."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from posttrain.algorithms import load
from posttrain.data.plan import microbatches
from posttrain.estimator import Algorithm, Source, TokenBatch, TokenSequence, reduce
from posttrain.estimator.diagnostics import means, merge
from tests.algorithms.conftest import SAID
from tests.algorithms.test_invariance import EACH, FEW, SEEDS, close

_PER_ACTION = ("behavior_logprobs", "old_logprobs", "reference_logprobs", "old_values", "targets")


def cuts_of(length: int, draw: random.Random) -> list[int]:
    """Where an episode of `length` actions is broken: nowhere, or before some of its actions."""
    return sorted(draw.sample(range(1, length), min(draw.randint(0, 2), length - 1)))


def joined(whole: TokenSequence, cuts: Sequence[int]) -> TokenSequence:
    """The episode as one sequence: another's token stands before each action at which it may be broken."""
    mask = [False]
    for action in range(whole.num_actions):
        mask += [False, True] if action in cuts else [True]
    return replace(whole, token_ids=(whole.token_ids[0],) * len(mask), action_mask=tuple(mask))


def pieces(whole: TokenSequence, cuts: Sequence[int], trajectory: int) -> list[TokenSequence]:
    """The episode as the sequences between the cuts."""
    found = []
    for start, end in zip([0, *cuts], [*cuts, whole.num_actions], strict=True):
        recorded: dict[str, Any] = {name: getattr(whole, name) for name in _PER_ACTION}
        recorded = {name: values and values[start:end] for name, values in recorded.items()}
        mask = (False,) + (True,) * (end - start)
        ids = (whole.token_ids[0],) * len(mask)
        found.append(replace(whole, token_ids=ids, action_mask=mask, trajectory=trajectory, **recorded))
    return found


def both(here: Any, seed: int) -> tuple[list[TokenSequence], list[TokenSequence]]:
    """The world's episodes joined, and broken."""
    draw = random.Random(seed)
    one: list[TokenSequence] = []
    several: list[TokenSequence] = []
    for number, row in enumerate(here.rows):
        whole = row.sequence(number)
        cuts = cuts_of(whole.num_actions, draw)
        one.append(joined(whole, cuts))
        several += pieces(whole, cuts, number)
    return one, several


def batch_of(sequences: Sequence[TokenSequence], like: TokenBatch) -> TokenBatch:
    """Their batch, with what the policy says of the same actions in `like`."""
    said = {name: getattr(like, name) for name in ("logprobs", *SAID)}
    return TokenBatch.from_sequences(sequences, dtype=torch.float64).replace(**said)


@EACH
@FEW
@given(seed=SEEDS, ungraded=st.sampled_from([0.0, 0.3]))
def test_a_broken_episode_is_one(
    algorithm: Algorithm, seed: int, ungraded: float, world_for: Any, gradient: Any
) -> None:
    """Coefficients of action tokens, gradients and figures, in one batch and in micro-batches."""
    here = world_for(algorithm, seed, ungraded=ungraded)
    like, leaf = here.leaf_batch()
    one, several = both(here, seed)
    assert len(several) > len(one)
    whole, broken = batch_of(one, like), batch_of(several, like)
    expected = algorithm(whole)
    wanted = gradient(expected.loss, leaf)
    close(algorithm.pulls(algorithm.prepare(broken)), algorithm.pulls(algorithm.prepare(whole)))
    found = algorithm(broken)
    close(gradient(found.loss, leaf), wanted)
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-9, abs=1e-12)

    prepared = algorithm.prepare(broken)
    active = algorithm.active(prepared).nonzero().squeeze(1).tolist()
    counts = algorithm.counts(prepared)
    loss, figures = torch.zeros((), dtype=torch.float64), []
    for rows in microbatches([several[row] for row in active], 1, algorithm.couples):
        totals, some = algorithm.totals(prepared.take(torch.tensor([active[row] for row in rows])))
        loss = loss + reduce(totals, counts)
        figures.append(some)
    close(gradient(loss, leaf), wanted)
    if len(active) == len(several):
        assert means(merge(figures)) == pytest.approx(expected.metrics, rel=1e-9, abs=1e-12)


def test_episodes_of_their_own_would_count_more_than_once(world: Any, gradient: Any) -> None:
    """What this is about: without the number, broken episodes weigh more in their group's mean."""
    here = world(3)
    like, leaf = here.leaf_batch()
    one, several = both(here, 3)
    alone = [replace(sequence, trajectory=-1) for sequence in several]
    algorithm = load("grpo", kl_weight=0.0)
    wanted, found = (gradient(algorithm(batch_of(part, like)).loss, leaf) for part in (one, alone))
    assert (wanted - found).abs().max() > 1e-3


def episode(*lengths: int, trajectory: int, reward: float = 1.0, group: int = 0) -> list[TokenSequence]:
    return [
        TokenSequence(
            (0,) * (length + 1), (False, *(True,) * length), Source.ROLLOUTS, group, reward=reward,
            trajectory=trajectory,
        )
        for length in lengths
    ]  # fmt: skip


def test_the_batch_of_broken_episodes() -> None:
    sequences = [*episode(2, 1, trajectory=0), *episode(3, trajectory=1, reward=0.0), *episode(1, 1, trajectory=-1)]
    batch = TokenBatch.from_sequences(sequences)
    assert batch.trajectory_index.tolist() == [0, 0, 1, 2, 3]
    assert batch.piece_lengths.tolist() == [2, 1, 3, 1, 1]
    assert batch.lengths.tolist() == [3, 3, 1, 1]
    assert batch.sequence_index.tolist() == [0, 0, 0, 1, 1, 1, 2, 3]
    assert batch.turn_index is not None
    assert batch.turn_index.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert batch.reward.tolist() == [1, 0, 1, 1]
    assert batch.num_sequences == 4
    part = batch.replace(logprobs=torch.arange(8.0)).take(torch.tensor([1, 2]))
    assert part.logprobs is not None
    assert part.logprobs.tolist() == [2, 3, 4, 5]
    assert part.lengths.tolist() == [3, 3]
    assert part.sequence_index.tolist() == [0, 1, 1, 1]
    assert not part.complete
    assert batch.take(torch.tensor([2, 0, 1])).complete


def test_a_sum_over_part_of_an_episode_is_refused() -> None:
    batch = TokenBatch.from_sequences(episode(2, 1, trajectory=0)).take(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"in another micro-batch; allowed: in a part whose `couples`"):
        batch.sequence_mean(torch.ones(2))


def test_sequences_of_an_episode_agree_and_follow_each_other() -> None:
    first, second = episode(1, 1, trajectory=0)
    (other,) = episode(1, trajectory=1)
    with pytest.raises(ValueError, match=r"trajectory \(.*0, -1, 0\) do not follow each other"):
        TokenBatch.from_sequences([first, other, second])
    with pytest.raises(ValueError, match="differ in reward, solved or weight"):
        TokenBatch.from_sequences([first, replace(second, reward=None)])


def test_the_same_number_in_another_group_is_another_episode() -> None:
    sequences = [*episode(1, trajectory=0), *episode(1, trajectory=0, group=1)]
    assert TokenBatch.from_sequences(sequences).num_sequences == 2
