"""Rollouts that start inside a demonstration: what is given, sampled, graded and trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from posttrain.data.chat import encode_demonstration, encode_prompt
from posttrain.data.examples import Example
from posttrain.environments.single_turn import single_turn
from posttrain.rollout.collector import Collector
from posttrain.rollout.resets import first_turn, given_tokens
from posttrain.rollout.seeds import derived_uniform
from posttrain.rollout.sequences import rollout_sequences
from posttrain.trajectory import Group
from tests.rollout.test_collector import SAMPLING, TOKENIZER, LengthGrader, engine

__all__ = ["engine"]


def example(number: int = 0, answer: str | None = "abcdef", *, chat: bool = True) -> Example:
    prompt: Any = f"question {number}"
    completion: Any = answer
    if chat:
        prompt = ({"role": "user", "content": prompt},)
        completion = None if answer is None else ({"role": "assistant", "content": answer},)
    return Example(id=f"rows#{number}", prompt=prompt, completion=completion)


def collect(engine: Any, examples: list[Example], probability: float, size: int = 4, seed: int = 0) -> list[Group]:
    collector = Collector(engine, single_turn(), LengthGrader(), TOKENIZER, SAMPLING, reset_probability=probability)
    return collector.collect(examples, size, seed)


def tokens(groups: list[Group]) -> list[list[tuple[tuple[int, ...], ...]]]:
    """What was continued and what was sampled."""
    return [[(t.turns[0].prompt_ids, t.turns[0].completion_ids) for t in group.trajectories] for group in groups]


@pytest.mark.parametrize("chat", [True, False])
def test_the_policy_goes_on_where_the_demonstration_was_left(engine: Any, chat: bool) -> None:
    examples = [example(number, chat=chat) for number in range(6)]
    for one, group in zip(examples, collect(engine, examples, 1.0), strict=True):
        assert one.completion is not None
        (encoded,) = encode_demonstration(one.prompt, one.completion, TOKENIZER)
        for trajectory in group.trajectories:
            (turn,) = trajectory.turns
            start = len(encode_prompt(one.prompt, TOKENIZER))
            assert 1 <= turn.num_given <= 6, "of the six letters and the end of the turn, the end is left"
            assert turn.prompt_ids == encoded.token_ids[: start + turn.num_given]
            assert trajectory.completion.startswith("abcdef"[: turn.num_given])
            sampled = TOKENIZER.decode(list(turn.completion_ids), skip_special_tokens=True)
            assert trajectory.completion == "abcdef"[: turn.num_given] + sampled
            assert trajectory.reward == float(len(trajectory.completion) % 2 == 0), "graded as a whole"
            (sequence,) = rollout_sequences(trajectory, 0, 0)
            assert sequence.action_mask == (False,) * len(turn.prompt_ids) + (True,) * len(turn.completion_ids)
            assert sequence.behavior_logprobs == turn.logprobs


def test_what_is_given_depends_on_the_place_alone(engine: Any) -> None:
    examples = [example(number) for number in range(4)]
    whole = collect(engine, examples, 0.5)
    assert collect(engine, examples, 0.5) == whole
    assert tokens(collect(engine, examples[2:], 0.5)) == tokens(whole[2:]), "not on the others of the call"
    assert tokens(collect(engine, examples, 0.5, seed=1)) != tokens(whole)
    given = [t.turns[0].num_given for group in whole for t in group.trajectories]
    assert 0 in given
    assert max(given) > 0


def test_without_a_demonstration_or_at_probability_0_nothing_is_given(engine: Any) -> None:
    plain = collect(engine, [example()], 0.0)
    without = collect(engine, [replace(example(), completion=None)], 1.0)
    assert tokens(plain) == tokens(without)
    assert all(t.turns[0].num_given == 0 for t in (*plain[0].trajectories, *without[0].trajectories))


def test_lengths_are_uniform_and_resets_as_frequent_as_asked() -> None:
    turn = tuple(range(5))
    drawn = Counter(len(given_tokens(turn, 0.5, 3, "rows#1", sample)) for sample in range(4000))
    assert drawn[0] == pytest.approx(2000, abs=150)
    assert all(drawn[length] == pytest.approx(500, abs=100) for length in (1, 2, 3, 4))
    assert set(drawn) == set(range(5))
    assert given_tokens((1,), 1.0, 3) == ()


def test_uniform_numbers_are_in_range() -> None:
    drawn = [derived_uniform(1, place) for place in range(1000)]
    assert 0 <= min(drawn) < 0.01
    assert 0.99 < max(drawn) < 1
    assert sum(drawn) / 1000 == pytest.approx(0.5, abs=0.05)


def test_of_a_conversation_only_the_first_turn_is_given() -> None:
    turns = ("one", "and?", "two")
    roles = ("assistant", "user", "assistant")
    completion = tuple({"role": role, "content": text} for role, text in zip(roles, turns, strict=True))
    ids = first_turn(replace(example(), completion=completion), TOKENIZER)
    assert TOKENIZER.decode(list(ids), skip_special_tokens=True) == "one"
    assert len(ids) == 4, "its end belongs to it"


def test_samples_can_be_numbered_from_elsewhere(engine: Any) -> None:
    collector = Collector(engine, single_turn(), LengthGrader(), TOKENIZER, SAMPLING)
    (four,) = collector.collect([example()], 4, 0)
    (two,) = collector.collect([example()], 2, 0, first_sample=2)
    assert tokens([two]) == [one[2:] for one in tokens([four])]
