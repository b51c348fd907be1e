"""The constants of PPO with a critic, as its authors and as three peers have them.

The defaults of TRL's PPO trainer, verl 0.9 and OpenRLHF 0.11 for a run that asks for PPO (GAE) and sets nothing else.
Clip, KL, entropy and sampler correction are those of `presets`, whose group statistics PPO does not read.
"""

from __future__ import annotations

from dataclasses import dataclass

from posttrain.algorithms.presets import Constants, Mean, Preset
from posttrain.estimator.gae import Gae, Per
from posttrain.estimator.parts import Advantage
from posttrain.estimator.value import SquaredError, ValueTerm
from posttrain.estimator.weights import Always
from posttrain.estimator.whitening import Whitened


@dataclass(frozen=True)
class PpoConstants(Constants):
    """One choice of each. whiten: the policy's advantages, over the step; value_clip 0 is off."""

    aggregation: Mean = "token_mean"
    kl_weight: float = 0.0
    gamma: float = 1.0
    lambda_: float = 0.95
    per: Per = "token"
    whiten: bool = True
    value_clip: float = 0.2
    value_weight: float = 1.0

    def gae(self) -> Gae:
        """The estimate that both terms share, with the KL penalty where it belongs into the reward."""
        return Gae(self.gamma, self.lambda_, self.per, self.kl_weight if self.kl_place == "reward" else 0.0)

    def advantage(self) -> Advantage:
        """The policy's."""
        return Whitened(self.gae()) if self.whiten else self.gae()

    def value_term(self) -> ValueTerm:
        """The critic's regression."""
        return ValueTerm(returns=self.gae(), error=SquaredError(self.value_clip), weight=Always(self.value_weight))


PPO_PRESETS: dict[Preset | None, PpoConstants] = {
    None: PpoConstants(),
    "trl": PpoConstants(kl_weight=0.05, kl_estimator="k1", kl_place="reward", value_weight=0.1),
    "verl": PpoConstants(dual_clip=3.0, lambda_=1.0, value_clip=0.5),
    "openrlhf": PpoConstants(lambda_=1.0, value_clip=0.5, kl_weight=0.01, kl_estimator="k1", kl_place="reward"),
}
