"""The losses of a preference pair as forces: what each side's score is pushed by.

A loss of the scores s_w (preferred) and s_l is l(s_w, s_l) = a(m) + b(s_w) + c(s_l) with m = s_w - s_l. Where side i is
preferred with probability r_i and its partner j with r_j, the expected loss has the negative gradient

    -dl/ds_i = r_i (f(m) + g(s_i)) - r_j (f(-m) + h(s_i)),   f = -a', g = -b', h = c', m = s_i - s_j,

which is the same read from either side. `LOSSES` is the table of f, g and h.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

Force = Callable[[Tensor, float, float], Tensor]
"""From a margin or a score [S], beta and the loss's own constant."""


@dataclass(frozen=True)
class PairLoss:
    """f, g and h of one loss, None where 0; text: the same in symbols; constant: its own, where it has one."""

    text: str
    margin: Force | None = None
    chosen: Force | None = None
    rejected: Force | None = None
    constant: float | None = None

    def pull(self, margin: Tensor, score: Tensor, beta: float, constant: float) -> Tensor:
        """f(m) + g(s) [S] of the preferred side's margin and score."""
        return _sum(margin, self.margin, self.chosen, score, beta, constant)

    def push(self, margin: Tensor, score: Tensor, beta: float, constant: float) -> Tensor:
        """f(m) + h(s) [S] of the other side's score, and of the margin over it."""
        return _sum(margin, self.margin, self.rejected, score, beta, constant)

    def formula(self, beta: float, constant: float) -> str:
        """`text` with its numbers."""
        return self.text.format(beta=beta, constant=constant)


def _sum(margin: Tensor, joint: Force | None, own: Force | None, score: Tensor, beta: float, constant: float) -> Tensor:
    total = torch.zeros_like(margin)
    for force, at in ((joint, margin), (own, score)):
        total = total if force is None else total + force(at, beta, constant)
    return total


def _slope(x: Tensor) -> Tensor:
    """The derivative of sigma."""
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _exo(m: Tensor, beta: float, epsilon: float) -> Tensor:
    return beta * _slope(beta * m) * (math.log1p(-epsilon) - math.log(epsilon) - beta * m)


def _discopop(m: Tensor, beta: float, tau: float) -> Tensor:
    x = beta * m
    share, rest = torch.sigmoid(x / tau), torch.sigmoid(-x / tau)
    exponential = (-x + logsigmoid(x / tau)).clamp(max=20.0).exp()  # e^-x share, which may be inf times 0
    return beta * (torch.sigmoid(-x) * rest + exponential * (1 - rest / tau) - logsigmoid(x) * share * rest / tau)


LOSSES: dict[str, PairLoss] = {
    # l = -log sigma(beta m): DPO, arXiv 2305.18290, eq. 7
    "sigmoid": PairLoss(
        "f(m) = {beta:g} sigma(-{beta:g} m)", margin=lambda m, beta, _: beta * torch.sigmoid(-beta * m)
    ),
    # l = max(0, 1 - beta m): SLiC's hinge on DPO's margin, arXiv 2309.06657
    "hinge": PairLoss("f(m) = {beta:g} 1[{beta:g} m < 1]", margin=lambda m, beta, _: beta * (beta * m < 1).to(m.dtype)),
    # l = (m - 1/(2 beta))^2: IPO, arXiv 2310.12036, eq. 17, whose tau is beta
    "ipo": PairLoss("f(m) = 1/{beta:g} - 2 m", margin=lambda m, beta, _: 1 / beta - 2 * m),
    # l = KL(p || (1 - eps, eps)), p = (sigma(beta m), sigma(-beta m)): EXO, arXiv 2402.00856, eq. 16
    "exo": PairLoss(
        "f(m) = {beta:g} sigma'({beta:g} m) (logit(1 - {constant:g}) - {beta:g} m)", margin=_exo, constant=1e-3
    ),
    # l = (1 - c) -log sigma(x) + c exp(-x), x = beta m, c = sigma(x / tau): DiscoPOP, arXiv 2406.08414, eq. 5
    "discopop": PairLoss(
        "f(m) = {beta:g} (sigma(-x) (1 - c) + e^-x c + (-log sigma(x) - e^-x) c (1 - c)/{constant:g}), "
        "x = {beta:g} m, c = sigma(x/{constant:g})",
        margin=_discopop,
        constant=0.05,
    ),
    # l = -log sigma(beta s_w) - 1/2 (log sigma(-beta s_w) + log sigma(-beta s_l)): NCA, arXiv 2402.05369, K = 2
    "nca": PairLoss(
        "g(s) = {beta:g} (sigma(-{beta:g} s) - sigma({beta:g} s)/2), h(s) = {beta:g} sigma({beta:g} s)/2",
        chosen=lambda s, beta, _: beta * (torch.sigmoid(-beta * s) - torch.sigmoid(beta * s) / 2),
        rejected=lambda s, beta, _: beta * torch.sigmoid(beta * s) / 2,
    ),
    # l = -log sigma(beta s_w) - log sigma(-beta s_l): BCO, arXiv 2404.04656, without its moving reward shift
    "bco": PairLoss(
        "g(s) = {beta:g} sigma(-{beta:g} s), h(s) = {beta:g} sigma({beta:g} s)",
        chosen=lambda s, beta, _: beta * torch.sigmoid(-beta * s),
        rejected=lambda s, beta, _: beta * torch.sigmoid(beta * s),
    ),
    # l = (s_w - 1/(2 beta))^2 + (s_l + 1/(2 beta))^2: SPPO, arXiv 2405.00675, eq. 4.7, whose eta is 1/beta
    "sppo": PairLoss(
        "g(s) = 1/{beta:g} - 2 s, h(s) = 1/{beta:g} + 2 s",
        chosen=lambda s, beta, _: 1 / beta - 2 * s,
        rejected=lambda s, beta, _: 1 / beta + 2 * s,
    ),
    # l = 1 - sigma(beta s_w) + sigma(beta s_l): APO-zero, arXiv 2408.06266, eq. 7
    "apo_zero": PairLoss(
        "g(s) = h(s) = {beta:g} sigma'({beta:g} s)",
        chosen=lambda s, beta, _: beta * _slope(beta * s),
        rejected=lambda s, beta, _: beta * _slope(beta * s),
    ),
    # l = sigma(beta s_w) + 1 - sigma(beta m): APO-down, arXiv 2408.06266, eq. 8
    "apo_down": PairLoss(
        "f(m) = {beta:g} sigma'({beta:g} m), g(s) = -{beta:g} sigma'({beta:g} s)",
        margin=lambda m, beta, _: beta * _slope(beta * m),
        chosen=lambda s, beta, _: -beta * _slope(beta * s),
    ),
}

MARGIN_LOSSES = tuple(name for name, loss in LOSSES.items() if loss.chosen is None and loss.rejected is None)
"""Those that are functions of the margin alone."""

SCORES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], str, str]] = {
    "reverse_kl": (lambda d: d, torch.ones_like, "d_i", "1"),
    "forward_kl": (
        lambda d: -torch.expm1(-d.clamp(min=-20.0)),
        lambda d: (-d.clamp(min=-20.0)).exp(),
        "1 - exp(-d_i)",
        "exp(-d_i)",
    ),
    "js": (lambda d: math.log(2) + logsigmoid(d), lambda d: torch.sigmoid(-d), "log(2 sigma(d_i))", "sigma(-d_i)"),
}
"""s = phi'(e^d) of the log-ratio d, and ds/dd, for the divergence phi to the reference (f-DPO, arXiv 2309.16240).

As functions, and in symbols.
"""
