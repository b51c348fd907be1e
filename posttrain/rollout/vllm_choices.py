"""What keeps vLLM's sampler to a request's choices (`rollout.choices`); vLLM loads it by name, where recipes ask."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from posttrain.rollout.choices import following


class ChoicesProcessor(AdapterLogitsProcessor):  # type: ignore[misc]
    """Reads a request's choices from `extra_args`."""

    def is_argmax_invariant(self) -> bool:
        """The most likely token may be none of the choices'."""
        return False

    def new_req_logits_processor(self, params: Any) -> Any:
        """What masks the logits of one request; None where it has no choices."""
        choices = (params.extra_args or {}).get("choices")
        return partial(_masked, choices) if choices else None


def _masked(choices: list[list[int]], drawn: list[int], logits: Tensor) -> Tensor:
    allowed = following(choices, drawn)
    if not allowed:  # no choice goes on: what is drawn now is not read
        return logits
    at = torch.tensor(allowed, device=logits.device)
    return torch.full_like(logits, -torch.inf).index_copy_(0, at, logits[at])
