"""Steps and windows in other hands: nothing is lost, nothing doubled, groups and pairs stay whole."""

from __future__ import annotations

import pytest

from posttrain.batch import Source, TokenSequence
from posttrain.data.examples import Example
from posttrain.trainer.redistribute import interleaved, step_share, window_share
from posttrain.trainer.step_data import Drawn, Played, StepData
from posttrain.trainer.window import Window
from posttrain.trajectory import Group, Trajectory

NUM_GROUPS = 7


def _sequence(group: int, member: int, local: int) -> TokenSequence:
    """Member of the group `group` of the whole step, which its rank calls `local`; two members are a pair."""
    return TokenSequence((group, member, 1), (False, True, True), Source.ROLLOUTS, local, pair=2 * local + member // 2)


def _share(rank: int, num_ranks: int) -> StepData:
    own = range(NUM_GROUPS)[rank::num_ranks]
    sequences = [_sequence(group, member, local) for local, group in enumerate(own) for member in range(4)]
    played = [Played(_trajectory(f"{group}"), local, [4 * local, 4 * local + 1]) for local, group in enumerate(own)]
    return StepData(sequences, played)


def _trajectory(prompt_id: str) -> Trajectory:
    return Trajectory(prompt_id, 0, "question", {})


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 9])
def test_a_step_of_two_ranks_on_others(num_ranks: int) -> None:
    old = [_share(rank, 2) for rank in range(2)]
    new = [step_share(old, rank, num_ranks) for rank in range(num_ranks)]
    before = sorted(one.token_ids for share in old for one in share.sequences)
    assert sorted(one.token_ids for share in new for one in share.sequences) == before
    for share in new:
        groups: dict[int, set[int]] = {}
        pairs: dict[int, list[tuple[int, int]]] = {}
        for one in share.sequences:
            groups.setdefault(one.group, set()).add(one.token_ids[0])
            pairs.setdefault(one.pair, []).append(one.token_ids[:2])
        assert all(len(found) == 1 for found in groups.values())
        assert sorted(groups) == list(range(len(groups)))
        assert all(
            sorted(found) in ([(g, 0), (g, 1)], [(g, 2), (g, 3)]) for found in pairs.values() for g, _ in found[:1]
        )
        for played in share.played:
            rows = [share.sequences[row] for row in played.rows]
            assert {str(one.token_ids[0]) for one in rows} == {played.trajectory.prompt_id}
            assert {one.group for one in rows} == {played.group}
    assert max(len({one.group for one in s.sequences}) for s in new) == -(-NUM_GROUPS // num_ranks)


def test_as_many_ranks_change_nothing() -> None:
    old = [_share(rank, 2) for rank in range(2)]
    assert [step_share(old, rank, 2) for rank in range(2)] == old


def _window(rank: int, num_ranks: int) -> Window:
    """Two steps of five prompts and three demonstrations; a group for each prompt."""
    steps = [[f"{step}.{i}" for i in range(5)][rank::num_ranks] for step in range(2)]
    drawn = [
        Drawn([Example(i, "q") for i in own], [Example(f"d{i}", "q") for i in range(3)][rank::num_ranks], [], [], [])
        for own in steps
    ]
    groups = [Group(i, (_trajectory(i),)) for own in steps for i in own]
    return Window(3, drawn, groups, epoch=0.5)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 7])
def test_a_window_of_two_ranks_is_that_of_others(num_ranks: int) -> None:
    old = [_window(rank, 2) for rank in range(2)]
    for rank in range(num_ranks):
        assert window_share(old, rank, num_ranks) == _window(rank, num_ranks)


def test_shares_are_put_together_in_their_order() -> None:
    whole = list(range(8))
    assert interleaved([whole[rank::3] for rank in range(3)]) == whole
