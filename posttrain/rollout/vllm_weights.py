"""New weights for a model that vLLM runs, in the process that runs it: of the engine here, or of a server's worker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def replace_weights(worker: Any, weights: Iterable[tuple[str, Tensor]]) -> None:
    """Load `weights`, named as in the Hugging Face model, into a worker of vLLM.

    vLLM places the weights of a layer once it has them all, so each is copied when it comes: beside the engine's
    weights there is never more than one layer's. Where it fails, some weights are new and some are old: nothing must
    be sampled before a load has succeeded.
    """
    model = worker.model_runner.get_model()
    try:
        worker.reload_weights(weights_iterator=((name, tensor.detach().clone()) for name, tensor in weights))
    except BaseException:
        _put_back(model, worker.vllm_config.model_config)
        raise
    if worker.device.type == "cpu":
        _repack_heads(model)


def _put_back(model: Any, config: Any) -> None:
    """End a reload that failed: while it loads, vLLM takes tensors away that engines of one process share (rotary)."""
    from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

    finalize_layerwise_reload(model, config)


def _repack_heads(model: Any) -> None:
    """Pack the output head anew: on CPU vLLM computes with a packed copy, and its reload leaves a tied head's stale."""
    for layer in model.modules():
        method: Any = getattr(layer, "quant_method", None)
        if hasattr(layer, "cpu_linear") and hasattr(method, "tie_weights"):
            method.process_weights_after_loading(layer)
