"""Distribution matching: the advantage that moves the policy towards a target given by the rewards.

The target is p(y|x) = pi_ref(y|x) exp(R/beta) / Z(x), and the objective any f-divergence between it and the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator.read import field

# -f'(t) as a function of u = log t, t = pi/p (arXiv 2302.08215, table 2).
PSEUDO_REWARDS: dict[str, Callable[[Tensor], Tensor]] = {
    "kl": lambda u: torch.exp(-u),
    "reverse_kl": lambda u: -(u + 1),
    "js": lambda u: softplus(-u) - math.log(2),
    "tv": lambda u: -torch.sign(u) / 2,
    "chi2": lambda u: torch.expm1(-2 * u),
    "reverse_chi2": lambda u: -2 * torch.expm1(u),
}
_LARGEST = 10.0


@dataclass(frozen=True)
class TargetDivergence:
    """A_i = -f'(t_i) - mean_group(-f'(t)), t = pi/p (f-DPG, arXiv 2302.08215, eq. 5).

    divergence: kl is KL(p || pi), reverse_kl is KL(pi || p), chi2 is chi^2(p || pi), reverse_chi2 is chi^2(pi || p);
    js and tv. The ratios are those of the policy that sampled: old_logprobs. Z is estimated from the group, Z = mean_j
    pi_ref(y_j) exp(R_j/beta) / pi_old(y_j) (the authors' code keeps a moving average per prompt; reconstruction); log t
    is bounded at +-10. Means over a group weigh each sequence by its `TokenBatch.weight`.
    """

    divergence: str = "js"
    beta: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups", "old_logprobs", "reference_logprobs"})
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    def __post_init__(self) -> None:
        """ValueError for an unknown divergence and for beta <= 0."""
        if self.divergence not in PSEUDO_REWARDS:
            raise ValueError(f"divergence is {self.divergence!r}; allowed: {', '.join(PSEUDO_REWARDS)}")
        if not self.beta > 0:
            raise ValueError(f"beta is {self.beta}; allowed: above 0")

    @property
    def formula(self) -> str:
        """The divergence and its target."""
        return f"-f'_{self.divergence}(pi_old/p) - mean_group, p = pi_ref exp(R_i/{self.beta:g})/Z"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]; 0 where ungraded."""
        weight = batch.weight * batch.graded
        log_policy = batch.sequence_sum(field(batch, "old_logprobs"))
        log_target = batch.sequence_sum(field(batch, "reference_logprobs")) + batch.reward / self.beta
        log_importance = torch.where(weight > 0, log_target - log_policy, torch.zeros_like(log_target))
        total = batch.group_sum(weight).clamp(min=torch.finfo(weight.dtype).tiny)
        counted = torch.where(weight > 0, log_importance, -torch.inf)
        highest = torch.full_like(total, -torch.inf).scatter_reduce(0, batch.group_index, counted, "amax")
        highest = torch.where(highest.isfinite(), highest, torch.zeros_like(highest))  # nothing graded in the group
        shares = weight * torch.exp(log_importance - highest[batch.group_index])
        log_z = highest + torch.log(batch.group_sum(shares) / total)
        log_ratio = (log_z[batch.group_index] - log_importance).clamp(-_LARGEST, _LARGEST)
        pseudo_reward = PSEUDO_REWARDS[self.divergence](log_ratio)
        mean = batch.group_sum(weight * pseudo_reward) / total
        return torch.where(batch.graded, pseudo_reward - mean[batch.group_index], torch.zeros_like(mean[:1]))
