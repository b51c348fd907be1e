"""Training on preferences: pairs from a file, a margin that grows from 0, whole pairs on a rank, and mistakes."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.__main__ import main
from posttrain.algorithms import load
from posttrain.batch import Source
from posttrain.config import load_recipe
from posttrain.config.schema import ModelSettings, TrainingSettings
from posttrain.data.sources import load_source
from posttrain.data.stream import Stream
from posttrain.errors import DataError, RecipeError
from posttrain.models.load import load_model
from posttrain.models.policy import Policy
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer import train
from posttrain.trainer.explain import explain
from posttrain.trainer.optimizer import make_optimizer, make_schedule
from posttrain.trainer.step import Updater, score
from posttrain.trainer.step_data import StepData
from posttrain.trainer.window import WindowBuilder

WriteRecipe = Callable[..., Path]

_FORGETFUL = (
    "{% for m in messages %}{% if m.role == 'user' or loop.last %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
"""A chat template that leaves earlier assistant turns out."""


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Sixteen sums of which the right answer is preferred to a wrong one."""
    rows = []
    for number in range(16):
        a, b = number % 4, number // 4
        rows.append({"prompt": f"{a} + {b} =", "chosen": str(a + b), "rejected": str(a + b + 1) * (1 + number % 3)})
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], pairs: Path) -> dict[str, Any]:
    """DPO on the sums."""
    for name in ("demonstrations", "rewards", "rollout"):
        del tiny_recipe[name]
    tiny_recipe |= {"algorithm": "dpo", "preferences": {"path": str(pairs), "chat": True}}
    return tiny_recipe


def _metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def _builder(recipe: dict[str, Any], write_recipe: WriteRecipe, rank: int = 0, num_ranks: int = 1) -> WindowBuilder:
    loaded = load_recipe(write_recipe(recipe)).recipe
    stream = Stream([load_source(loaded.preferences[0], "preferences")], [1.0], seed=0)
    algorithm = load(loaded.algorithm.name, **loaded.algorithm.settings)
    tokenizer = load_tokenizer(loaded.tokenizer, loaded.model)
    return WindowBuilder(loaded, algorithm, tokenizer, None, None, rank, num_ranks, preferences=stream)


def _step(builder: WindowBuilder) -> StepData:
    window = builder.play(0, lambda: pytest.fail("preferences need no collector"))
    assert window.played == []
    return builder.steps(window)[0]


@pytest.mark.parametrize(
    "algorithm",
    [
        {"name": "dpo"},
        {"name": "dpo", "loss": "ipo", "beta": 0.3, "sft_weight": 0.2},
        {"name": "simpo", "gamma": 0.2},
        {"name": "orpo"},
    ],
)
def test_the_chosen_side_wins(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, algorithm: dict[str, Any]
) -> None:
    recipe["algorithm"] = algorithm
    recipe["training"] |= {"steps": 12, "prompts_per_step": 16, "learning_rate": 0.01}
    assert train(load_recipe(write_recipe(recipe)), tmp_path / "run") is None
    metrics = _metrics(tmp_path / "run")
    assert [row["num_sequences"] for row in metrics] == [32] * 12, "16 pairs a step"
    assert metrics[-1]["epoch"] == 12
    assert metrics[-1]["preference/margin"] > metrics[0]["preference/margin"]
    assert metrics[-1]["preference/accuracy"] > 0.8
    assert (tmp_path / "run" / "final" / "config.json").exists()
    assert "pairs" in (tmp_path / "run" / "objective.txt").read_text()


