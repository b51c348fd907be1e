"""Runs that train a reward model: what is exported, splits, resuming, adapters, padding, and mistakes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.algorithms import load
from posttrain.batch import TokenSequence
from posttrain.config import load_recipe
from posttrain.data.chat import encode_demonstration
from posttrain.data.collate import collate
from posttrain.data.labels import step_ends
from posttrain.errors import DataError, RecipeError, UserError
from posttrain.models.load import load_model
from posttrain.models.scorer import Scorer, classifier_of, pad_apart
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer import train
from posttrain.trainer.explain import explain

WriteRecipe = Callable[..., Path]


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """Sums of which the right answer is preferred to a wrong one, by different margins."""
    rows = [
        {"prompt": f"{n % 4} + {n // 4} =", "chosen": str(n % 4 + n // 4), "rejected": str(n % 4 + n // 4 + 1) * 2}
        | {"margin": 0.1 * (n % 3)}
        for n in range(16)
    ]
    for name in ("demonstrations", "rewards", "rollout"):
        del tiny_recipe[name]
    tiny_recipe["preferences"] = {"path": written(tmp_path / "pairs.jsonl", rows), "chat": True}
    tiny_recipe |= {"algorithm": {"name": "bradley_terry", "centre": 0.01}}
    tiny_recipe["training"] |= {"steps": 25, "prompts_per_step": 16, "learning_rate": 0.01}
    return tiny_recipe


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def test_the_run_exports_a_sequence_classifier(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    """AutoModelForSequenceClassification says of padded texts what the trainer's own reading says of them."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    assert train(load_recipe(write_recipe(recipe)), tmp_path / "run") is None
    rows = metrics(tmp_path / "run")
    at_zero = sum(math.log1p(math.exp(0.1 * (n % 3))) for n in range(16)) / 16  # -log sigma(0 - margin)
    assert rows[0]["reward/loss"] == pytest.approx(at_zero, abs=1e-6)
    assert rows[-1]["reward/accuracy"] > 0.9 > rows[0]["reward/accuracy"] == 0.5
    assert not {"reward/nll", "entropy"} & rows[-1].keys()
    assert "no policy is trained" in (tmp_path / "run" / "objective.txt").read_text()

    final = tmp_path / "run" / "final"
    tokenizer = AutoTokenizer.from_pretrained(final)
    model, info = AutoModelForSequenceClassification.from_pretrained(final, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.config.id2label == {0: "reward"}
    prompt = ({"role": "user", "content": "1 + 2 ="},)
    encoded = [
        encode_demonstration(prompt, ({"role": "assistant", "content": answer},), tokenizer)[0]
        for answer in ("3", "44", "a longer one")
    ]
    padded = tokenizer.pad({"input_ids": [list(one.token_ids) for one in encoded]}, return_tensors="pt")
    scores = model(**padded).logits.squeeze(1)
    rows = collate([TokenSequence(*_fields(one)) for one in encoded], whole=True)
    own = Scorer(model.eval())(rows).values
    ends = torch.tensor([sum(one.action_mask) for one in encoded]).cumsum(0) - 1
    torch.testing.assert_close(own[ends], scores, rtol=1e-5, atol=1e-6)
    assert scores[0] > scores[1]


def _fields(one: Any) -> tuple[Any, ...]:
    from posttrain.batch import Source

    return one.token_ids, one.action_mask, Source.PREFERENCES, 0


def test_micro_batches_change_rounding_alone(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe["algorithm"] = {"name": "goal_contrastive", "num_states": 4}
    recipe["training"] |= {"steps": 3}
    finals = []
    for number, tokens in enumerate((16, 4096)):
        recipe["training"]["tokens_per_microbatch"] = tokens
        train(load_recipe(write_recipe(recipe)), tmp_path / str(number))
        finals.append(load_file(tmp_path / str(number) / "final" / "model.safetensors"))
    for name, tensor in finals[0].items():
        torch.testing.assert_close(tensor, finals[1][name], rtol=1e-3, atol=1e-4)
    assert {"goal/similarity", "goal/rejected_similarity", "reward/accuracy"} <= metrics(tmp_path / "1")[-1].keys()


def test_a_resumed_run_ends_with_the_same_weights(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe["algorithm"] = {"name": "goal_contrastive"}
    recipe["training"] |= {"steps": 4}
    path = write_recipe(recipe)
    train(load_recipe(path), tmp_path / "whole")
    train(load_recipe(path, ["training.steps=2"]), tmp_path / "parts")
    train(load_recipe(path), tmp_path / "parts", resume=True)
    whole, parts = (load_file(tmp_path / run / "final" / "model.safetensors") for run in ("whole", "parts"))
    assert all(torch.equal(tensor, parts[name]) for name, tensor in whole.items())


def test_an_adapter_is_merged_and_the_head_trained(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    from transformers import AutoModelForSequenceClassification

    recipe |= {"lora": {"rank": 4}}
    train(load_recipe(write_recipe(recipe)), tmp_path / "run")
    assert metrics(tmp_path / "run")[-1]["reward/accuracy"] > 0.9
    _, info = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "final", output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


STEPS = [
    {"prompt": f"{n} :", "completions": [f"{n} + 1", "right", f"= {n + 1}"], "labels": [True, None, 0.75]}
    for n in range(8)
] + [{"prompt": f"{n} :", "completions": ["guess"], "labels": [False], "separator": " "} for n in range(8)]  # fmt: skip


def test_steps_are_learnt_where_they_end(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    del recipe["preferences"]
    recipe |= {"algorithm": "process_reward"}
    recipe["trajectories"] = {"path": written(tmp_path / "steps.jsonl", STEPS), "chat": True}
    recipe["training"] |= {"prompts_per_step": 8, "steps": 20}
    train(load_recipe(write_recipe(recipe)), tmp_path / "run")
    rows = metrics(tmp_path / "run")
    assert rows[0]["reward/loss"] == pytest.approx(0.6931, abs=1e-3)
    assert rows[0]["reward/label"] == pytest.approx((1 + 0.75 + 0) / 3), "8 prompts with two labels and with one"
    assert rows[-1]["reward/accuracy"] == 1


def test_the_token_that_completes_each_step() -> None:
    tokenizer = load_tokenizer(*_characters())
    ids = tokenizer("ab\ncd\ne", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    assert step_ends(("ab\n", "cd\n", "e"), ids, tokenizer) == [2, 5, 7]
    assert step_ends(("ab\n", "cd\n", "e"), ids[:5], tokenizer) == [2, None, None]
    with pytest.raises(ValueError, match="not its steps"):
        step_ends(("other",), ids, tokenizer)


def _characters() -> Any:
    from posttrain.config.schema import ModelSettings, TokenizerSettings

    return TokenizerSettings(path="characters"), ModelSettings()


def test_ratings_are_learnt_and_named(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    rows = [
        {"prompt": f"{n} :", "completion": "a" * (n % 3 + 1), "short": 1 - (n % 3) / 2, "attributes": {"even": n % 2}}
        for n in range(12)
    ]
    rows[0]["short"] = None
    del recipe["preferences"]
    recipe |= {"algorithm": {"name": "attribute_regression", "attributes": ["short", "even"]}}
    recipe["trajectories"] = {"path": written(tmp_path / "ratings.jsonl", rows), "chat": True}
    recipe["training"] |= {"prompts_per_step": 12, "steps": 30}
    train(load_recipe(write_recipe(recipe)), tmp_path / "run")
    found = metrics(tmp_path / "run")
    assert found[-1]["reward/loss"] < 0.1 < found[0]["reward/loss"]
    config = json.loads((tmp_path / "run" / "final" / "config.json").read_text())
    assert config["id2label"] == {"0": "short", "1": "even"}
    assert load_file(tmp_path / "run" / "final" / "model.safetensors")["score.weight"].shape[0] == 2


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "a", "completions": ["b"], "labels": [1, 0]}, "a label for each of 1 steps"),
        ({"prompt": "a", "completions": [], "labels": []}, "a list of texts"),
        ({"prompt": "a", "completions": ["b"], "labels": [2]}, "from 0 to 1"),
        ({"prompt": "a", "completions": ["b"]}, "'labels' is missing|column 'labels'"),
    ],
)
def test_steps_that_are_none(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    del recipe["preferences"]
    recipe |= {"algorithm": "process_reward", "trajectories": {"path": written(tmp_path / "bad.jsonl", [row])}}
    with pytest.raises(DataError, match=message):
        train(load_recipe(write_recipe(recipe)), tmp_path / "run")


def test_a_rating_that_no_row_has(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    del recipe["preferences"]
    rows = [{"prompt": "a", "completion": "b", "helpful": 3}]
    recipe |= {"algorithm": "attribute_regression", "trajectories": {"path": written(tmp_path / "bad.jsonl", rows)}}
    with pytest.raises(DataError, match=r"no rating of helpfulness, .*; it has helpful"):
        train(load_recipe(write_recipe(recipe)), tmp_path / "run")


def test_a_margin_must_be_a_number(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "margin": "much"}]
    recipe["preferences"]["path"] = written(tmp_path / "bad.jsonl", rows)
    with pytest.raises(DataError, match="'margin' must be a finite number"):
        train(load_recipe(write_recipe(recipe)), tmp_path / "run")


def test_a_benchmark_is_refused(recipe: dict[str, Any], write_recipe: WriteRecipe) -> None:
    recipe |= {"evaluation": {"name": "gsm8k"}}
    with pytest.raises(RecipeError, match="answers no benchmark"):
        load_recipe(write_recipe(recipe))


def test_memory_is_predicted_without_logits(recipe: dict[str, Any], write_recipe: WriteRecipe) -> None:
    from posttrain.trainer.memory import predict

    loaded = load_recipe(write_recipe(recipe)).recipe
    assert predict(loaded, load("bradley_terry")).logits_chunk == 0
    assert "reward model" in explain(str(write_recipe(recipe)), [], "text")


def test_padding_is_no_end() -> None:
    from posttrain.config.schema import ModelSettings

    tokenizer = load_tokenizer(*_characters())
    tokenizer.pad_token = tokenizer.eos_token
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = ModelSettings(config={"model_type": "llama"} | sizes)
    classifier = classifier_of(load_model(settings, tokenizer, 0), ["reward"])
    pad_apart(classifier, tokenizer, frozenset({tokenizer.eos_token_id}))
    assert tokenizer.pad_token_id not in (None, tokenizer.eos_token_id)
    assert classifier.config.pad_token_id == tokenizer.pad_token_id
    pad_apart(classifier, tokenizer, frozenset(range(len(tokenizer))))
    assert classifier.config.pad_token_id is None


def test_an_architecture_without_a_classifier_is_refused() -> None:
    from posttrain.config.schema import ModelSettings

    tokenizer = load_tokenizer(*_characters())
    model = load_model(
        ModelSettings(config={"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1}), tokenizer, 0
    )
    with pytest.raises(UserError, match="cannot become a reward model"):
        classifier_of(model, ["reward"])
