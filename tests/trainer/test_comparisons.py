"""What a window makes of single completions and of rollouts in pairs, and training on them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from posttrain.algorithms import load
from posttrain.batch import Source, TokenBatch, TokenSequence
from posttrain.config import load_recipe
from posttrain.data.sources import load_source
from posttrain.data.stream import Stream
from posttrain.errors import DataError
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer import train
from posttrain.trainer.comparisons import rollouts_of, usable
from posttrain.trainer.step_data import StepData
from posttrain.trainer.window import WindowBuilder
from posttrain.trajectory import Group, StopReason, Trajectory, Turn

WriteRecipe = Callable[..., Path]


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    """Twelve sums with one answer each, every third one wrong."""
    rows = [
        {"prompt": f"{n} + 1 =", "completion": str(n + 1 + (n % 3 == 0)), "label": n % 3 != 0} for n in range(12)
    ]  # fmt: skip
    path = tmp_path / "labelled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], labelled: Path) -> dict[str, Any]:
    """KTO on the sums."""
    for name in ("demonstrations", "rewards", "rollout"):
        del tiny_recipe[name]
    tiny_recipe |= {"algorithm": {"name": "kto"}, "preferences": {"path": str(labelled), "chat": True}}
    tiny_recipe["training"] |= {"prompts_per_step": 5}
    return tiny_recipe


def _builder(recipe: dict[str, Any], write_recipe: WriteRecipe, rank: int = 0, num_ranks: int = 1) -> WindowBuilder:
    loaded = load_recipe(write_recipe(recipe)).recipe
    stream = Stream([load_source(loaded.preferences[0], "preferences")], [1.0], seed=0)
    algorithm = load(loaded.algorithm.name, **loaded.algorithm.settings)
    tokenizer = load_tokenizer(loaded.tokenizer, loaded.model)
    return WindowBuilder(loaded, algorithm, tokenizer, None, None, rank, num_ranks, preferences=stream)


def _step(builder: WindowBuilder) -> StepData:
    steps = builder.steps(builder.play(0, lambda: pytest.fail("preferences need no collector")))
    return steps[0]


def _halves(builder: WindowBuilder, sequence: TokenSequence) -> tuple[str, str]:
    """Prompt and completion as text."""
    start = sequence.action_mask.index(True)
    decode = builder.tokenizer.decode
    return decode(list(sequence.token_ids[:start])), decode(list(sequence.token_ids[start:]))


def test_each_prompt_stands_with_the_next_ones_completion(recipe: dict[str, Any], write_recipe: WriteRecipe) -> None:
    builder = _builder(recipe, write_recipe)
    sequences = _step(builder).sequences
    own, mismatched = sequences[0::2], sequences[1::2]
    assert len(own) == 5
    assert {one.source for one in sequences} == {Source.PREFERENCES}
    assert all(one.reward in (0.0, 1.0) for one in own)
    assert {(one.reward, one.pair) for one in mismatched} == {(None, -1)}
    texts = [_halves(builder, one) for one in own]
    following = [*texts[1:], texts[0]]
    assert [_halves(builder, one) for one in mismatched] == [
        (prompt, other) for (prompt, _), (_, other) in zip(texts, following, strict=True)
    ]
    assert [one.group for one in mismatched] == [one.group for one in own]


def test_ranks_make_the_same_sequences(recipe: dict[str, Any], write_recipe: WriteRecipe) -> None:
    whole = _step(_builder(recipe, write_recipe)).sequences
    ranks = [_step(_builder(recipe, write_recipe, rank, 2)).sequences for rank in range(2)]
    kept = [sorted((one.token_ids, one.reward is None) for one in part) for part in (whole, ranks[0] + ranks[1])]
    assert kept[0] == kept[1]


def test_what_max_length_leaves_without_an_action_is_left_out(
    recipe: dict[str, Any], write_recipe: WriteRecipe, labelled: Path
) -> None:
    rows = [
        {"prompt": "long " * 30, "completion": "yes", "label": True},
        {"prompt": "hm?", "completion": "n" * 90, "label": False},
        {"prompt": "and?", "completion": "no", "label": True},
    ]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe["training"] |= {"prompts_per_step": 3, "max_length": 60}
    builder = _builder(recipe, write_recipe)
    sequences = _step(builder).sequences
    assert sum(one.reward is not None for one in sequences) == 2
    assert all(one.num_actions and one.num_tokens <= 60 for one in sequences)
    assert builder.maker.num_cut == 2, "a neighbour is not counted twice"


def test_both_sides_of_a_pair_are_read_singly(
    recipe: dict[str, Any], write_recipe: WriteRecipe, labelled: Path
) -> None:
    rows = [{"prompt": f"{n}?", "chosen": f"yes {n}", "rejected": f"no {n}"} for n in range(3)]
    labelled.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe["training"]["prompts_per_step"] = 3
    sequences = _step(_builder(recipe, write_recipe)).sequences
    assert [one.reward for one in sequences] == [1.0, 0.0, None, None] * 3


def test_an_algorithm_of_pairs_names_the_missing_side(recipe: dict[str, Any], write_recipe: WriteRecipe) -> None:
    recipe["algorithm"] = {"name": "dpo"}
    with pytest.raises(DataError, match=r"labelled.jsonl#\d+ has no '(chosen|rejected)' side, and dpo reads pairs"):
        _step(_builder(recipe, write_recipe))


def _rollouts(*rewards: float | None, turns: int = 1, error: str | None = None) -> list[Trajectory]:
    made = []
    for number, reward in enumerate(rewards):
        prompts = [(7, 8), (9,)][:turns]
        played = tuple(Turn(ids, (number, 1), (-0.5, -0.1), StopReason.STOP, 0, "x") for ids in prompts)
        made.append(Trajectory("row", 0, "?", {}, turns=played, reward=reward, temperature=0.7, error=error))
    return made


def test_pairs_keep_the_sampled_tokens() -> None:
    trajectories = _rollouts(0.0, 2.0, 1.0)
    made, rows = rollouts_of(trajectories, 4, load("online_dpo"), None, first_pair=30)
    assert rows == [[1], [0], []]
    assert [(one.token_ids, one.reward, one.pair, one.group) for one in made] == [
        ((7, 8, 1, 1), 1.0, 30, 4),
        ((7, 8, 0, 1), 0.0, 30, 4),
    ]
    assert {(one.behavior_logprobs, one.temperature, one.source) for one in made} == {
        ((-0.5, -0.1), 0.7, Source.PREFERENCES)
    }
    made, rows = rollouts_of(trajectories, 0, load("p3o"), None, first_pair=2)
    assert [(one.pair, one.source) for one in made] == [(2, Source.ROLLOUTS)] * 2
    made, rows = rollouts_of(trajectories, 0, load("grpo"), None, first_pair=2)
    assert (len(made), rows, {one.pair for one in made}) == (3, [[0], [1], [2]], {-1})


def test_empty_completions_are_different_sides() -> None:
    """Their tokens are those of one prompt: the same, and even the same object."""
    prompt, made = (7, 8), []
    for completion, reward in (((), 0.0), ((), 0.2), ((4,), 1.0), ((), 0.4)):
        turn = Turn(prompt, completion, (-0.5,) * len(completion), StopReason.LENGTH, 0, "")
        made.append(Trajectory("row", 0, "?", {}, turns=(turn,), reward=reward))
    sequences, rows = rollouts_of(made, 0, load("p3o"), None, first_pair=0)
    assert [sequences[own].trajectory for (own,) in rows] == [0, 1, 2, 3]
    assert sorted((one.trajectory, one.reward) for one in sequences) == [(0, 0.0), (1, 0.2), (2, 1.0), (3, 0.4)]
    assert TokenBatch.from_sequences(sequences).pair_index.tolist() == [0, 0, 1, 1]


def test_an_episode_of_several_sequences_is_paired_as_a_whole() -> None:
    made, rows = rollouts_of(_rollouts(0.0, 2.0, 1.0, turns=2), 0, load("online_dpo"), None, 7)
    assert rows == [[2, 3], [0, 1], []]
    assert [(one.token_ids[-2:], one.reward, one.pair, one.source) for one in made] == [
        *[((1, 1), 1.0, 7, Source.PREFERENCES)] * 2,
        *[((0, 1), 0.0, 7, Source.PREFERENCES)] * 2,
    ]
    batch = TokenBatch.from_sequences(made)
    assert (batch.lengths.tolist(), batch.pair_index.tolist()) == ([4, 4], [7, 7])
    logprobs = torch.linspace(-2.0, -0.3, 8, dtype=torch.float64, requires_grad=True)
    reference = torch.linspace(-1.0, -2.0, 8, dtype=torch.float64)
    ratios = (logprobs - reference).view(2, 4).sum(1)  # over both turns, each a sequence, of either episode
    (expected,) = torch.autograd.grad(-torch.nn.functional.logsigmoid(0.3 * (ratios[0] - ratios[1])), logprobs)
    loss = load("online_dpo", beta=0.3)(batch.replace(logprobs=logprobs, reference_logprobs=reference)).loss
    torch.testing.assert_close(torch.autograd.grad(loss, logprobs)[0], expected)
    chances = [[0.5, 0.9, 0.8], [0.1, 0.5, 0.6], [0.2, 0.4, 0.5]]
    made, _ = rollouts_of(_rollouts(None, None, None, turns=2), 0, load("osp", pairs="all"), chances, 0)
    assert TokenBatch.from_sequences(made).pair_index.tolist() == [0, 0, 1, 1, 2, 2]


def test_failed_rollouts_are_used_where_a_grade_tells_them_apart() -> None:
    good, failed, empty = _rollouts(None)[0], _rollouts(None, error="engine: gone")[0], Trajectory("row", 0, "?", {})
    group = Group("row", (good, failed, empty))
    assert usable(group, load("hypo")) == [good]
    assert usable(group, load("grpo")) == [good, failed]


def test_pairs_of_different_prompts_and_of_data_have_different_numbers(
    recipe: dict[str, Any], write_recipe: WriteRecipe
) -> None:
    del recipe["preferences"]
    recipe |= {"algorithm": {"name": "osp", "pairs": "all"}, "demonstrations": {"path": "reasoning_gym"}}
    recipe["demonstrations"]["config"] = {"dataset": "chain_sum", "size": 8}
    recipe["training"]["prompts_per_step"] = 2
    loaded = load_recipe(write_recipe(recipe)).recipe
    prompts = Stream([load_source(loaded.demonstrations[0], "demonstrations")], [1.0], seed=0)
    algorithm = load("osp", pairs="all")
    builder = WindowBuilder(loaded, algorithm, load_tokenizer(loaded.tokenizer, loaded.model), prompts, None)
    groups = [Group("row", tuple(_rollouts(None, None, None))) for _ in range(2)]
    asked: list[Any] = []

    def ask(trajectories: Any) -> Any:
        asked.extend(trajectories)
        return [[[0.5, 0.9, 0.8], [0.1, 0.5, 0.6], [0.2, 0.4, 0.5]]] * 2

    collector: Any = SimpleNamespace(collect=lambda *_: groups)
    steps = builder.steps(builder.play(0, lambda: collector), ask)
    assert [len(one) for one in asked] == [3, 3]
    pairs = [one.pair for one in steps[0].sequences]
    assert len(pairs) == 12
    assert sorted(set(pairs)) == [pairs[0] + number for number in range(6)]
    assert all(pairs.count(pair) == 2 for pair in pairs)


@pytest.mark.parametrize("name", ["hypo", "osp", "online_dpo", "p3o"])
def test_training(name: str, tmp_path: Path) -> None:
    more = ["algorithm.kl_weight=1.0"] if name == "hypo" else []
    loaded = load_recipe(f"tiny/{name}", ["training.steps=3", "training.tokens_per_microbatch=200", *more])
    assert train(loaded, tmp_path / "run") is None
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[0], rows[-1]
    if name == "hypo":
        assert first.get("kl/reference_kl", 0.0) == pytest.approx(0, abs=1e-5), "the reference is the starting policy"
        assert last["kl/reference_kl"] != 0
    if name in ("hypo", "osp"):
        assert first["num_failed"] == 0
        assert "num_ungraded" not in first
        assert "pass_rate" not in first
    if name in ("osp", "online_dpo"):
        assert first["preference/margin"] == pytest.approx(0, abs=1e-5)
        assert any(row["preference/margin"] != 0 for row in rows[1:])
    if name == "osp":
        assert all(row["num_sequences"] == 16 for row in rows), "four prompts, two mirrored pairs each"


def test_training_on_single_completions(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe["training"] |= {"steps": 12, "prompts_per_step": 12, "learning_rate": 0.01}
    assert train(load_recipe(write_recipe(recipe)), tmp_path / "run") is None
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(row["num_sequences"], row["num_pruned"]) for row in rows] == [(24, 12)] * 12
    assert rows[0]["prospect/reference_point"] == pytest.approx(0, abs=1e-5)
    assert rows[-1]["prospect/desirable_reward"] > rows[-1]["prospect/undesirable_reward"]
    assert "another's completion" in (tmp_path / "run" / "objective.txt").read_text()
