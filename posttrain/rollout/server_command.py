"""A replica's command line: vLLM's own API server with the flags and the environment that the trainer counts on.

What else vLLM's server takes (tensor and data parallel sizes, `--headless` nodes, Ray) is passed through.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from posttrain.config.schema import RolloutSettings
from posttrain.rollout.vllm_settings import engine_arguments, window_of
from posttrain.rollout.weights import engine_dtype

WORKER = "posttrain.rollout.server_worker.ReplicaWorker"


def flags(settings: RolloutSettings, config: Any, device: torch.device) -> list[str]:
    """vLLM's flags for a replica of a model of `config` on `device`; UserError where a setting does not fit."""
    arguments = engine_arguments(
        config,
        dtype=engine_dtype(settings.dtype, device),
        window=window_of(config, settings.max_model_len),
        batch_tokens=settings.batch_tokens,
        memory_fraction=settings.memory_fraction,
        with_choices=settings.listed_actions,
        on_cpu=device.type == "cpu",
    )
    arguments |= {
        "tokens_only": True,  # no route but for tokens, and vLLM's own for RL
        "max_logprobs": -1,
        "worker_extension_cls": WORKER,
        "disable_uvicorn_access_log": True,
    }
    if settings.weights_transfer == "nccl":
        arguments["weight_transfer_config"] = '{"backend": "nccl"}'
    if device.type == "cpu":
        arguments["distributed_executor_backend"] = "uni"
    return [part for name, value in arguments.items() for part in _flag(name, value)] + settings.server_arguments


def _flag(name: str, value: Any) -> list[str]:
    spelled = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{spelled}" if value else f"--no-{spelled}"]
    if isinstance(value, list):
        return [f"--{spelled}", *value]
    return [f"--{spelled}", str(value)]


def environment(device: torch.device) -> dict[str, str]:
    """The variables that a replica needs; one that is set already stays."""
    found = {
        "VLLM_SERVER_DEV_MODE": "1",  # vLLM's routes for RL: weights and their versions
        "VLLM_NO_USAGE_STATS": "1",
    }
    if device.type == "cpu":
        found |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the worker in the engine's process, not in one more
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # bound, all replicas would share the first core
            "TORCH_COMPILE_DISABLE": "1",  # ten seconds and a C++ compiler for nothing measurable
        }
    return {name: os.environ.get(name, value) for name, value in found.items()}


def command(model: str, arguments: Sequence[str]) -> list[str]:
    """The process that serves `model` (a directory or a hub id) with vLLM's flags."""
    return [sys.executable, "-m", "posttrain.rollout.server_main", model, *arguments]


def as_line(model: str, arguments: Sequence[str], variables: Mapping[str, str]) -> str:
    """The plain line for a shell: `vllm serve` with the flags, and the environment before it."""
    words = [f"{name}={value}" for name, value in variables.items()]
    return shlex.join([*words, "vllm", "serve", model, *arguments])


def write_config(config: Any, architecture: str, directory: Path) -> str:
    """Write the config.json that a server of this model starts from; weights come later. The directory's name."""
    import copy

    written = copy.deepcopy(config)
    written.architectures = [architecture]
    directory.mkdir(parents=True, exist_ok=True)
    written.save_pretrained(directory)
    return str(directory)
