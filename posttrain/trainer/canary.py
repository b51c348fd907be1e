"""The canary: one sequence that sampler and trainer both score after every sync; a mismatch beyond noise stops the run.

It finds weights that did not arrive, arrived under another name, or are computed with a stale copy. It cannot find a
difference below the noise of the sampler's precision: that one is measured by `posttrain doctor --recipe`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from posttrain.batch import Source, TokenSequence
from posttrain.data.collate import collate
from posttrain.errors import RunError
from posttrain.models.policy import Policy
from posttrain.rollout.engine import Engine, Request, Sampling
from posttrain.trainer.step import score

_PROMPT_TOKENS, _COMPLETION_TOKENS = 64, 48
_MARGIN = 4.0
_LEAST_LIMIT = 1e-3  # nats: float32 kernels differ by less


class Canary:
    """A sequence of the policy's own, and how far two scorers of the same weights may be apart on it.

    The sequence is a prompt and what the first policy sampled after it. `compare` allows a mean difference of
    max_mismatch or, where that is None, of limit = 4 * max(noise, eps * (1 + mean |logprob|)), at least 1e-3 nats.
    noise: mean difference of the trainer's own logprobs in float32 and in the coarsest precision that either side
    computes in, measured at the start; eps: that precision's, as logits grow while the policy sharpens.
    """

    def __init__(
        self,
        engine: Engine,
        model: Any,
        prompt_ids: Sequence[int],
        *,
        training_dtype: torch.dtype,
        max_mismatch: float | None = None,
    ) -> None:
        longest = min(_PROMPT_TOKENS, (engine.window or 2 * _PROMPT_TOKENS) // 2)
        prompt = tuple(prompt_ids)[-longest:] or (0,)
        sampling = Sampling(max_tokens=_COMPLETION_TOKENS, stop_token_ids=frozenset())
        (completion,) = engine.generate([Request(prompt, seed=0)], sampling)
        ids = prompt + completion.token_ids
        self._sequence = TokenSequence(ids, (False, *[True] * (len(ids) - 1)), Source.ROLLOUTS, group=0)
        self._dtype = max(engine.dtype, training_dtype, key=lambda dtype: torch.finfo(dtype).eps)
        self._max_mismatch = max_mismatch
        self.noise = self._noise(model)
        self.mismatch: float | None = None
        """Mean absolute difference in nats at the last check; None before the first."""

    def expected(self, policy: Any, accelerator: Any) -> Tensor:
        """The trainer's logprobs of the sequence; every rank must take part."""
        (scored,) = score(policy, [self._sequence], "old_logprobs", self._sequence.num_tokens, accelerator)
        return torch.tensor(scored.old_logprobs, dtype=torch.float64)

    def compare(self, engine: Engine, trainer: Tensor) -> None:
        """Score on the sampler's side; RunError with both numbers where it is further from `trainer` than noise."""
        sampler = torch.tensor(engine.score(self._sequence.token_ids), dtype=torch.float64)
        self.mismatch = float((trainer - sampler).abs().mean())
        limit = self.limit(float(trainer.abs().mean()))
        if not self.mismatch <= limit:
            raise RunError(
                f"the sampler does not run the trainer's weights: with policy version {engine.policy_version} their "
                f"logprobs of the canary ({trainer.numel()} tokens) differ by {self.mismatch:.4g} nats on average; "
                f"allowed: {limit:.4g} (noise of {str(self._dtype).removeprefix('torch.')} measured at the start: "
                f"{self.noise:.4g}). Mean logprob: sampler {float(sampler.mean()):.4g}, trainer "
                f"{float(trainer.mean()):.4g}. rollout.max_mismatch sets another limit"
            )

    def limit(self, mean_logprob: float) -> float:
        """The largest mean difference that passes, in nats, where the mean |logprob| is so large."""
        rounding = torch.finfo(self._dtype).eps * (1 + mean_logprob)
        return self._max_mismatch or max(_MARGIN * max(self.noise, rounding), _LEAST_LIMIT)

    @torch.no_grad()
    def _noise(self, model: Any) -> float:
        """Mean |logprob in the coarsest precision - logprob as the bare model gives it|; 0 where they are one."""
        if self._dtype in (torch.float32, torch.float64):
            return 0.0
        policy, rows = Policy(model), collate([self._sequence]).to(model.device)
        precise = policy(rows).logprobs
        with torch.autocast(model.device.type, self._dtype):
            coarse = policy(rows).logprobs
        return float((coarse - precise).abs().mean())


def training_dtype(model: Any, mixed_precision: str) -> torch.dtype:
    """What the trainer computes in."""
    mixed = {"bf16": torch.bfloat16, "fp16": torch.float16}
    own: torch.dtype = model.dtype
    return mixed.get(mixed_precision, own)