def test_the_margin_starts_at_0_and_one_step_makes_the_chosen_side_likelier(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe["training"] |= {"steps": 2, "prompts_per_step": 16, "tokens_per_microbatch": 64}
    train(load_recipe(write_recipe(recipe)), tmp_path / "run")
    first, second = _metrics(tmp_path / "run")
    for figure in ("margin", "chosen_reward", "rejected_reward"):
        assert first[f"preference/{figure}"] == pytest.approx(0, abs=1e-6), "the reference is the starting policy"
    assert second["preference/margin"] > 1e-3
    assert second["preference/chosen_reward"] > second["preference/rejected_reward"]
    assert second["preference/accuracy"] > 0.5


def test_a_resumed_run_ends_with_the_same_weights(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe["training"] |= {"learning_rate": 0.01, "schedule": "constant"}
    loaded = load_recipe(write_recipe(recipe))
    train(loaded, tmp_path / "whole")
    train(loaded, tmp_path / "resumed")
    (tmp_path / "resumed" / "checkpoints" / "step_4").rename(tmp_path / "gone")
    (tmp_path / "resumed" / "final").rename(tmp_path / "also gone")
    train(loaded, tmp_path / "resumed", resume=True)
    assert [row["step"] for row in _metrics(tmp_path / "resumed")] == [1, 2, 3, 4]
    whole, resumed = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_pair_becomes_two_sequences(recipe: dict[str, Any], write_recipe: WriteRecipe) -> None:
    recipe["training"]["prompts_per_step"] = 5
    builder = _builder(recipe, write_recipe)
    sequences = _step(builder).sequences
    assert len(sequences) == 10
    for number, (chosen, rejected) in enumerate(zip(sequences[0::2], sequences[1::2], strict=True)):
        assert {chosen.source, rejected.source} == {Source.PREFERENCES}
        assert {chosen.pair, rejected.pair, chosen.group, rejected.group} == {number}
        assert (chosen.reward, rejected.reward) == (1.0, 0.0)
        prompt = chosen.action_mask.index(True)
        assert chosen.token_ids[:prompt] == rejected.token_ids[:prompt]
        question = builder.tokenizer.decode(list(chosen.token_ids[:prompt]))
        a, b = (int(digit) for digit in question if digit.isdigit())
        assert builder.tokenizer.decode(list(chosen.token_ids[prompt:])) == f"{a + b}<|end|>"


def test_ranks_hold_whole_pairs_that_add_up(recipe: dict[str, Any], write_recipe: WriteRecipe) -> None:
    recipe["training"]["prompts_per_step"] = 5
    whole = _step(_builder(recipe, write_recipe)).sequences
    ranks = [_step(_builder(recipe, write_recipe, rank, 2)).sequences for rank in range(2)]
    assert [len(sequences) for sequences in ranks] == [6, 4]
    for sequences in ranks:
        assert [s.pair for s in sequences[0::2]] == [s.pair for s in sequences[1::2]]
    tokens = [s.token_ids for sequences in ranks for s in sequences]
    assert sorted(tokens) == sorted(s.token_ids for s in whole)


def test_a_pair_that_max_length_leaves_without_a_side_is_left_out_whole(
    recipe: dict[str, Any], write_recipe: WriteRecipe, pairs: Path
) -> None:
    long = {"prompt": "what is " * 20, "chosen": "a", "rejected": "b"}
    pairs.write_text(json.dumps(long) + "\n" + json.dumps({"prompt": "hm?", "chosen": "yes", "rejected": "n" * 90}))
    recipe["training"] |= {"prompts_per_step": 2, "max_length": 60}
    sequences = _step(_builder(recipe, write_recipe)).sequences
    assert [s.num_actions for s in sequences] == [4, 60 - sequences[1].action_mask.index(True)]
    assert len({s.pair for s in sequences}) == 1


def test_a_template_that_breaks_a_side_into_several_sequences_is_an_error(
    recipe: dict[str, Any], write_recipe: WriteRecipe, pairs: Path
) -> None:
    def turns(*contents: str) -> list[dict[str, str]]:
        roles = ("assistant", "user", "assistant")
        return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=True)]

    question = [{"role": "user", "content": "1 + 1 ="}]
    row = {"prompt": question, "chosen": turns("2", "sure?", "yes"), "rejected": turns("3", "sure?", "no")}
    pairs.write_text(json.dumps(row))
    recipe["tokenizer"]["chat_template"] = _FORGETFUL
    recipe["preferences"].pop("chat")
    with pytest.raises(DataError, match=r"pairs.jsonl#0: the chat template breaks the chosen side into 2 sequences"):
        _step(_builder(recipe, write_recipe))


