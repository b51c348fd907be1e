"""Trajectories as training sequences."""

from __future__ import annotations

from dataclasses import replace

from posttrain.batch import Source, TokenBatch
from posttrain.rollout.sequences import rollout_sequences
from posttrain.trajectory import StopReason, Trajectory, Turn


def turn(prompt: tuple[int, ...], completion: tuple[int, ...]) -> Turn:
    logprobs = tuple(-token / 10 for token in completion)
    return Turn(prompt, completion, logprobs, StopReason.STOP, policy_version=3, text="")


def trajectory(*turns: Turn, reward: float | None = 0.5, solved: bool | None = False) -> Trajectory:
    return Trajectory("id", 0, "p", {}, turns=turns, temperature=0.8, reward=reward, solved=solved)


def test_one_turn() -> None:
    (found,) = rollout_sequences(trajectory(turn((1, 2), (3, 4)), reward=1.0, solved=True), group=6, number=2)
    assert found.token_ids == (1, 2, 3, 4)
    assert found.action_mask == (False, False, True, True)
    assert found.behavior_logprobs == (-0.3, -0.4)
    assert (found.source, found.group, found.pair) == (Source.ROLLOUTS, 6, -1)
    assert (found.reward, found.solved, found.temperature, found.weight) == (1.0, True, 0.8, 1.0)


def test_turns_that_continue_each_other_are_one_sequence() -> None:
    (found,) = rollout_sequences(trajectory(turn((1, 2), (3, 4)), turn((1, 2, 3, 4, 5), (6,))), 0, 0)
    assert found.token_ids == (1, 2, 3, 4, 5, 6)
    assert found.action_mask == (False, False, True, True, False, True)
    assert found.behavior_logprobs == (-0.3, -0.4, -0.6)


def test_a_turn_whose_prompt_rewrites_earlier_ones_begins_a_new_sequence() -> None:
    turns = (turn((1, 2), (3, 4)), turn((1, 2, 4, 5), (6,)), turn((1, 2, 4, 5, 6, 7), (8, 9)))
    first, second = rollout_sequences(trajectory(*turns), 0, number=4)
    assert first.token_ids == (1, 2, 3, 4)
    assert second.token_ids == (1, 2, 4, 5, 6, 7, 8, 9)
    assert second.action_mask == (False, False, False, False, True, False, True, True)
    assert first.num_actions + second.num_actions == 5
    assert second.behavior_logprobs == (-0.6, -0.8, -0.9)
    assert (first.trajectory, second.trajectory) == (4, 4)
    assert TokenBatch.from_sequences([first, second]).num_sequences == 1


def test_a_shorter_prompt_begins_a_new_sequence() -> None:
    assert len(rollout_sequences(trajectory(turn((1, 2), (3, 4)), turn((1, 2, 3), (4,))), 0, 0)) == 2


def test_ungraded_and_empty_trajectories() -> None:
    (found,) = rollout_sequences(trajectory(turn((1,), (2,)), reward=None, solved=None), 0, 0)
    assert found.reward is None and found.solved is False
    assert not TokenBatch.from_sequences([found]).graded.any()
    assert rollout_sequences(trajectory(), 0, 0) == []


def test_turns_of_two_speakers_continue_the_conversation_that_is_theirs() -> None:
    turns = (
        turn((1, 2), (3,)),
        turn((7, 8), (9,)),
        turn((1, 2, 3, 4), (5,)),
        turn((7, 8, 9, 4), (6,)),
        turn((1, 2, 3, 4), (2,)),  # it goes on from before a turn that is there already
    )
    first, second, third = rollout_sequences(trajectory(*turns), 0, 0)
    assert first.token_ids == (1, 2, 3, 4, 5) and first.turn_index == (0, 2)
    assert first.action_mask == (False, False, True, False, True)
    assert second.token_ids == (7, 8, 9, 4, 6) and second.turn_index == (1, 3)
    assert third.token_ids == (1, 2, 3, 4, 2) and third.num_actions == 1
    assert TokenBatch.from_sequences([first, second, third]).num_sequences == 1


def test_the_longest_sequence_is_continued() -> None:
    turns = (turn((1, 2), (3,)), turn((1,), (5,)), turn((1, 2, 3, 4), (6,)))
    first, second = rollout_sequences(trajectory(*turns), 0, 0)
    assert first.token_ids == (1, 2, 3, 4, 6) and second.token_ids == (1, 5)


def test_a_conversation_of_which_nothing_is_learnt_is_left_out() -> None:
    other = replace(turn((7, 8), (9,)), masked=True)
    (found,) = rollout_sequences(trajectory(turn((1, 2), (3,)), other), 0, 0)
    assert found.token_ids == (1, 2, 3)
    (alone,) = rollout_sequences(trajectory(other), 0, 0)
    assert alone.num_actions == 0
