"""Sequences that go to other ranks take everything with them, and ranks that disagree about the plan stop."""

from __future__ import annotations

import random
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from posttrain.algorithms import load
from posttrain.batch import Source, TokenBatch, TokenSequence, Unit
from posttrain.errors import RunError
from posttrain.rows import Layout
from posttrain.trainer.share import joined, share


def sequences(seed: int, groups: int = 3) -> list[TokenSequence]:
    generator = random.Random(seed)
    found = []
    for group in range(groups):
        for index in range(4):
            length = generator.randrange(4, 30)
            found.append(
                TokenSequence(
                    tuple(generator.randrange(5, 60) for _ in range(length)),
                    (False, False, *(True,) * (length - 2)),
                    Source.ROLLOUTS,
                    group,
                    pair=2 * group + index // 2,
                    reward=float(index % 2),
                    behavior_logprobs=tuple(-generator.random() for _ in range(length - 2)),
                )
            )
    return found


def prepared(own: list[TokenSequence]) -> TokenBatch:
    return load("grpo", kl_weight=0.0).prepare(TokenBatch.from_sequences(own, step=3))


def test_joined_batches_are_the_batch_of_all() -> None:
    first, second = sequences(0), sequences(1, groups=2)
    moved = [replace(one, group=one.group + 3, pair=one.pair + 6) for one in second]
    expected = prepared([*first, *moved])
    found = joined([prepared(first), prepared(second)])
    for entry in fields(TokenBatch):
        ours, theirs = getattr(found, entry.name), getattr(expected, entry.name)
        assert ours.equal(theirs) if isinstance(theirs, Tensor) else ours == theirs, entry.name


def test_what_was_not_recorded_is_zero_beside_what_was() -> None:
    first = sequences(0)
    second = [replace(one, behavior_logprobs=None) for one in sequences(1)]
    found = joined([prepared(first), prepared(second)])
    assert found.behavior_logprobs is not None
    half = sum(one.num_actions for one in first)
    assert found.behavior_logprobs[:half].all()
    assert not found.behavior_logprobs[half:].any()


class Ranks:
    """Runs `share` for every rank of a job in turn, each time with what the others would gather."""

    def __init__(
        self,
        held: list[list[TokenSequence]],
        budgets: list[int],
        monkeypatch: pytest.MonkeyPatch,
        couples: Unit = "",
        layout: Layout = "packed",
    ) -> None:
        self.held, self.budgets, self.patch = held, budgets, monkeypatch
        self.couples, self.layout = couples, layout

    def run(self) -> list[Any]:
        from threading import Barrier, Thread, local

        size = len(self.held)
        barrier, slots, mine = Barrier(size), [[] for _ in range(size)], local()
        found: list[Any] = [None] * size

        def gather(values: list[Any]) -> list[Any]:
            slots[mine.rank] = values
            barrier.wait()
            everything = [one for values in slots for one in values]
            barrier.wait()
            return everything

        self.patch.setattr("accelerate.utils.gather_object", gather)

        def work(rank: int) -> None:
            mine.rank = rank
            own = self.held[rank]
            accelerator = type("Accelerator", (), {"process_index": rank, "num_processes": size})()
            try:
                found[rank] = share(
                    accelerator,
                    prepared(own),
                    own,
                    range(len(own)),
                    self.budgets[rank],
                    self.couples,
                    layout=self.layout,
                    whole=False,
                )
            except RunError as error:
                found[rank] = error

        threads = [Thread(target=work, args=(rank,)) for rank in range(size)]
        for one in threads:
            one.start()
        for one in threads:
            one.join(60)
        return found


def test_every_sequence_is_run_once_with_its_own_advantage(monkeypatch: pytest.MonkeyPatch) -> None:
    held = [sequences(0, groups=8), [], sequences(1, groups=1)]
    shares = Ranks(held, [90] * 3, monkeypatch).run()
    assert len({len(one.microbatches) for one in shares}) == 1
    ran = []
    for one in shares:
        for rows in one.microbatches:
            part = one.batch.take(torch.tensor(rows, dtype=torch.long))
            for index, row in enumerate(rows):
                own = part.sequence_index == index
                ran.append((one.sequences[row].token_ids, part.advantages[:, own].tolist(), part.reward[index].item()))
    expected = []
    for own in held:
        batch = prepared(own)
        for index, one in enumerate(own):
            tokens = batch.sequence_index == index
            expected.append((one.token_ids, batch.advantages[:, tokens].tolist(), one.reward))
    assert sorted(ran) == sorted(expected)
    costs = [sum(len(one.sequences[row].token_ids) for rows in one.microbatches for row in rows) for one in shares]
    assert max(costs) < 1.25 * min(costs)


@pytest.mark.parametrize("couples", ["trajectory", "pair", "group"])
def test_what_moves_together_stays_whole(couples: Unit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sorted by their tokens, the pieces of a unit's trajectories would lie between each other."""
    own = [
        replace(one, pair=one.group, trajectory=index % 4 // 2, reward=1.0)
        for index, one in enumerate(sequences(0, groups=8))
    ]
    shares = Ranks([own, []], [200] * 2, monkeypatch, couples, "shared").run()
    assert any(shares[1].microbatches)
    for one in shares:
        for rows in one.microbatches:
            part = one.batch.take(torch.tensor(rows, dtype=torch.long))
            assert part.complete
            assert part.num_sequences == len({one.sequences[row].trajectory_key for row in rows})


def test_a_rank_without_sequences_takes_what_was_not_recorded_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step puts the current logprobs where no old ones are; zeros in their place would be read as they are."""
    _, other = Ranks([sequences(0, groups=8), []], [90] * 2, monkeypatch).run()
    assert any(other.microbatches)
    assert other.batch.old_logprobs is None
    assert other.batch.behavior_logprobs is not None


def test_ranks_that_plan_differently_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Ranks([sequences(0), sequences(1)], [90, 91], monkeypatch).run()
    assert all(isinstance(one, RunError) for one in found)
    assert "planned the step differently" in str(found[0])
