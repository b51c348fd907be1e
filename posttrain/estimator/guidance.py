"""A prompt's demonstration as one more member of its group of rollouts (LUFFY, SRFT)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from posttrain.batch import Source, TokenBatch, Unit
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.aggregation import TokenMean
from posttrain.estimator.parts import Aggregation


@dataclass(frozen=True)
class GuidedGroupRelative:
    """`GroupRelative` over the rollouts of a prompt and its demonstrations, which count as rewarded with `reward`.

    A_i = (R_i - mean(G_on + G_off)) / std(G_on + G_off) (LUFFY's mixed-policy GRPO, arXiv 2504.14945).
    """

    reward: float = 1.0
    std: bool = True
    epsilon: float = 1e-6
    needs: ClassVar[frozenset[str]] = frozenset({"rewards", "groups"})
    uses_policy: ClassVar[bool] = False
    couples: ClassVar[Unit] = ""
    grades_demonstrations: ClassVar[bool] = True

    @property
    def formula(self) -> str:
        """That of `GroupRelative`, and what a demonstration counts as."""
        return f"{GroupRelative(self.std, self.epsilon).formula}, R_demonstration = {self.reward:g}"

    def __call__(self, batch: TokenBatch) -> Tensor:
        """[S]."""
        shown = batch.is_from(Source.DEMONSTRATIONS)
        reward = torch.where(shown, torch.full_like(batch.reward, self.reward), batch.reward)
        return GroupRelative(self.std, self.epsilon)(batch.replace(reward=reward, graded=batch.graded | shown))


@dataclass(frozen=True)
class Joint:
    """Another aggregation, counted over graded rollouts and demonstrations together, whichever the term runs over.

    Two terms with it share one normaliser, as in a loss over a mixed batch (arXiv 2504.14945).
    """

    aggregation: Aggregation = field(default_factory=TokenMean)
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def formula(self) -> str:
        """The other's; N counts both sources."""
        return f"{self.aggregation.formula} (N of both sources)"

    def token_weights(self, batch: TokenBatch) -> Tensor:
        """Those of the other [A]."""
        return self.aggregation.token_weights(batch)

    def count(self, batch: TokenBatch, rows: Tensor) -> Tensor:
        """The other's, over both sources."""
        both = (batch.is_from(Source.ROLLOUTS) & batch.graded) | batch.is_from(Source.DEMONSTRATIONS)
        return self.aggregation.count(batch, both)
