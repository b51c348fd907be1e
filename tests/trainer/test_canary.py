"""Promise 7: a sampler that does not run the trainer's weights stops the run, and a step that changes none is seen."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch

from posttrain.config import load_recipe
from posttrain.errors import RunError
from posttrain.models.weights import named_weights
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.trainer import train
from posttrain.trainer.canary import Canary
from posttrain.trainer.loop import Loop
from posttrain.trainer.setup import build
from posttrain.trainer.watch import WeightWatch, fingerprint

WriteRecipe = Callable[..., Path]


@pytest.fixture
def loop(tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path) -> Any:
    with ExitStack() as stack:
        yield build(load_recipe(write_recipe(tiny_recipe)).recipe, tmp_path / "run", stack, say=lambda line: None)


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_window_is_checked(
    dtype: str, tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path
) -> None:
    tiny_recipe["rollout"]["dtype"] = dtype
    if dtype != "float32":
        tiny_recipe["rollout"]["correction"] = "none"
        tiny_recipe["acknowledge"] = ["sampler_precision"]
    train(load_recipe(write_recipe(tiny_recipe)), tmp_path / "run")
    found = [row["canary_mismatch"] for row in metrics(tmp_path / "run")]
    assert len(found) == 4 and all(0 <= one < (1e-5 if dtype == "float32" else 0.02) for one in found)
    assert all(row["weights_changed"] == 1 for row in metrics(tmp_path / "run"))


def test_weights_that_do_not_arrive_stop_the_run(
    tiny_recipe: dict[str, Any], write_recipe: WriteRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forget(engine: TransformersEngine, weights: Any, version: int) -> None:
        engine.policy_version = version

    monkeypatch.setattr(TransformersEngine, "sync", forget)
    with pytest.raises(RunError, match=r"with policy version 1 .* differ by 0\.\d+ nats on average; allowed: 0\.001"):
        train(load_recipe(write_recipe(tiny_recipe)), tmp_path / "run")
    assert len(metrics(tmp_path / "run")) == 1, "the first step sampled from the weights it had"


@pytest.mark.parametrize(
    "name", ["model.norm.weight", "model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"]
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_one_wrong_weight_is_found(loop: Loop, name: str, dtype: str) -> None:
    model = loop.updater.policy.model
    with torch.no_grad():  # from near uniform to a policy that knows what it says
        for parameter in model.parameters():
            parameter.mul_(4 if parameter.ndim > 1 else 1)
    engine = TransformersEngine(model, dtype=dtype)
    canary = Canary(engine, model, (5, 6, 7), training_dtype=torch.float32)
    expected = canary.expected(loop.updater.policy, loop.accelerator)
    canary.compare(engine, expected)
    weights = dict(named_weights(model))
    weights[name] = weights[name].flip(0) * 1.5
    engine.sync(weights.items(), 1)
    with pytest.raises(RunError, match="does not run the trainer's weights"):
        canary.compare(engine, expected)


def test_the_limit_is_a_multiple_of_the_noise(loop: Loop) -> None:
    assert loop.sampler is not None and loop.sampler.canary is not None
    canary = loop.sampler.canary
    assert canary.noise == 0 and canary.limit(1.0) == 1e-3, "float32 on both sides"
    canary._dtype = torch.bfloat16
    assert canary.limit(1.0) == pytest.approx(4 * 2**-7 * 2)
    canary.noise = 0.1
    assert canary.limit(1.0) == pytest.approx(0.4)
    canary._max_mismatch = 0.7
    assert canary.limit(1.0) == 0.7


def test_a_fingerprint_sees_the_last_bit() -> None:
    module = torch.nn.Linear(50, 40)
    before = fingerprint(module)
    with torch.no_grad():
        module.weight[3, 4] = torch.nextafter(module.weight[3, 4], torch.tensor(9.0))
    assert (before != fingerprint(module)).tolist() == [True, False]
    module.weight.requires_grad_(False)
    assert len(fingerprint(module)) == 1
    assert len(fingerprint(module.bfloat16())) == 1


class OneRank:
    num_processes = 1


def test_steps_that_change_nothing_stop_the_run() -> None:
    module, watch = torch.nn.Linear(4, 4), WeightWatch(max_idle_steps=3)
    watch.before(module)
    moving = {"skipped": 0.0, "learning_rate": 1e-9, "grad_norm": 0.5}
    for quiet in ({"skipped": 1.0}, {"learning_rate": 0.0}, {"grad_norm": 0.0}):
        for _ in range(3):
            assert watch.after(module, OneRank(), moving | quiet) == {"weights_changed": 0.0}
    for _ in range(2):
        watch.after(module, OneRank(), moving)
    with torch.no_grad():
        module.bias.add_(1)
    assert watch.after(module, OneRank(), moving) == {"weights_changed": 1.0}
    for _ in range(2):
        watch.after(module, OneRank(), moving)
    with pytest.raises(RunError, match=r"3 steps with a gradient .* changed no weight"):
        watch.after(module, OneRank(), moving)
