"""vLLM in this process, next to the trainer: one engine a rank, its weights overwritten in place at every sync.

The engine is built from the model's architecture alone and gets its first weights as it gets all later ones, from the
trainer: nothing is written to disk. Tokens go in and tokens come out; vLLM sees neither text nor tokenizer. A request's
draws depend on its seed and on the logits, which depend in their last bits on what a request is batched with: the same
call on the same weights repeats exactly, another batch may not.

Not covered: tensor parallelism over ranks, quantised samplers, multimodal inputs. Sleep levels need CUDA; they have not
been run where this was written.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.errors import RunError, UserError
from posttrain.models.weights import named_weights
from posttrain.rollout.engine import Completion, Request, Sampling, length_error, prompt_error
from posttrain.rollout.vllm_process import as_it_was, import_vllm, leave_alive
from posttrain.rollout.weights import WeightNames, engine_dtype
from posttrain.trajectory import StopReason

_CPU_BLOCK_TOKENS = 32  # shared prompts are cached in such blocks; vLLM's 128 on CPU is longer than many a prompt
_CPU_STEP_TOKENS = 8192


class VllmEngine:
    """An `Engine` over vLLM's own copy of `model`.

    model: bare, as loaded. dtype: see `engine_dtype`. batch_tokens: tokens that its key-value cache holds.
    memory_fraction: where set, the share of the device's memory for weights and cache together, instead. max_model_len:
    the longest sequence (None: the model's window). sleep: what `release` frees on CUDA: 0 nothing, 1 the cache, with
    the weights moved to the host, 2 both. UserError where a setting or the model does not fit; MissingDependencyError
    where vLLM is not installed.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        dtype: str = "auto",
        batch_tokens: int = 262_144,
        memory_fraction: float | None = None,
        max_model_len: int | None = None,
        sleep: int = 0,
        device: torch.device | None = None,
    ) -> None:
        place = model.device if device is None else device
        if sleep and place.type != "cuda":
            raise UserError(f"rollout sleep is {sleep}; allowed on {place.type}: 0")
        self.policy_version = 0
        self._dtype = engine_dtype(dtype, place)
        self._window = _window(model.config.get_text_config(), max_model_len)
        self.window: int | None = self._window
        self._names = WeightNames(model)
        self._sleep, self._asleep = sleep, False
        vllm = import_vllm()
        self._params, self._on_cpu = vllm.SamplingParams, place.type == "cpu"
        memory = {"gpu_memory_utilization": memory_fraction}
        if memory_fraction is None:
            memory = {"kv_cache_memory_bytes": batch_tokens * _cache_bytes_per_token(model, self._dtype)}
        with as_it_was(), TemporaryDirectory() as directory:
            config = copy.deepcopy(model.config)
            config.architectures = [type(model).__name__]
            config.save_pretrained(directory)
            try:
                self._llm = vllm.LLM(directory, **self._arguments(), **memory)
            except ValueError as error:
                raise UserError(f"vLLM does not take this model or these rollout settings: {error}") from error
        leave_alive(self._llm)
        self.sync(named_weights(model), 0)

    @property
    def dtype(self) -> torch.dtype:
        """The precision it samples in."""
        return self._dtype

    def _arguments(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "skip_tokenizer_init": True,
            "generation_config": "vllm",
            "load_format": "dummy",
            "dtype": str(self._dtype).removeprefix("torch."),
            "max_model_len": self._window,
            "logprobs_mode": "processed_logprobs",
            "distributed_executor_backend": "external_launcher" if _num_ranks() > 1 else "uni",
            "enable_sleep_mode": self._sleep > 0,
            "seed": 0,
            "disable_log_stats": True,
        }
        if self._on_cpu:
            # A prompt cut into chunks would wind its request's generator back, which CPU generators cannot do.
            whole = {
                "enable_chunked_prefill": False,
                "max_num_batched_tokens": max(_CPU_STEP_TOKENS, self._window),
            }
            found |= whole | {"enforce_eager": True, "block_size": _CPU_BLOCK_TOKENS}
        return found

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order; see `Engine.generate`.

        Logprobs are those of the processed distribution (temperature, top_k, top_p). RunError where the model's logits
        are not finite.
        """
        self._wake()
        errors = [prompt_error(len(request.prompt_ids), self.window) for request in requests]
        asked = [request for request, error in zip(requests, errors, strict=True) if error is None]
        # The cache is keyed by the version: what other weights have computed is never read.
        salt = str(self.policy_version)
        prompts = [{"prompt_token_ids": list(request.prompt_ids), "cache_salt": salt} for request in asked]
        params = [self._sampling_params(request, sampling) for request in asked]
        with as_it_was():
            outputs = iter(self._llm.generate(prompts, params, use_tqdm=False) if asked else [])
        return [
            self._completion(next(outputs).outputs[0])
            if error is None
            else Completion((), (), StopReason.ERROR, self.policy_version, error)
            for error in errors
        ]

    def _sampling_params(self, request: Request, sampling: Sampling) -> Any:
        return self._params(
            max_tokens=min(sampling.max_tokens, self._window - len(request.prompt_ids)),
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            top_k=sampling.top_k,
            seed=request.seed % (1 << 63),
            stop_token_ids=sorted(sampling.stop_token_ids),
            ignore_eos=True,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
        )

    def _completion(self, output: Any) -> Completion:
        logprobs = tuple(output.logprobs.logprobs)
        if not all(logprob > float("-inf") for logprob in logprobs):
            raise RunError(f"the policy's logits are not finite (policy version {self.policy_version})")
        reason = StopReason.STOP if output.finish_reason == "stop" else StopReason.LENGTH
        return Completion(tuple(output.token_ids), logprobs, reason, self.policy_version)

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Logprobs (nats, temperature 1) of tokens 1.. of a sequence; UserError beyond the window."""
        error = length_error(len(token_ids), self.window)
        if error is not None:
            raise UserError(error)
        if len(token_ids) < 2:
            return []
        self._wake()
        # vLLM gives a prompt's logprobs along with one more token, which a sequence as long as the window has no room
        # for: its last logprob is asked for as that of a named token in the place of the drawn one.
        last = [token_ids[-1]] if len(token_ids) == self.window else []
        prompt = token_ids[: len(token_ids) - len(last)]
        params = self._params(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=0,
            logprobs=len(last),
            logprob_token_ids=last or None,
            flat_logprobs=True,
            detokenize=False,
            ignore_eos=True,
        )
        with as_it_was():
            found = self._llm.generate([{"prompt_token_ids": list(prompt)}], params, use_tqdm=False)[0]
        logprobs: list[float] = list(found.prompt_logprobs.logprobs)
        return logprobs + [found.outputs[0].logprobs[0][token].logprob for token in last]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over weights named as in the model's `state_dict()`, as they come.

        vLLM places the weights of a layer once it has them all, so each is copied when it comes: beside the engine's
        weights there is never more than one layer's. RunError where names or shapes do not match; the engine must not
        sample after one.
        """
        self._wake(("weights",))
        with as_it_was(), torch.no_grad():
            given = ((name, tensor.detach().clone()) for name, tensor in self._names.checked(weights))
            try:
                self._llm.collective_rpc("reload_weights", kwargs={"weights_iterator": given})
            except BaseException:
                self._llm.apply_model(partial(_put_back, config=self._llm.llm_engine.vllm_config.model_config))
                raise
            if self._on_cpu:
                self._llm.apply_model(_repack_heads)
        self._wake()
        self._llm.reset_prefix_cache()
        self.policy_version = version

    def release(self) -> None:
        """Free what the recipe's sleep level says, until the next call wakes the engine.

        After level 2 the weights are gone: the version is -1, so that the trainer syncs before it samples again.
        """
        if self._sleep and not self._asleep:
            self._llm.sleep(level=self._sleep)
            self._asleep = True
            if self._sleep == 2:
                self.policy_version = -1

    def _wake(self, tags: Sequence[str] | None = None) -> None:
        if self._asleep:
            self._llm.wake_up(tags=None if tags is None else list(tags))
            self._asleep = tags is not None


def _window(config: Any, max_model_len: int | None) -> int:
    known: int | None = getattr(config, "max_position_embeddings", None)
    if known is None and max_model_len is None:
        raise UserError("rollout.max_model_len: missing: the model's config does not say how long its window is")
    if known is not None and max_model_len is not None and max_model_len > known:
        raise UserError(f"rollout.max_model_len is {max_model_len}; allowed: at most {known}, the model's window")
    return max_model_len or known or 0


def _cache_bytes_per_token(model: PreTrainedModel, dtype: torch.dtype) -> int:
    """Keys and values of one token in every layer; for architectures that store less, more than is needed."""
    config = model.config.get_text_config()
    num_heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * num_heads * head_dim * dtype.itemsize)


def _num_ranks() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1


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
