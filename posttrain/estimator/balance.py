"""How much to imitate beside exploring, by how the two change the policy's entropy (RED, arXiv 2508.16677)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit


@dataclass(frozen=True)
class EntropyBalance:
    """w = clip(dH_imitation / dH_policy, 1, cap), dH the smoothed |change| of a term's mean entropy from step to step.

    The less exploring moves the entropy, the more is imitated (RED, arXiv 2508.16677; reconstruction from reviews and a
    third-party implementation: decay 0.99, cap 5). dH <- decay dH + (1 - decay) |H - H_before|, H the mean over the
    tokens that the term `imitation`, `policy` trains on, both of the step before; w is 1 until both have changed once.
    Steps in which one of them trains on nothing are skipped.
    """

    imitation: str = "imitation"
    policy: str = "policy"
    decay: float = 0.99
    cap: float = 5.0
    needs: ClassVar[frozenset[str]] = frozenset({"memory"})

    def __post_init__(self) -> None:
        """ValueError outside 0 <= decay < 1 <= cap."""
        if not 0 <= self.decay < 1 <= self.cap:
            raise ValueError(f"decay is {self.decay}, cap {self.cap}; allowed: 0 <= decay < 1, cap of at least 1")

    @property
    def formula(self) -> str:
        """The clipped ratio."""
        return f"clip(|dH_{self.imitation}|/|dH_{self.policy}|, 1, {self.cap:g})"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S], all the same."""
        imitation, policy = (batch.memory.get(f"{name}/entropy_change", 0.0) for name in (self.imitation, self.policy))
        ratio = imitation / policy if policy else self.cap if imitation else 1.0
        return torch.full_like(batch.weight, min(max(ratio, 1.0), self.cap))

    def remember(self, memory: Mapping[str, float], means: Mapping[str, float]) -> dict[str, float]:
        """Each term's last entropy, and the smoothed size of its changes."""
        kept = dict(memory)
        figures = [f"{name}/entropy" for name in (self.imitation, self.policy)]
        if not all(figure in means for figure in figures):
            return kept
        for figure in figures:
            if figure in memory:
                change = abs(means[figure] - memory[figure])
                before = memory.get(f"{figure}_change", 0.0)
                kept[f"{figure}_change"] = self.decay * before + (1 - self.decay) * change
            kept[figure] = means[figure]
        return kept


@dataclass(frozen=True)
class AccuracyShift:
    """A_i = clip(cap^(1 - 2 accuracy), 1/cap, cap): more of a demonstration whose prompt is seldom solved.

    accuracy: the share of the prompt's graded rollouts that are solved; without one, A_i = 1. RED's accuracy-aware
    shift is known by its idea only (arXiv 2508.16677): this is a third party's formula (reconstruction).
    """

    cap: float = 5.0
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""
    grades_demonstrations: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """ValueError below 1."""
        if not self.cap >= 1:
            raise ValueError(f"cap is {self.cap}; allowed: at least 1")

    @property
    def formula(self) -> str:
        """The power."""
        return f"{self.cap:g}^(1 - 2 num_solved/num_graded)"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        graded = (batch.graded & batch.is_from(Source.ROLLOUTS)).to(batch.reward.dtype)
        number = batch.group_sum(graded)
        accuracy = batch.group_sum(graded * batch.solved) / number.clamp(min=1)
        power = torch.where(number > 0, 1 - 2 * accuracy, torch.zeros_like(accuracy))
        return (torch.full_like(power, self.cap) ** power)[batch.group_index]
