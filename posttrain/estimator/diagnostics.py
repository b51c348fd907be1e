"""What a term reports besides its gradient. Every figure is a (sum, count) pair, so that splits and ranks add up.

The surrogate's value is not the paper's loss where clipped, so it is not reported.
"""

from __future__ import annotations

import torch
from torch import Tensor

from posttrain.batch import TokenBatch

Diagnostics = dict[str, tuple[Tensor, Tensor]]


def of_policy(batch: TokenBatch, on: Tensor) -> Diagnostics:
    """Figures of the policy over the tokens where `on` [A], in nats per token: nll = -log pi, and its entropy."""
    assert batch.logprobs is not None
    weight = on.to(batch.logprobs.dtype)
    found = {"nll": (-(weight * batch.logprobs.detach()).sum(), weight.sum())}
    if batch.entropy is not None:
        found["entropy"] = ((weight * batch.entropy.detach()).sum(), weight.sum())
    return found


def of_ratio(log_ratio: Tensor, mask: Tensor, advantage: Tensor, on: Tensor) -> Diagnostics:
    """Figures of r = pi / denominator over the tokens where `on` [A]; of use where the denominator is another policy.

    clip_fraction: share of tokens with a non-zero advantage whose mask is 0. kl_k1, kl_k3: KL(denominator || pi)
    estimated by -log r and r - 1 - log r (Schulman 2020). ratio, ratio_squared: first two moments of r, from which
    ESS = mean(r)^2 / mean(r^2).
    """
    weight = on.to(log_ratio.dtype)
    count = weight.sum()
    ratio = log_ratio.clamp(-20, 20).exp()
    acting = weight * (advantage != 0)
    return {
        "clip_fraction": ((acting * (mask == 0)).sum(), acting.sum()),
        "kl_k1": (-(weight * log_ratio).sum(), count),
        "kl_k3": ((weight * (ratio - 1 - log_ratio)).sum(), count),
        "ratio": ((weight * ratio).sum(), count),
        "ratio_squared": ((weight * ratio**2).sum(), count),
    }


def of_correction(weight: Tensor, advantage: Tensor, on: Tensor) -> Diagnostics:
    """correction_weight: the mean importance weight of the tokens where `on` [A] and the advantage is not 0."""
    acting = (on & (advantage != 0)).to(weight.dtype)
    return {"correction_weight": ((acting * weight).sum(), acting.sum())}


def merge(parts: list[Diagnostics]) -> Diagnostics:
    """Sums and counts of several micro-batches or ranks, added up."""
    merged: Diagnostics = {}
    for part in parts:
        for name, (total, count) in part.items():
            before = merged.get(name, (torch.zeros_like(total), torch.zeros_like(count)))
            merged[name] = (before[0] + total, before[1] + count)
    return merged


def means(merged: Diagnostics) -> dict[str, float]:
    """sum / count of each figure that has a count; from squares `ess` and `explained_variance`.

    ess = mean(ratio)^2 / mean(ratio^2), the effective sample size as a share in (0, 1]. explained_variance = 1 -
    var(residual) / var(return), at most 1; left out where returns hardly vary.
    """
    values = {name: float(total / count) for name, (total, count) in merged.items() if float(count) > 0}
    for name in [n for n in values if n.endswith("ratio_squared")]:
        first = values[name.removesuffix("_squared")]
        values[name.removesuffix("ratio_squared") + "ess"] = first**2 / values.pop(name)
    for name in [n for n in values if n.endswith("return_squared")]:
        term = name.removesuffix("return_squared")
        whole = values[name] - values[term + "return"] ** 2
        left = values.pop(term + "residual_squared") - values.pop(term + "residual") ** 2
        if whole > 1e-6 * values.pop(name):
            values[term + "explained_variance"] = 1 - left / whole
    return values
