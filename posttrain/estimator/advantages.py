"""How much better an action was than expected.

Ungraded sequences have advantage 0 and are left out of every statistic. Group statistics run over the sequences of
one prompt, over whole groups, before any split into micro-batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import TokenBatch, Unit
from posttrain.estimator.read import field


@dataclass(frozen=True)
class Constant:
    """The same number everywhere: 1 is imitation (arXiv 2509.04419, table 1)."""

    value: float = 1.0
    needs: ClassVar[frozenset[str]] = frozenset()
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    @property
    def formula(self) -> str:
        """The number."""
        return f"{self.value:g}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S], all `value`."""
        return torch.full_like(batch.reward, self.value)


@dataclass(frozen=True)
class Reward:
    """The reward minus a constant: A_i = R_i - baseline (Williams 1992)."""

    baseline: float = 0.0
    needs: ClassVar[frozenset[str]] = frozenset({"rewards"})
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    @property
    def formula(self) -> str:
        """R_i - b."""
        return f"R_i - {self.baseline:g}" if self.baseline else "R_i"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        return torch.where(batch.graded, batch.reward - self.baseline, torch.zeros_like(batch.reward))


@dataclass(frozen=True)
class GroupRelative:
    """The reward against its group: A_i = R_i - mean_j R_j, divided by the group's standard deviation if `std`.

    GRPO (arXiv 2402.03300, sec. 4.1.2) divides; Dr. GRPO (arXiv 2503.20783, sec. 3.2) does not. The deviation is the
    sample's (n - 1), plus `epsilon`, as in TRL and verl. A group of one, or one whose rewards are exactly equal, has
    advantage exactly 0, so that it can be pruned and rounding noise is never blown up.
    """

    std: bool = True
    epsilon: float = 1e-6
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""

    @property
    def formula(self) -> str:
        """(R_i - mean_group R) / std_group R."""
        return f"(R_i - mean_group R) / (std_group R + {self.epsilon:g})" if self.std else "R_i - mean_group R"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        centred, count = _centred(batch)
        if not self.std:
            return centred
        variance = batch.group_sum(centred**2) / (count - 1).clamp(min=1)
        return centred / (variance.sqrt() + self.epsilon)[batch.group_index]


@dataclass(frozen=True)
class LeaveOneOut:
    """The reward against the mean of the others in its group: A_i = R_i - 1/(n-1) sum_{j != i} R_j.

    RLOO (arXiv 2402.14740, sec. 2.2): unbiased, as the baseline does not contain R_i. Equal to n / (n - 1) times the
    reward minus the group's mean. 0 for a group of one and where all rewards are exactly equal.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""
    formula: ClassVar[str] = "R_i - mean_{j != i} R_j"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        centred, count = _centred(batch)
        return centred * (count / (count - 1).clamp(min=1))[batch.group_index]


def _centred(batch: TokenBatch) -> tuple[Tensor, Tensor]:
    """R_i - mean_group R over the graded [S], exactly 0 where a group's are all equal; and their number [G]."""
    rows = batch.graded
    weight = rows.to(batch.reward.dtype)
    count = batch.group_sum(weight)
    mean = batch.group_sum(weight * batch.reward) / count.clamp(min=1)
    centred = weight * (batch.reward - mean[batch.group_index])
    return torch.where(varies(batch, rows)[batch.group_index], centred, torch.zeros_like(centred)), count


def varies(batch: TokenBatch, rows: Tensor) -> Tensor:
    """Whether the rewards of `rows` [S] in each group [G] are not all exactly equal."""
    low = torch.full((batch.num_groups,), torch.inf, dtype=batch.reward.dtype, device=batch.reward.device)
    index, reward = batch.group_index[rows], batch.reward[rows]
    lowest = low.scatter_reduce(0, index, reward, "amin")
    highest = (-low).scatter_reduce(0, index, reward, "amax")
    return highest > lowest


@dataclass(frozen=True)
class ReferenceKL:
    """The pull of a KL penalty towards the frozen reference model, as an advantage of the denominator `current`.

    With d = log pi - log pi_ref: "k1" and "k2" give A = -d (the score-function gradient of KL(pi || pi_ref), and the
    gradient of d^2 / 2: the same); "k3" gives A = -(1 - exp(-d)), the gradient of exp(-d) + d - 1 (Schulman 2020;
    GRPO, arXiv 2402.03300, eq. 4), with -d bounded at 20 so that float32 does not overflow.
    """

    estimator: str = "k3"
    needs: ClassVar[frozenset[str]] = frozenset({"reference_logprobs"})
    uses_policy: ClassVar[bool] = True
    couples: ClassVar[Unit] = ""

    def __post_init__(self) -> None:
        """ValueError on an unknown estimator."""
        if self.estimator not in ("k1", "k2", "k3"):
            raise ValueError(f"estimator is {self.estimator!r}; allowed: k1, k2, k3")

    @property
    def formula(self) -> str:
        """The advantage in symbols."""
        return "-(1 - pi_ref/pi)" if self.estimator == "k3" else "-log(pi/pi_ref)"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[A]."""
        difference = field(batch, "logprobs").detach() - field(batch, "reference_logprobs")
        return torch.expm1((-difference).clamp(max=20.0)) if self.estimator == "k3" else -difference
