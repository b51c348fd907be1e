"""From a recipe's `rollout.engine` to an engine; what an engine needs is imported when it is chosen."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from posttrain.config.schema import RolloutSettings
from posttrain.errors import UserError
from posttrain.rollout.engine import Engine


def check_engine(name: str, servers: Sequence[str] = ()) -> None:
    """MissingDependencyError where the packages of engine `name` are not installed; nothing is loaded.

    servers: where it runs elsewhere, in which case nothing is needed here.
    """
    if name == "vllm" and not servers and importlib.util.find_spec("vllm") is None:
        from posttrain.rollout.vllm_process import missing

        raise missing()


def make_engine(
    settings: RolloutSettings,
    model: Any,
    device: torch.device,
    *,
    directory: Path | None = None,
    stack: ExitStack | None = None,
) -> Engine:
    """The engine over its own copy of `model` (bare, as loaded), with the model's weights as version 0.

    directory, stack: the run's, needed where the engine is served: its files and logs go there, and what it starts is
    stopped with the stack. UserError for a served model that reads images.
    """
    if settings.mode == "served" and getattr(model, "images", None) is not None:
        raise UserError(
            f"rollout.mode is 'served', and {type(model).__name__} reads images, which are not sent to servers; "
            "allowed: rollout.mode=colocated"
        )
    if settings.mode == "served":
        assert directory is not None and stack is not None, "a served engine belongs to a run"
        from posttrain.rollout.served_engine import ServedEngine

        served = ServedEngine(model, settings, device, directory)
        stack.callback(served.close)
        return served
    if settings.engine == "vllm":
        from posttrain.rollout.vllm_engine import VllmEngine

        return VllmEngine(
            model,
            dtype=settings.dtype,
            batch_tokens=settings.batch_tokens,
            memory_fraction=settings.memory_fraction,
            max_model_len=settings.max_model_len,
            sleep=settings.sleep,
            with_choices=settings.listed_actions,
            device=device,
        )
    from posttrain.rollout.transformers_engine import TransformersEngine

    return TransformersEngine(model, dtype=settings.dtype, batch_tokens=settings.batch_tokens, device=device)
