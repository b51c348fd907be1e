"""vLLM in this process, next to the trainer: one engine a rank, its weights overwritten in place at every sync.

The engine is built from the model's architecture alone and gets its first weights as it gets all later ones, from the
trainer: nothing is written to disk. Tokens go in and tokens come out; vLLM sees neither text nor tokenizer. (Where a
model reads images, vLLM's processor of them wants the tokenizer. Images go in at the size that the model sees them in,
and the tokens that vLLM makes of such a prompt are compared with the trainer's.) A request's draws depend on its seed
and on the logits, which depend in their last bits on what a request is batched with: the same call on the same weights
repeats exactly, another batch may not.

Not covered: tensor parallelism over ranks, quantised samplers. Sleep levels need CUDA; they have not been run where
this was written.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.errors import MissingDependencyError, RunError, UserError
from posttrain.images import Images
from posttrain.models.weights import named_weights
from posttrain.rollout.engine import Completion, Request, Sampling, length_error, prompt_error
from posttrain.rollout.vllm_process import as_it_was, import_vllm, leave_alive
from posttrain.rollout.vllm_settings import engine_arguments, sampling_fields, scoring_fields, window_of
from posttrain.rollout.vllm_weights import replace_weights
from posttrain.rollout.weights import WeightNames, engine_dtype
from posttrain.trajectory import StopReason


class VllmEngine:
    """An `Engine` over vLLM's own copy of `model`.

    model: bare, as loaded. dtype: see `engine_dtype`. batch_tokens: tokens that its key-value cache holds.
    memory_fraction: where set, the share of the device's memory for weights and cache together, instead. max_model_len:
    the longest sequence (None: the model's window). sleep: what `release` frees on CUDA: 0 nothing, 1 the cache, with
    the weights moved to the host, 2 both. with_choices: whether requests may have choices. UserError where a setting or
    the model does not fit; MissingDependencyError where vLLM is not installed, or for a model that reads images
    torchvision.
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
        with_choices: bool = False,
        device: torch.device | None = None,
    ) -> None:
        place = model.device if device is None else device
        if sleep and place.type != "cuda":
            raise UserError(f"rollout sleep is {sleep}; allowed on {place.type}: 0")
        self.policy_version = 0
        self._dtype = engine_dtype(dtype, place)
        self._window = window_of(model.config, max_model_len)
        self.window: int | None = self._window
        self._names = WeightNames(model)
        self._images: Images | None = getattr(model, "images", None)
        self._sleep, self._asleep = sleep, False
        if self._images is not None and find_spec("torchvision") is None:
            raise MissingDependencyError(
                f"vLLM reads the images of {type(model).__name__} with torchvision, which is not installed; install "
                "the build that goes with this torch, or set rollout.engine=transformers"
            )
        vllm = import_vllm()
        self._params = vllm.SamplingParams
        arguments = engine_arguments(
            model.config,
            dtype=self._dtype,
            window=self._window,
            batch_tokens=batch_tokens,
            memory_fraction=memory_fraction,
            with_choices=with_choices,
            on_cpu=place.type == "cpu",
        )
        arguments["distributed_executor_backend"] = "external_launcher" if _num_ranks() > 1 else "uni"
        arguments["enable_sleep_mode"] = sleep > 0
        with as_it_was(), TemporaryDirectory() as directory:
            config = copy.deepcopy(model.config)
            config.architectures = [type(model).__name__]
            config.save_pretrained(directory)
            if self._images is not None:
                self._images.tokenizer.save_pretrained(directory)
                self._images.save(Path(directory))
            try:
                self._llm = vllm.LLM(directory, **arguments)
            except ValueError as error:
                raise UserError(f"vLLM does not take this model or these rollout settings: {error}") from error
        leave_alive(self._llm)
        self.sync(named_weights(model), 0)

    @property
    def dtype(self) -> torch.dtype:
        """The precision it samples in."""
        return self._dtype

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
        prompts = [self._prompt(request) | {"cache_salt": salt} for request in asked]
        params = [self._sampling_params(request, sampling) for request in asked]
        with as_it_was():
            outputs = iter(self._llm.generate(prompts, params, use_tqdm=False) if asked else [])
        return [
            self._completion(request, next(outputs))
            if error is None
            else Completion((), (), StopReason.ERROR, self.policy_version, error)
            for request, error in zip(requests, errors, strict=True)
        ]

    def _prompt(self, request: Request) -> dict[str, Any]:
        """A prompt as vLLM takes it: with images, of which it writes the placeholders itself, one for each."""
        if not request.pictures:
            return {"prompt_token_ids": list(request.prompt_ids)}
        assert self._images is not None
        cells = {place for one in request.pictures for place in range(one.start + 1, one.stop)}
        ids = [token for place, token in enumerate(request.prompt_ids) if place not in cells]
        images = [self._images.resized(one.image) for one in request.pictures]
        return {"prompt_token_ids": ids, "multi_modal_data": {"image": images}}

    def _sampling_params(self, request: Request, sampling: Sampling) -> Any:
        return self._params(**sampling_fields(request, sampling, self._window), flat_logprobs=True)

    def _completion(self, request: Request, outputs: Any) -> Completion:
        if request.pictures and tuple(outputs.prompt_token_ids) != request.prompt_ids:
            raise RunError("vLLM read a prompt with images as other tokens than the trainer will")
        output = outputs.outputs[0]
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
        named = {"logprobs": len(last), "logprob_token_ids": last or None}
        params = self._params(**scoring_fields(), **named, flat_logprobs=True)
        with as_it_was():
            found = self._llm.generate([{"prompt_token_ids": list(prompt)}], params, use_tqdm=False)[0]
        logprobs: list[float] = list(found.prompt_logprobs.logprobs)
        return logprobs + [found.outputs[0].logprobs[0][token].logprob for token in last]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over weights named as in the model's `state_dict()`, as they come.

        RunError where names or shapes do not match; the engine must not sample after one.
        """
        self._wake(("weights",))
        with as_it_was():
            self._llm.collective_rpc(replace_weights, kwargs={"weights": self._names.checked(weights)})
        self._wake()
        self._llm.reset_prefix_cache()
        if self._images is not None:
            self._llm.llm_engine.reset_encoder_cache()
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


def _num_ranks() -> int:
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return torch.distributed.get_world_size() if distributed else 1
