"""Distillation through the whole trainer: the divergence from a random teacher falls, on any data; and it resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from posttrain.algorithms import load
from posttrain.batch import Source, TokenSequence
from posttrain.config import load_recipe
from posttrain.config.schema import ModelSettings, TeacherSettings, TokenizerSettings, TrainingSettings
from posttrain.errors import RecipeError, UserError
from posttrain.models.load import load_model
from posttrain.models.policy import Policy
from posttrain.models.teacher import load_teacher
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer import train
from posttrain.trainer.explain import explain
from posttrain.trainer.optimizer import make_optimizer, make_schedule
from posttrain.trainer.step import Updater

WriteRecipe = Callable[..., Path]
ON: dict[str, Any] = {"name": "distill", "divergence": "reverse_kl"}
OFF: dict[str, Any] = {"name": "distill", "divergence": "forward_kl", "on_policy": 0.0, "off_policy": 1.0}
MIXED: dict[str, Any] = {"name": "distill", "on_policy": 0.5, "off_policy": 0.5}
ADAPTIVE: dict[str, Any] = OFF | {"divergence": "adaptive"}


@pytest.fixture
def teacher(tiny_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """A random model with pronounced opinions, its vocabulary padded beyond the tokenizer's."""
    settings = ModelSettings(config=tiny_recipe["model"]["config"] | {"vocab_size": 110})
    tokenizer = load_tokenizer(TokenizerSettings(path="characters"), settings)
    model = load_model(settings, tokenizer, seed=11)
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(8)
    model.save_pretrained(tmp_path / "teacher")
    tokenizer.save_pretrained(tmp_path / "teacher")
    return tmp_path / "teacher"


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], teacher: Path) -> dict[str, Any]:
    """On-policy distillation; nothing is graded."""
    del tiny_recipe["rewards"], tiny_recipe["rollout"]["reward_workers"]
    tiny_recipe |= {"algorithm": ON, "teacher": str(teacher), "prompts": tiny_recipe.pop("demonstrations")}
    tiny_recipe["training"] |= {"learning_rate": 0.01, "steps": 12, "prompts_per_step": 8}
    tiny_recipe["checkpoint"]["every_steps"] = 4
    return tiny_recipe


def _off_policy(recipe: dict[str, Any]) -> dict[str, Any]:
    """The same on demonstrations alone."""
    del recipe["rollout"]
    return recipe | {"algorithm": OFF, "demonstrations": recipe.pop("prompts")}


def _metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def _falls(output: Path, source: str) -> None:
    divergence = [row[f"{source}/divergence"] for row in _metrics(output)]
    assert sum(divergence[-3:]) < 0.7 * sum(divergence[:3])


