"""The collector with a real engine, tokenizer, environments and, end to end, the real grader."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.algorithms import load
from posttrain.config import load_recipe
from posttrain.data.chat import encode_prompt, stop_token_ids
from posttrain.data.examples import Example
from posttrain.data.stream import Stream
from posttrain.environments import Environment, Observation, Step, told
from posttrain.environments.single_turn import single_turn
from posttrain.errors import RunError, TooManyFailuresError, UserError
from posttrain.models.tokenizer import character_tokenizer
from posttrain.reward import Grader, RewardSpec
from posttrain.rollout.collector import Collector, check_failure_rate, rollout_counts
from posttrain.rollout.engine import Sampling
from posttrain.rollout.sequences import rollout_sequences
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainer.redistribute import window_share
from posttrain.trainer.window import Window, WindowBuilder
from posttrain.trajectory import Group, Prompt, StopReason, Trajectory

TOKENIZER = character_tokenizer()
SAMPLING = Sampling(max_tokens=6, stop_token_ids=stop_token_ids(TOKENIZER))


@pytest.fixture(scope="module")
def engine() -> TransformersEngine:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(TOKENIZER),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=200,
    )
    return TransformersEngine(Qwen3ForCausalLM(config), dtype="float32", batch_tokens=4096)


class LengthGrader:
    """Grades in this process: 1 for an even number of characters; odd ones stay ungraded where `strict`."""

    def __init__(self, strict: bool = False) -> None:
        self.strict = strict

    def grade(self, trajectories: Sequence[Trajectory], group_size: int | None = None) -> None:
        for trajectory in trajectories:
            odd = len(trajectory.completion) % 2 == 1
            if trajectory.error is None and not (odd and self.strict):
                trajectory.reward, trajectory.solved = float(not odd), not odd


@dataclass
class Dialogue:
    """Answers every completion with a question, `num_turns` times; fails where told to."""

    num_turns: int
    fails: frozenset[tuple[str, int]] = frozenset()  # (prompt's content, reset number)
    error: type[Exception] = OSError
    resets: dict[str, int] = field(default_factory=dict)
    num_open: int = 0
    capacity: int | None = None
    most_open: int = 0

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Talk]:
        content = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        number = self.resets[content] = self.resets.get(content, -1) + 1
        if (content, number) in self.fails:
            raise self.error(f"no {content}\nsecond line")
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        return Observation(prompt), Talk(self)

    def close(self) -> None:
        assert self.num_open == 0


@dataclass
class Talk:
    dialogue: Dialogue
    turns: int = 0

    async def step(self, action: str) -> Step:
        self.turns += 1
        await asyncio.sleep(0)
        more = Observation(told(f"and {self.turns}?"))
        return Step(more, terminated=self.turns == self.dialogue.num_turns)

    async def close(self) -> None:
        self.dialogue.num_open -= 1


def chat(*contents: str) -> list[Example]:
    return [Example(f"row {c}", ({"role": "user", "content": c},), columns={"answer": c}) for c in contents]


def collector(engine: TransformersEngine, environment: Environment | None = None, **changes: Any) -> Collector:
    made = Collector(engine, environment or single_turn(), LengthGrader(), TOKENIZER, SAMPLING)
    return replace(made, **changes)


def sampled(groups: Sequence[Group]) -> list[tuple[int, ...]]:
    return [turn.completion_ids for group in groups for t in group.trajectories for turn in t.turns]


def test_single_turn_groups(engine: TransformersEngine) -> None:
    examples = [*chat("1+1", "22+3"), Example("plain", "2+2=")]
    groups = collector(engine).collect(examples, 4, seed=5)
    assert [group.prompt_id for group in groups] == ["row 1+1", "row 22+3", "plain"]
    for example, group in zip(examples, groups, strict=True):
        assert len(group.trajectories) == 4
        assert len({trajectory.turns[0].completion_ids for trajectory in group.trajectories}) > 1
        for trajectory in group.trajectories:
            (turn,) = trajectory.turns
            assert turn.prompt_ids == encode_prompt(example.prompt, TOKENIZER)
            assert turn.text == TOKENIZER.decode(turn.completion_ids, skip_special_tokens=True) == trajectory.completion
            assert trajectory.columns == example.columns and trajectory.prompt == example.prompt
            assert trajectory.reward is not None and trajectory.error is None and trajectory.attempt == 0


def test_draws_depend_on_the_seed_and_the_example_alone(engine: TransformersEngine) -> None:
    play, examples = collector(engine), chat("1+1", "22+3", "4")
    together = play.collect(examples, 3, seed=5)
    assert sampled(play.collect(examples, 3, seed=5)) == sampled(together)
    assert sampled([play.collect([example], 3, seed=5)[0] for example in examples]) == sampled(together)
    assert sampled(play.collect(examples, 3, seed=6)) != sampled(together)
    once, again = play.collect([examples[0], examples[0]], 3, seed=5)
    assert sampled([once]) == sampled(together[:1]) != sampled([again])


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_ranks_play_a_prompt_that_comes_again_as_one_rank_does(
    num_ranks: int, engine: TransformersEngine, tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    """Two prompts for a window of eight: each comes four times, and whoever plays it, no two of them are alike."""
    tiny_recipe["training"]["prompts_per_step"] = 4
    tiny_recipe["rollout"]["updates"] = 2
    recipe, algorithm = load_recipe(write_recipe(tiny_recipe)).recipe, load("rloo")

    def windows(size: int) -> list[Window]:
        streams = [Stream([chat("1+1", "22+3")], [1.0], seed=0) for _ in range(size)]
        builders = [WindowBuilder(recipe, algorithm, TOKENIZER, one, None, i, size) for i, one in enumerate(streams)]
        return [builder.play(0, lambda: collector(engine)) for builder in builders]

    (whole,) = windows(1)
    shares = windows(num_ranks)
    assert len(set(map(tuple, zip(*[iter(sampled(whole.groups))] * recipe.rollout.group_size, strict=True)))) == 8
    assert sampled(window_share(shares, 0, 1).groups) == sampled(whole.groups)


def test_turns_are_one_sequence_where_their_text_renders_to_what_was_sampled(engine: TransformersEngine) -> None:
    environment, special = Dialogue(num_turns=3), set(TOKENIZER.all_special_ids) - SAMPLING.stop_token_ids
    (group,) = collector(engine, environment).collect(chat("7"), 12, seed=1)
    assert environment.num_open == 0
    num_sequences = []
    for trajectory in group.trajectories:
        assert len(trajectory.turns) == 3
        sequences = rollout_sequences(trajectory, 0, 0)
        num_sequences.append(len(sequences))
        # The text leaves out special tokens: a turn in which the policy drew one is not rendered as it was sampled.
        assert len(sequences) == 1 + sum(bool(special & set(turn.completion_ids)) for turn in trajectory.turns[:-1])
        pairs = [pair for s in sequences for pair in zip(s.token_ids, s.action_mask, strict=True)]
        actions = tuple(token for token, action in pairs if action)
        assert actions == sum((turn.completion_ids for turn in trajectory.turns), ())
        text = TOKENIZER.decode(sequences[-1].token_ids)
        assert "and 1?<|end|><|assistant|>" in text and "and 2?" in text and "and 3?" not in text
    assert set(num_sequences) > {1}


def test_a_template_that_rewrites_turns_splits_the_episode(engine: TransformersEngine) -> None:
    tokenizer = character_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.role != 'assistant' or loop.last %}{{ m.content }}{% endif %}<|end|>{% endfor %}<|assistant|>"
    )
    (group,) = collector(engine, Dialogue(num_turns=2), tokenizer=tokenizer).collect(chat("7"), 4, seed=1)
    for trajectory in group.trajectories:
        sequences = rollout_sequences(trajectory, 0, 0)
        assert [s.num_actions for s in sequences] == [len(turn.completion_ids) for turn in trajectory.turns]


def test_a_failed_episode_is_played_again(engine: TransformersEngine) -> None:
    environment = Dialogue(1, fails=frozenset({("1", 0), ("2", 0), ("2", 1)}))
    fine, unlucky, broken = collector(engine, environment).collect(chat("0", "1", "2"), 1, seed=1)
    assert [t.attempt for group in (fine, unlucky, broken) for t in group.trajectories] == [0, 1, 1]
    assert unlucky.trajectories[0].reward is not None and unlucky.trajectories[0].error is None
    (failed,) = broken.trajectories
    assert failed.error == "environment: OSError: no 2"
    assert failed.reward is None and failed.solved is None and failed.turns == ()
    assert failed.stop_reason is StopReason.ERROR
    assert environment.num_open == 0


def test_engine_errors_are_counted_and_stop_a_run_where_too_many(engine: TransformersEngine) -> None:
    groups = collector(engine, grader=LengthGrader(strict=True)).collect(chat("1", "9" * 300, "3"), 8, seed=2)
    counts = rollout_counts(groups)
    assert (counts.groups, counts.trajectories) == (3, 24)
    assert counts.graded + counts.ungraded == 24
    cause = "engine: the prompt is 303 tokens; allowed: 199, the model's window less 1"
    odd = counts.causes.pop("no reward", 0)
    assert counts.causes == {cause: 8} and counts.ungraded == 8 + odd and counts.retried == 8
    assert counts.truncated == sum(t.stop_reason is StopReason.LENGTH for group in groups for t in group.trajectories)
    check_failure_rate(groups, counts.ungraded / 24)
    with pytest.raises(TooManyFailuresError, match=rf"{counts.ungraded} of 24 .* 8 x engine: the prompt is 303 tokens"):
        check_failure_rate(groups, 0.3)


def test_without_a_grader_only_errors_are_failures(engine: TransformersEngine) -> None:
    environment = Dialogue(1, fails=frozenset({("0", 0), ("0", 1), ("0", 2), ("0", 3)}))
    groups = collector(engine, environment, grader=None).collect(chat("0", "1", "2", "3"), 2, seed=1)
    assert all(t.reward is None and t.rewards == {} for group in groups for t in group.trajectories)
    check_failure_rate(groups, 0.25, graded=False)
    with pytest.raises(
        TooManyFailuresError, match=r"2 of 8 trajectories failed; allowed: 20% .*2 x environment: OSErr"
    ):
        check_failure_rate(groups, 0.2, graded=False)
    with pytest.raises(TooManyFailuresError, match=r"8 of 8 trajectories are ungraded"):
        check_failure_rate(groups, 0.9)


def test_mistakes_of_the_user_are_not_failures(engine: TransformersEngine) -> None:
    environment = Dialogue(1, fails=frozenset({("1", 0)}), error=UserError)
    with pytest.raises(UserError, match="no 1"):
        collector(engine, environment).collect(chat("0", "1"), 1, seed=1)
    assert environment.num_open == 0
    with pytest.raises(RunError, match=r"plain text prompt plain.*chat: true"):
        collector(engine, Dialogue(2)).collect([Example("plain", "1")], 1, seed=1)


def test_greedy_trajectories_are_scored_at_temperature_1(engine: TransformersEngine) -> None:
    greedy = replace(SAMPLING, temperature=0.0)
    (group,) = collector(engine, sampling=greedy).collect(chat("1"), 2, seed=1)
    assert [trajectory.temperature for trajectory in group.trajectories] == [1.0, 1.0]
    assert len(set(sampled([group]))) == 1


@pytest.fixture
def rewards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A reward plug-in: the share of distinct characters; raises where there are few."""
    (tmp_path / "rewards").mkdir()
    (tmp_path / "rewards" / "distinct_characters.py").write_text(
        "def distinct_characters(completion: str, answer: str, *, least: int = 4) -> float | None:\n"
        '    """1 where all are distinct."""\n'
        "    if len(completion) < least:\n"
        "        raise ValueError('too short')\n"
        "    return len(set(completion)) / len(completion)\n"
    )
    monkeypatch.setenv("POSTTRAIN_PATH", str(tmp_path))
    return "distinct_characters"


def test_with_the_real_grader(engine: TransformersEngine, rewards: str) -> None:
    with Grader([RewardSpec(rewards, weight=2.0)], workers=1) as grader:
        groups = collector(engine, grader=grader).collect(chat("1", "2"), 8, seed=3)
    played = [trajectory for group in groups for trajectory in group.trajectories]
    for trajectory in played:
        text = trajectory.completion
        if len(text) < 4:
            assert trajectory.reward is None and "too short" in str(trajectory.error)
        else:
            assert trajectory.reward == pytest.approx(2 * len(set(text)) / len(text))
            assert trajectory.solved is (len(set(text)) == len(text))
    counts = rollout_counts(groups)
    assert counts.ungraded == sum(len(t.completion) < 4 for t in played) and counts.graded > 0