@pytest.mark.parametrize("algorithm", ["dpo", "simpo", "orpo"])
def test_micro_batches_and_order_do_not_change_the_update(
    recipe: dict[str, Any], write_recipe: WriteRecipe, algorithm: str
) -> None:
    from accelerate import Accelerator

    model_settings = ModelSettings(config=recipe["model"]["config"], dtype="float64")
    builder = _builder(recipe | {"algorithm": algorithm}, write_recipe)
    tokenizer = builder.tokenizer
    reference = Policy(load_model(model_settings, tokenizer, seed=1))
    sequences = score(reference, _step(builder).sequences, "reference_logprobs", 100_000, Accelerator(cpu=True))

    def updated(budget: int, data: list[Any]) -> torch.Tensor:
        training = TrainingSettings(learning_rate=1e-2, steps=10)
        policy = Policy(load_model(model_settings, tokenizer, seed=0))
        optimizer = make_optimizer(policy, training)
        schedule = make_schedule(optimizer, training)
        update = Updater(load(algorithm), policy, optimizer, schedule, Accelerator(cpu=True), budget, 0.0)
        update(data)
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    whole = updated(100_000, sequences)
    shuffled = random.Random(0).sample(sequences, len(sequences))
    for budget in (1, 40):
        torch.testing.assert_close(updated(budget, shuffled), whole, rtol=0, atol=1e-7)  # norms are in float32


def test_missing_preferences_stop_the_run_before_it_starts(
    recipe: dict[str, Any],
    write_recipe: WriteRecipe,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    del recipe["preferences"]
    path = write_recipe(recipe)
    with pytest.raises(RecipeError, match="preferences: missing: algorithm 'dpo' reads preferences"):
        load_recipe(path)
    monkeypatch.setattr("sys.argv", ["posttrain", "train", str(path)])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert "preferences: missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("section", "value", "expected"),
    [
        ("demonstrations", "owner/name", "demonstrations: set, but nothing would read it: no term of algorithm 'dpo'"),
        ("rewards", "gsm8k", "rewards: set, but nothing would read it: algorithm 'dpo' samples no rollouts"),
        ("algorithm", {"name": "dpo", "loss": "sigmod"}, "sigmoid"),
        ("algorithm", {"name": "dpo", "beta": 0.0}, "algorithm.beta: 0.0 is not allowed; allowed: above 0"),
    ],
)
def test_mistakes(recipe: dict[str, Any], write_recipe: WriteRecipe, section: str, value: Any, expected: str) -> None:
    recipe[section] = value
    with pytest.raises(RecipeError) as error:
        load_recipe(write_recipe(recipe))
    assert expected in str(error.value)


def test_a_row_without_a_rejected_side_is_named(
    recipe: dict[str, Any], write_recipe: WriteRecipe, pairs: Path, tmp_path: Path
) -> None:
    pairs.write_text('{"prompt": "1 + 1 =", "chosen": "2"}\n')
    with pytest.raises(DataError, match=r"pairs.jsonl.*column 'rejected' is missing"):
        train(load_recipe(write_recipe(recipe)), tmp_path / "run")


def test_explained_with_its_data(recipe: dict[str, Any], write_recipe: WriteRecipe) -> None:
    text = explain(str(write_recipe(recipe)), [], "text")
    assert "4 preferences a step, two sequences each" in text
    assert "a frozen copy of the starting model" in text
    assert "0.1 sigma(-0.1 m)" in text
    assert "demonstrations" not in text
