"""The preference losses as their papers write them, on padded tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From logprobs, reference logprobs and mask [pairs, 2, T] (side 0 chosen) and the chance that side 0 is better."""


def scores(logprobs: Tensor, reference: Tensor, mask: Tensor, mean: bool = False) -> Tensor:
    """The sides' summed (or mean) log-ratios [pairs, 2]."""
    totals = ((logprobs - reference) * mask).sum(-1)
    return totals / mask.sum(-1).clamp(min=1) if mean else totals


def margins(logprobs: Tensor, reference: Tensor, mask: Tensor, mean: bool = False) -> Tensor:
    """Differences of the sides' scores [pairs]."""
    found = scores(logprobs, reference, mask, mean)
    return found[:, 0] - found[:, 1]


def imitation(logprobs: Tensor, mask: Tensor, chance: Tensor) -> Tensor:
    """Mean over pairs of the sides' mean negative log-likelihood, each as often as it is the better one."""
    nll = -(logprobs * mask).sum(-1) / mask.sum(-1).clamp(min=1)
    return (chance * nll[:, 0] + (1 - chance) * nll[:, 1]).mean()


def divergence_score(kind: str, ratio: Tensor) -> Tensor:
    """phi'(e^ratio) of 2309.16240."""
    if kind == "forward_kl":
        return 1 - (-ratio).exp()
    return math.log(2) + ratio - torch.log1p(ratio.exp()) if kind == "js" else ratio


def discopop(x: Tensor, tau: float) -> Tensor:
    """2406.08414 eq. 5."""
    share = torch.sigmoid(x / tau)
    return (1 - share) * -logsigmoid(x) + share * (-x).exp()


def exo(x: Tensor, epsilon: float) -> Tensor:
    """2402.00856 eq. 16: KL of the policy's preference to the label's."""
    ours = torch.stack([torch.sigmoid(x), torch.sigmoid(-x)])
    label = torch.tensor([1 - epsilon, epsilon], dtype=x.dtype)[:, None]
    return (ours * (ours / label).log()).sum(0)


def dpo(loss: str = "sigmoid", beta: float = 0.1, eps: float = 0.0, robust: bool = False, mean: bool = False,
        sft: float = 0.0, constant: float = 0.0, divergence: str = "reverse_kl") -> Loss:  # fmt: skip
    """2305.18290 eq. 7; hinge of 2309.06657; IPO 2310.12036 eq. 17; 2403.00409's unbiased and Mitchell's smoothing."""
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "sigmoid": lambda w, r: -logsigmoid(beta * (w - r)),
        "hinge": lambda w, r: torch.relu(1 - beta * (w - r)),
        "ipo": lambda w, r: (w - r - 1 / (2 * beta)) ** 2,
        "exo": lambda w, r: exo(beta * (w - r), constant),
        "discopop": lambda w, r: discopop(beta * (w - r), constant),
        "nca": lambda w, r: -logsigmoid(beta * w) - (logsigmoid(-beta * w) + logsigmoid(-beta * r)) / 2,
        "bco": lambda w, r: -logsigmoid(beta * w) - logsigmoid(-beta * r),
        "sppo": lambda w, r: (w - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2,
        "apo_zero": lambda w, r: 1 - torch.sigmoid(beta * w) + torch.sigmoid(beta * r),
        "apo_down": lambda w, r: torch.sigmoid(beta * w) + 1 - torch.sigmoid(beta * (w - r)),
    }
    one = kinds[loss]

    def of(logprobs: Tensor, reference: Tensor, mask: Tensor, chance: Tensor) -> Tensor:
        first, second = divergence_score(divergence, scores(logprobs, reference, mask, mean)).unbind(1)

        def of_label(better: Tensor, worse: Tensor) -> Tensor:
            if robust:
                return ((1 - eps) * one(better, worse) - eps * one(worse, better)) / (1 - 2 * eps)
            return (1 - eps) * one(better, worse) + eps * one(worse, better)

        total = (chance * of_label(first, second) + (1 - chance) * of_label(second, first)).mean()
        return total + sft * imitation(logprobs, mask, chance)

    return of