def test_on_policy_without_a_reward(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    assert train(load_recipe(write_recipe(recipe)), tmp_path / "run") is None
    _falls(tmp_path / "run", "rollouts")
    assert all(row["num_sequences"] == 32 for row in _metrics(tmp_path / "run"))


@pytest.mark.parametrize("algorithm", [OFF, ADAPTIVE], ids=lambda algorithm: algorithm["divergence"])
def test_off_policy(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, algorithm: Any) -> None:
    recipe = _off_policy(recipe) | {"algorithm": algorithm}
    assert train(load_recipe(write_recipe(recipe)), tmp_path / "run") is None
    _falls(tmp_path / "run", "demonstrations")


def test_mixed(recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> None:
    recipe |= {"algorithm": MIXED, "demonstrations": recipe["prompts"]}
    recipe["training"] |= {"demonstrations_per_step": 4}
    assert train(load_recipe(write_recipe(recipe)), tmp_path / "run") is None
    for source in ("rollouts", "demonstrations"):
        _falls(tmp_path / "run", source)


def test_neither_checkpoint_nor_export_holds_the_teacher(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    recipe["training"]["steps"] = 1
    train(load_recipe(write_recipe(recipe)), tmp_path / "run")
    train(load_recipe(write_recipe(_off_policy(recipe) | {"algorithm": "sft", "teacher": None})), tmp_path / "sft")
    for file in ("final/model.safetensors", "checkpoints/step_1/model.safetensors"):
        with_teacher, without = (load_file(tmp_path / name / file) for name in ("run", "sft"))
        assert {name: value.shape for name, value in with_teacher.items()} == {
            name: value.shape for name, value in without.items()
        }


@pytest.mark.parametrize("on_policy", [True, False])
def test_a_resumed_run_ends_with_the_same_weights(
    recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, on_policy: bool
) -> None:
    recipe["training"] |= {"steps": 8}
    loaded = load_recipe(write_recipe(recipe if on_policy else _off_policy(recipe)))
    train(loaded, tmp_path / "whole")
    train(loaded, tmp_path / "resumed")
    (tmp_path / "resumed" / "checkpoints" / "step_8").rename(tmp_path / "gone")
    (tmp_path / "resumed" / "final").rename(tmp_path / "also gone")
    train(loaded, tmp_path / "resumed", resume=True)
    assert [row["step"] for row in _metrics(tmp_path / "resumed")] == list(range(1, 9))
    whole, resumed = (load_file(tmp_path / name / "final" / "model.safetensors") for name in ("whole", "resumed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("algorithm", [ON, MIXED, ADAPTIVE], ids=["reverse_kl", "mixed", "adaptive"])
def test_micro_batches_do_not_change_the_update(recipe: dict[str, Any], teacher: Path, algorithm: Any) -> None:
    settings = ModelSettings(config=recipe["model"]["config"], dtype="float64")
    tokenizer = load_tokenizer(TokenizerSettings(path="characters"), settings)
    generator = torch.Generator().manual_seed(0)
    sequences = []
    for row in range(12):
        length = int(torch.randint(1, 9, (1,), generator=generator))
        ids = tuple(torch.randint(6, 90, (5 + length,), generator=generator).tolist())
        source = Source.DEMONSTRATIONS if row % 3 == 2 else Source.ROLLOUTS
        sequences.append(TokenSequence(ids, (False,) * 5 + (True,) * length, source, row // 3))

    def updated(budget: int, chunk_bytes: int) -> torch.Tensor:
        distill = load(algorithm["name"], **{key: algorithm[key] for key in algorithm if key != "name"})
        beside = load_teacher(TeacherSettings(path=str(teacher), dtype="float64"), tokenizer, distill.divergence)
        policy = Policy(load_model(settings, tokenizer, seed=0), beside, chunk_bytes=chunk_bytes)
        training = TrainingSettings(learning_rate=1e-2, steps=10)
        optimizer = make_optimizer(policy, training)
        schedule = make_schedule(optimizer, training)
        Updater(distill, policy, optimizer, schedule, Accelerator(cpu=True), budget, 0.0)(sequences)
        return torch.cat([p.detach().flatten() for p in policy.parameters()])

    whole = updated(100_000, 1 << 28)
    for budget, chunk_bytes in ((1, 1 << 28), (40, 1), (100_000, 3 * 110 * 8)):
        torch.testing.assert_close(updated(budget, chunk_bytes), whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"teacher": None}, "teacher: missing: algorithm 'distill' measures the divergence from a teacher"),
        ({"teacher": {"path": "./nowhere"}}, "teacher.path: './nowhere' does not exist"),
        ({"teacher": {"path": "a/b", "dtpye": "float32"}}, "did you mean 'dtype'"),
        ({"algorithm": {"name": "sft"}}, "teacher: set, but nothing would read it: no term of algorithm 'sft'"),
    ],
)
def test_mistakes(recipe: dict[str, Any], write_recipe: WriteRecipe, change: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(write_recipe(_off_policy(recipe) | change))
    assert expected in str(error.value)


def test_a_teacher_with_other_tokens_stops_the_run_at_its_line(
    recipe: dict[str, Any], write_recipe: WriteRecipe, teacher: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(TokenizerSettings(path=str(teacher)), ModelSettings(path=str(teacher)))
    tokenizer.add_tokens(["<extra>"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    recipe["tokenizer"] = {"path": str(tmp_path / "tokenizer")}
    with pytest.raises(UserError, match=r"tiny\.yaml:\d+: teacher\.path .* 1 of the policy's 103 tokens are not"):
        train(load_recipe(write_recipe(_off_policy(recipe))), tmp_path / "run")


def test_explained(recipe: dict[str, Any], write_recipe: WriteRecipe, teacher: Path) -> None:
    text = explain(str(write_recipe(recipe)), [], "text")
    assert "grad -KL(q || p)" in text
    assert f"{teacher}, frozen, in float32" in text
    assert "none: nothing reads them" in text
