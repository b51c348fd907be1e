"""Promise 2: the number of ranks changes nothing but rounding (two real processes, gloo)."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file


def test_two_ranks_make_the_update_of_one(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    tiny_recipe["training"] |= {"prompts_per_step": 5, "tokens_per_microbatch": 400, "steps": 3}  # uneven shares
    recipe = write_recipe(tiny_recipe)
    weights = []
    for num_ranks in (1, 2):
        output = tmp_path / f"ranks_{num_ranks}"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_ranks}"]
        command = [*launcher, "-m", "posttrain", "train", str(recipe), "--output", str(output)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=180)
        assert result.returncode == 0, result.stdout + result.stderr
        assert len(list((output / "checkpoints" / "step_3").glob("pending_*.jsonl"))) == num_ranks
        weights.append(load_file(output / "final" / "model.safetensors"))
    for name, values in weights[0].items():
        torch.testing.assert_close(weights[1][name], values, rtol=1e-4, atol=1e-5)