def simpo(beta: float = 2.0, gamma: float = 1.0, mean: bool = True, sft: float = 0.0) -> Loss:
    """2405.14734 eq. 6."""

    def of(logprobs: Tensor, reference: Tensor, mask: Tensor, chance: Tensor) -> Tensor:
        m = beta * margins(logprobs, torch.zeros_like(reference), mask, mean)
        total = -(chance * logsigmoid(m - gamma) + (1 - chance) * logsigmoid(-m - gamma)).mean()
        return total + sft * imitation(logprobs, mask, chance)

    return of


def orpo(weight: float = 0.1, sft: float = 1.0) -> Loss:
    """2403.07691 eq. 6 and 7."""

    def of(logprobs: Tensor, reference: Tensor, mask: Tensor, chance: Tensor) -> Tensor:
        probability = ((logprobs * mask).sum(-1) / mask.sum(-1).clamp(min=1)).exp()
        odds = probability / (1 - probability)
        ratio = (odds[:, 0] / odds[:, 1]).log()
        total = -(chance * logsigmoid(ratio) + (1 - chance) * logsigmoid(-ratio)).mean()
        return weight * total + sft * imitation(logprobs, mask, chance)

    return of


CASES: list[tuple[str, dict[str, Any], Loss]] = [
    ("dpo", {}, dpo()),
    ("dpo", {"beta": 0.7, "sft_weight": 0.5}, dpo(beta=0.7, sft=0.5)),
    ("dpo", {"beta": 0.5, "label_smoothing": 0.1}, dpo(beta=0.5, eps=0.1)),
    ("dpo", {"beta": 0.5, "label_smoothing": 0.1, "robust": True}, dpo(beta=0.5, eps=0.1, robust=True)),
    ("dpo", {"length_normalised": True, "beta": 2.0}, dpo(beta=2.0, mean=True)),
    ("dpo", {"loss": "hinge", "beta": 0.6}, dpo("hinge", beta=0.6)),
    ("dpo", {"loss": "ipo"}, dpo("ipo")),
    ("dpo", {"loss": "ipo", "length_normalised": True, "beta": 0.4}, dpo("ipo", beta=0.4, mean=True)),
    ("dpo", {"loss": "exo"}, dpo("exo", constant=1e-3)),
    ("dpo", {"loss": "exo", "beta": 0.4, "loss_constant": 0.2}, dpo("exo", beta=0.4, constant=0.2)),
    ("dpo", {"loss": "discopop"}, dpo("discopop", constant=0.05)),
    ("dpo", {"loss": "discopop", "beta": 0.4, "loss_constant": 0.7}, dpo("discopop", beta=0.4, constant=0.7)),
    ("dpo", {"loss": "nca", "beta": 0.4}, dpo("nca", beta=0.4)),
    ("dpo", {"loss": "bco", "label_smoothing": 0.1}, dpo("bco", eps=0.1)),
    ("dpo", {"loss": "sppo", "beta": 0.4}, dpo("sppo", beta=0.4)),
    ("dpo", {"loss": "apo_zero", "length_normalised": True}, dpo("apo_zero", mean=True)),
    ("dpo", {"loss": "apo_down", "beta": 0.4}, dpo("apo_down", beta=0.4)),
    ("dpo", {"divergence": "forward_kl"}, dpo(divergence="forward_kl")),
    ("dpo", {"divergence": "js", "loss": "apo_down"}, dpo("apo_down", divergence="js")),
    ("osp", {"beta": 0.4}, dpo(beta=0.4)),
    ("online_dpo", {}, dpo()),
    ("online_dpo", {"loss": "ipo", "length_normalised": True}, dpo("ipo", mean=True)),
    ("simpo", {}, simpo()),
    ("simpo", {"beta": 0.1, "gamma": 0.0, "length_normalised": False, "sft_weight": 1.0}, simpo(0.1, 0.0, False, 1.0)),
    ("orpo", {}, orpo()),
    ("orpo", {"odds_weight": 2.0, "sft_weight": 0.0}, orpo(2.0, 0.0)),
]
