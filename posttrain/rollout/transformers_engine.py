"""The embedded engine: samples from a Hugging Face model in this process, on CPU or CUDA, without a server.

It needs a model of attention layers (full or sliding); recurrent and hybrid ones are not covered.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.errors import RunError, UserError
from posttrain.picture import Context
from posttrain.rollout.attention import use_grouped_attention
from posttrain.rollout.batching import Batch, batches
from posttrain.rollout.decode import decode
from posttrain.rollout.engine import Completion, Request, Sampling, length_error, prompt_error
from posttrain.rollout.guide import ValueGuide
from posttrain.rollout.kv_cache import supports_buffers
from posttrain.rollout.sampling import uniforms
from posttrain.rollout.weights import engine_dtype, frozen_copy, load_in_place
from posttrain.trajectory import StopReason


class TransformersEngine:
    """An `Engine` over its own copy of `model`.

    model: bare, as loaded (not wrapped for distributed training). dtype: the copy's precision, see `engine_dtype`.
    batch_tokens: tokens of prompt and completion held at once. device: where it samples (None: where the model is).
    guide: its numbers are added to the logits of whatever is sampled (not to those of `score`).
    UserError where a setting or the model does not fit.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        dtype: str = "auto",
        batch_tokens: int = 262_144,
        device: torch.device | None = None,
        guide: ValueGuide | None = None,
    ) -> None:
        if batch_tokens < 1:
            raise UserError(f"rollout batch_tokens is {batch_tokens}; allowed: 1 or more")
        config = model.config.get_text_config()
        if not supports_buffers(config):
            raise UserError(
                f"the transformers engine samples from models of attention layers; {type(model).__name__} has others"
            )
        self.policy_version = 0
        self.batch_tokens = batch_tokens
        self.window: int | None = getattr(config, "max_position_embeddings", None)
        place = model.device if device is None else device
        self._model = frozen_copy(model, engine_dtype(dtype, place), place)
        use_grouped_attention(self._model)
        self._guide = None if guide is None else guide.to(place)

    @property
    def dtype(self) -> torch.dtype:
        """The precision it samples in."""
        dtype: torch.dtype = self._model.dtype
        return dtype

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order; see `Engine.generate`.

        Logprobs are those of the processed distribution (`processed_logprobs`). A completion ends with a stop token
        (STOP), or at max_tokens or the window's end (LENGTH). A prompt that is empty or leaves no room is an ERROR.
        RunError where the model's logits are not finite.
        """
        done: dict[int, Completion] = {}
        limits: dict[int, int] = {}
        for index, request in enumerate(requests):
            error = prompt_error(len(request.prompt_ids), self.window)
            if error is None:
                room = sampling.max_tokens if self.window is None else self.window - len(request.prompt_ids)
                limits[index] = min(sampling.max_tokens, room)
            else:
                done[index] = Completion((), (), StopReason.ERROR, self.policy_version, error)
        for batch in batches(requests, limits, self.batch_tokens):
            completions = self._run(batch, requests, sampling)
            done.update(zip(batch.indices, completions, strict=True))
        return [done[index] for index in range(len(requests))]

    def _run(self, batch: Batch, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        chosen = [requests[index] for index in batch.indices]
        numbers = uniforms([request.seed for request in chosen], max(batch.limits))
        prompts = [Context(request.prompt_ids, request.pictures) for request in chosen]
        choices = [request.choices for request in chosen]
        drawn = decode(self._model, prompts, batch.limits, numbers, sampling, self._guide, choices)
        completions = []
        for ids, logprobs in zip(drawn.token_ids, drawn.logprobs, strict=True):
            if not all(logprob > float("-inf") for logprob in logprobs):
                raise RunError(f"the policy's logits are not finite (policy version {self.policy_version})")
            reason = StopReason.STOP if ids[-1] in sampling.stop_token_ids else StopReason.LENGTH
            completions.append(Completion(tuple(ids), tuple(logprobs), reason, self.policy_version))
        return completions

    @torch.inference_mode()
    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Logprobs (nats, temperature 1) of tokens 1.. of a sequence; UserError beyond the window."""
        error = length_error(len(token_ids), self.window)
        if error is not None:
            raise UserError(error)
        if len(token_ids) < 2:
            return []
        ids = torch.tensor([list(token_ids)], device=self._model.device)
        logits: Tensor = self._model(input_ids=ids, use_cache=False).logits[0, :-1]
        found: list[float] = torch.log_softmax(logits.float(), -1).gather(-1, ids[0, 1:, None])[:, 0].tolist()
        return found

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over weights named as in the model's `state_dict()`; RunError where names or shapes do not match."""
        load_in_place(self._model, weights)
        self.policy_version = version

    def release(self) -> None:
        """Nothing: its copy of the weights stays, and its cache lives only while it samples."""
