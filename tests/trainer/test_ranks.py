"""Promise 2: ranks and how weights are spread over them change nothing but rounding (two real processes, gloo)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from safetensors.torch import load_file

LAUNCH = Path(__file__).parents[2] / "recipes" / "launch"
WAYS = ("cpu_2", "cpu_zero2", "cpu_zero3", "every_weight_spread")
TERMS = [
    {"source": "rollouts", "advantage": "group_relative", "denominator": "old", "mask": "clip"},
    {"source": "demonstrations"},
    {"source": "demonstrations", "term": "kl", "advantage": "reference_kl", "weight": 0.1},
]


def _launched(way: str, recipe: Path, output: Path, *more: str) -> None:
    """`posttrain train` as the launch file `way` starts it."""
    file = LAUNCH / f"{way}.yaml"
    if way == "every_weight_spread":  # the launch file's default keeps small weights whole
        zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
        config = {"zero_optimization": zero, "gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": 1}
        own = recipe.parent / "zero3.json"
        own.write_text(json.dumps(config))
        settings = yaml.safe_load((LAUNCH / "cpu_zero3.yaml").read_text())
        settings["deepspeed_config"] = {"deepspeed_config_file": str(own), "zero3_init_flag": False}
        file = recipe.parent / "launch.yaml"
        file.write_text(yaml.safe_dump(settings))
    launcher = ["accelerate.commands.launch", "--config_file", str(file), "--main_process_port", "0"]
    _run([sys.executable, "-m", *launcher, "-m", "posttrain", "train", str(recipe), "--output", str(output), *more])


def _run(command: list[str]) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr


def _weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "final" / "model.safetensors")


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> Path:
    """Rollouts, imitation and a reference, uneven shares, two steps a window."""
    tiny_recipe["algorithm"] = {"terms": TERMS}
    tiny_recipe["rollout"]["updates"] = 2
    tiny_recipe["training"] |= {"prompts_per_step": 5, "tokens_per_microbatch": 400, "steps": 2, "epsilon": 1e-4}
    return write_recipe(tiny_recipe)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, torch.Tensor]]:
    """The weights that one rank ends with; run once for each set of overrides."""
    found: dict[tuple[str, ...], dict[str, torch.Tensor]] = {}

    def weights(recipe: Path, *more: str) -> dict[str, torch.Tensor]:
        if more not in found:
            output = tmp_path_factory.mktemp("alone") / "run"
            _run([sys.executable, "-m", "posttrain", "train", str(recipe), "--output", str(output), *more])
            found[more] = _weights(output)
        return found[more]

    return weights


@pytest.mark.parametrize("more", [(), ("lora.rank=4",)], ids=["all weights", "lora"])
@pytest.mark.parametrize("way", WAYS)
def test_two_ranks_make_the_updates_of_one(
    way: str, more: tuple[str, ...], recipe: Path, alone: Callable[..., dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    output = tmp_path / "run"
    _launched(way, recipe, output, *more)
    assert len(list((output / "checkpoints" / "step_2").glob("pending_*.jsonl"))) == 2
    found = _weights(output)
    for name, expected in alone(recipe, *more).items():
        error = (found[name] - expected).norm() / expected.norm()
        assert error < 1e-6, f"{name}: {error:.1e}"


@pytest.mark.parametrize("way", ["cpu_2", "every_weight_spread"])
def test_two_ranks_resume_exactly(way: str, recipe: Path, tmp_path: Path) -> None:
    _launched(way, recipe, tmp_path / "whole")
    _launched(way, recipe, tmp_path / "parts", "training.steps=1")
    _launched(way, recipe, tmp_path / "parts", "--resume")
    whole, parts = _weights(tmp_path / "whole"), _weights(tmp_path / "parts")
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


@pytest.mark.parametrize("path", sorted(LAUNCH.glob("*.yaml")), ids=lambda path: path.stem)
def test_launch_files_are_accelerates(path: Path) -> None:
    config = load_config_from_file(str(path))
    assert f"recipes/launch/{path.name} -m posttrain train RECIPE" in path.read_text()
    assert config.num_processes % config.num_machines == 0
