"""From a recipe's `rollout.engine` to an engine; what an engine needs is imported when it is chosen."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from posttrain.config.schema import RolloutSettings
from posttrain.rollout.engine import Engine


def check_engine(name: str) -> None:
    """MissingDependencyError where the packages of engine `name` are not installed; nothing is loaded."""
    if name == "vllm" and importlib.util.find_spec("vllm") is None:
        from posttrain.rollout.vllm_process import missing

        raise missing()


def make_engine(settings: RolloutSettings, model: Any, device: torch.device) -> Engine:
    """The engine over its own copy of `model` (bare, as loaded), with the model's weights as version 0."""
    if settings.engine == "vllm":
        from posttrain.rollout.vllm_engine import VllmEngine

        return VllmEngine(
            model,
            dtype=settings.dtype,
            batch_tokens=settings.batch_tokens,
            memory_fraction=settings.memory_fraction,
            max_model_len=settings.max_model_len,
            sleep=settings.sleep,
            device=device,
        )
    from posttrain.rollout.transformers_engine import TransformersEngine

    return TransformersEngine(model, dtype=settings.dtype, batch_tokens=settings.batch_tokens, device=device)
