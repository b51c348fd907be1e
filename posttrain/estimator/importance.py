"""Importance weights between the sampler and the trainer, as a mask.

The sampler's distribution is not quite the trainer's: other kernels, other precision, weights some steps old. The
weight w = pi_old / pi_behavior repairs this, apart from the clip, which compares pi with pi_old (the decoupled
objective of arXiv 2110.00641 and 2505.24298); truncating or masking it bounds its variance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator.read import field

Correction = Literal[
    "none",
    "token_truncate",
    "token_mask",
    "sequence_truncate",
    "sequence_mask",
    "geometric_truncate",
    "geometric_mask",
]
"""How `SamplerCorrection` is named in settings: its level and its mode."""


@dataclass(frozen=True)
class SamplerCorrection:
    """w within [floor, cap]: "truncate" moves a weight outside to the bound, "mask" makes it 0.

    level "token": w_t = pi_old / pi_behavior of each token; "sequence": their product over the sequence; "geometric":
    its |y_i|-th root, the same on every token of the sequence. Names and meaning as in TRL 1.16 (where cap is 3 and
    sequence_mask the default; verl truncates at 2). A token without an advantage has weight 1.
    """

    level: Literal["token", "sequence", "geometric"] = "token"
    mode: Literal["truncate", "mask"] = "truncate"
    cap: float = 2.0
    floor: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"old_logprobs", "behavior_logprobs"})

    def __post_init__(self) -> None:
        """ValueError on an unknown level or mode, or unless 0 <= floor < cap."""
        for name, value, allowed in (
            ("level", self.level, ("token", "sequence", "geometric")),
            ("mode", self.mode, ("truncate", "mask")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")
        if not 0 <= self.floor < self.cap:
            raise ValueError(f"the weight is within floor={self.floor} and cap={self.cap}; allowed: 0 <= floor < cap")

    @property
    def couples(self) -> Unit:
        """Whole trajectories, except where each token has its own weight."""
        return "" if self.level == "token" else "trajectory"

    @property
    def formula(self) -> str:
        """The bounded weight."""
        one = "pi_old/pi_behavior"
        weight = {
            "token": one,
            "sequence": f"prod_t {one}",
            "geometric": f"exp(1/|y_i| sum_t log({one}))",
        }[self.level]
        if self.mode == "truncate":
            return f"clip({weight}, {self.floor:g}, {self.cap:g})"
        return f"w 1[{self.floor:g} <= w <= {self.cap:g}], w = {weight}"

    def __call__(self, batch: TokenBatch, log_ratio: Tensor, advantage: Tensor) -> Tensor:
        """Weights [A]."""
        log_weight = field(batch, "old_logprobs") - field(batch, "behavior_logprobs")
        if self.level == "sequence":
            log_weight = batch.broadcast(batch.sequence_sum(log_weight))
        elif self.level == "geometric":
            log_weight = batch.broadcast(batch.sequence_mean(log_weight))
        low = math.log(self.floor) if self.floor else -math.inf
        bounded = log_weight.clamp(low, min(math.log(self.cap), 20.0))
        weight = bounded.exp()
        if self.mode == "mask":
            weight = torch.where(bounded == log_weight, weight, torch.zeros_like(weight))
        return torch.where(advantage != 0, weight, torch.ones_like(weight))


def sampler_correction(correction: Correction, cap: float, floor: float = 0.0) -> SamplerCorrection | None:
    """The mask that a setting names; None for "none"."""
    levels: tuple[Literal["token", "sequence", "geometric"], ...] = ("token", "sequence", "geometric")
    modes: tuple[Literal["truncate", "mask"], ...] = ("truncate", "mask")
    for level in levels:
        for mode in modes:
            if correction == f"{level}_{mode}":
                return SamplerCorrection(level, mode, cap, floor)
    if correction != "none":
        raise ValueError(f"correction is {correction!r}; allowed: none, or LEVEL_MODE such as token_truncate")
    return None
