"""What the recipe's settings are in vLLM's words: the same for an engine in this process and for a server's."""

from __future__ import annotations

from typing import Any

import torch

from posttrain.errors import UserError
from posttrain.models.vision import is_vision
from posttrain.rollout.engine import Request, Sampling

_CPU_BLOCK_TOKENS = 32  # shared prompts are cached in such blocks; vLLM's 128 on CPU is longer than many a prompt
_CPU_STEP_TOKENS = 8192
CHOICES = "posttrain.rollout.vllm_choices:ChoicesProcessor"
"""What masks tokens that a request's choices do not have; without it vLLM samples any."""


def window_of(config: Any, max_model_len: int | None) -> int:
    """The longest sequence in tokens: `max_model_len`, or the window of the model's config; UserError beyond that."""
    known: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    if known is None and max_model_len is None:
        raise UserError("rollout.max_model_len: missing: the model's config does not say how long its window is")
    if known is not None and max_model_len is not None and max_model_len > known:
        raise UserError(f"rollout.max_model_len is {max_model_len}; allowed: at most {known}, the model's window")
    return max_model_len or known or 0


def engine_arguments(
    config: Any,
    *,
    dtype: torch.dtype,
    window: int,
    batch_tokens: int,
    memory_fraction: float | None = None,
    with_choices: bool = False,
    on_cpu: bool,
) -> dict[str, Any]:
    """Arguments of vLLM's engine over a model of `config`; logprobs are those of the processed distribution.

    with_choices: it takes requests with choices.

    Its weights are left as they come: the trainer's replace them before anything is sampled.
    """
    found: dict[str, Any] = {
        "skip_tokenizer_init": not is_vision(config),
        "generation_config": "vllm",
        "load_format": "dummy",
        "dtype": str(dtype).removeprefix("torch."),
        "max_model_len": window,
        "logprobs_mode": "processed_logprobs",
        "seed": 0,
        "disable_log_stats": True,
    }
    if with_choices:
        found["logits_processors"] = [CHOICES]
    if is_vision(config):
        # The numbers to normalise pixels with would be left as they come too, so pixels come normalised.
        found |= {"limit_mm_per_prompt": {"video": 0}, "skip_mm_profiling": on_cpu, "mm_device_do_normalize": False}
    if memory_fraction is None:
        found["kv_cache_memory_bytes"] = batch_tokens * _cache_bytes_per_token(config, dtype)
    else:
        found["gpu_memory_utilization"] = memory_fraction
    if on_cpu:
        # A prompt cut into chunks would wind its request's generator back, which CPU generators cannot do.
        whole = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(_CPU_STEP_TOKENS, window)}
        found |= whole | {"enforce_eager": True, "block_size": _CPU_BLOCK_TOKENS}
    return found


def sampling_fields(request: Request, sampling: Sampling, window: int) -> dict[str, Any]:
    """The fields of vLLM's SamplingParams for one completion."""
    choices = {"extra_args": {"choices": request.choices}} if request.choices else {}
    return choices | {
        "max_tokens": min(sampling.max_tokens, window - len(request.prompt_ids)),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "seed": request.seed % (1 << 63),
        "stop_token_ids": sorted(sampling.stop_token_ids),
        "ignore_eos": True,
        "logprobs": 0,
        "detokenize": False,
    }


def scoring_fields() -> dict[str, Any]:
    """The fields of vLLM's SamplingParams for a prompt's logprobs, which come along with one more token."""
    return {
        "max_tokens": 1,
        "temperature": 0.0,
        "prompt_logprobs": 0,
        "detokenize": False,
        "ignore_eos": True,
    }


def _cache_bytes_per_token(model_config: Any, dtype: torch.dtype) -> int:
    """Keys and values of one token in every layer; for architectures that store less, more than is needed."""
    config = model_config.get_text_config()
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * num_heads * head_dim * dtype.itemsize)
