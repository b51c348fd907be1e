"""Promise 2: ranks and how weights are spread over them change nothing but rounding (two real processes, gloo)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.trainer.processes import LAUNCH, Run, run_ranks

WAYS = ("cpu_2", "cpu_zero2", "cpu_zero3", "every_weight_spread", "cpu_fsdp2")
LORA = "lora.rank=4"
ONE_PROMPT = "training.prompts_per_step=1"
PADDED = "model.attention=eager"  # whose rows are not packed
TERMS = [
    {"source": "rollouts", "advantage": "group_relative", "denominator": "old", "mask": "clip"},
    {"source": "demonstrations"},
    {"source": "demonstrations", "term": "kl", "advantage": "reference_kl", "weight": 0.1},
]


def _launch_file(way: str, directory: Path) -> Path:
    """The launch file of the recipes, or one in `directory`."""
    if way != "every_weight_spread":  # the recipes' ZeRO-3 keeps small weights whole
        return LAUNCH / f"{way}.yaml"
    zero = {"stage": 3, "stage3_param_persistence_threshold": 0}
    config = {"zero_optimization": zero, "gradient_accumulation_steps": 1, "train_micro_batch_size_per_gpu": 1}
    own = directory / "zero3.json"
    own.write_text(json.dumps(config))
    settings = yaml.safe_load((LAUNCH / "cpu_zero3.yaml").read_text())
    settings["deepspeed_config"] = {"deepspeed_config_file": str(own), "zero3_init_flag": False}
    file = directory / "launch.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file


def _launched(file: Path, recipe: Path, output: Path) -> None:
    """`accelerate launch -m posttrain train`, as a user calls it."""
    launcher = ["accelerate.commands.launch", "--config_file", str(file), "--main_process_port", "0"]
    command = [sys.executable, "-m", *launcher, "-m", "posttrain", "train", str(recipe), "--output", str(output)]
    environment = os.environ | {"DS_ACCELERATOR": "cpu"}
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
            Run(recipe, output, *more).finish()
            found[more] = _weights(output)
        return found[more]

    return weights


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The run directory of two ranks; run once for each way and set of overrides, and not to be changed.

    One of them is started by the launcher itself, with DeepSpeed; test_ranks_faults.py has one without.
    """
    found: dict[tuple[str, ...], Path] = {}

    def directory(recipe: Path, way: str, *more: str) -> Path:
        if (way, *more) not in found:
            output = tmp_path_factory.mktemp("together") / "run"
            file = _launch_file(way, output.parent)
            if (way, *more) == ("cpu_zero2",):
                _launched(file, recipe, output)
            else:
                run_ranks(recipe, output, *more, launch_file=file)
            found[way, *more] = output
        return found[way, *more]

    return directory


def _same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        error = (found[name] - value).norm() / value.norm()
        assert error < 1e-6, f"{name}: {error:.1e}"


@pytest.mark.parametrize(
    ("way", "more"),
    [
        *((way, ()) for way in WAYS),
        *((way, (LORA,)) for way in ("cpu_2", "cpu_zero2", "every_weight_spread", "cpu_fsdp2")),
        ("cpu_fsdp2", (ONE_PROMPT,)),
        *((way, (PADDED,)) for way in ("cpu_2", "cpu_fsdp2")),
    ],
)
def test_two_ranks_make_the_updates_of_one(
    way: str,
    more: tuple[str, ...],
    recipe: Path,
    alone: Callable[..., dict[str, torch.Tensor]],
    together: Callable[..., Path],
) -> None:
    output = together(recipe, way, *more)
    assert len(list((output / "checkpoints" / "step_2").glob("pending_*.jsonl"))) == 2
    _same(_weights(output), alone(recipe, *more))


@pytest.mark.parametrize("way", ["cpu_2", "every_weight_spread", "cpu_fsdp2"])
def test_two_ranks_resume_exactly(way: str, recipe: Path, together: Callable[..., Path], tmp_path: Path) -> None:
    shutil.copytree(together(recipe, way, "training.steps=1"), tmp_path / "parts")
    run_ranks(recipe, tmp_path / "parts", "--resume", launch_file=_launch_file(way, tmp_path))
    whole, parts = _weights(together(recipe, way)), _weights(tmp_path / "parts")
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


@pytest.mark.parametrize(("way", "num_ranks"), [("cpu_2", 3), ("cpu_zero2", 1), ("cpu_zero3", 3), ("cpu_fsdp2", 1)])
def test_a_window_of_two_ranks_goes_on_with_another_number(
    way: str,
    num_ranks: int,
    recipe: Path,
    alone: Callable[..., dict[str, torch.Tensor]],
    together: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """The rest of the window is shared out anew; nothing but rounding tells the result from that of one rank."""
    shutil.copytree(together(recipe, way, "training.steps=1"), tmp_path / "run")
    file = _launch_file(way, tmp_path)
    printed = run_ranks(recipe, tmp_path / "run", "--resume", launch_file=file, num_ranks=num_ranks)
    assert f"resuming on {num_ranks} ranks what 2 began" in printed
    _same(_weights(tmp_path / "run"), alone(recipe))


def test_one_process_goes_on_with_what_two_began(
    recipe: Path, alone: Callable[..., dict[str, torch.Tensor]], together: Callable[..., Path], tmp_path: Path
) -> None:
    shutil.copytree(together(recipe, "cpu_2", "training.steps=1"), tmp_path / "run")
    Run(recipe, tmp_path / "run", "--resume").finish()
    _same(_weights(tmp_path / "run"), alone(recipe))
