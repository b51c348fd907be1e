"""The constants of the clipped group objective, as the paper and as three peers have them.

Peers mean different objectives by the same name; these are the defaults of TRL 1.16, verl 0.9 and OpenRLHF 0.11 for a
run that asks for GRPO and sets nothing else (OpenRLHF: its estimator `group_norm`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

from posttrain.estimator import PolicyTerm, Source, Term
from posttrain.estimator.advantages import GroupRelative
from posttrain.estimator.aggregation import SequenceMean, TokenMean
from posttrain.estimator.denominators import Old
from posttrain.estimator.importance import Correction, sampler_correction
from posttrain.estimator.masks import Clip, DualClip, product
from posttrain.estimator.parts import Advantage, Aggregation, Mask
from posttrain.estimator.regularisers import Estimator, regularisers
from posttrain.estimator.reward_kl import ReturnKL, RewardKL

Preset = Literal["trl", "verl", "openrlhf"]
Mean = Literal["sequence_mean", "token_mean"]
Place = Literal["loss", "reward", "return"]
"""Where the KL penalty lies: in a term of its own; in the reward, before the group's statistics; after them."""


@dataclass(frozen=True)
class Constants:
    """One choice of each; the defaults are the paper's (arXiv 2402.03300). dual_clip 0 is off."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    dual_clip: float = 0.0
    std: bool = True
    std_epsilon: float = 1e-6
    aggregation: Mean = "sequence_mean"
    kl_weight: float = 0.04
    kl_estimator: Estimator = "k3"
    kl_place: Place = "loss"
    entropy_weight: float = 0.0
    correction: Correction = "none"
    correction_cap: float = 2.0

    def mask(self) -> Mask:
        """Clip, dual clip and sampler correction, as far as they are on."""
        dual = DualClip(self.dual_clip) if self.dual_clip else None
        return product(
            Clip(self.clip_low, self.clip_high), dual, sampler_correction(self.correction, self.correction_cap)
        )

    def advantage(self) -> Advantage:
        """Group-relative, with the KL penalty where it belongs into it."""
        group = GroupRelative(self.std, self.std_epsilon)
        if self.kl_weight == 0 or self.kl_place == "loss":
            return group
        return RewardKL(group, self.kl_weight) if self.kl_place == "reward" else ReturnKL(group, self.kl_weight)

    def mean(self) -> Aggregation:
        """The aggregation."""
        return TokenMean() if self.aggregation == "token_mean" else SequenceMean()

    def terms(self) -> tuple[Term, ...]:
        """The policy's clipped term, and those of the KL penalty and of the entropy bonus where they are on."""
        advantage, mask, mean = self.advantage(), self.mask(), self.mean()
        policy = PolicyTerm(Source.ROLLOUTS, denominator=Old(), advantage=advantage, mask=mask, aggregation=mean)
        others = regularisers(
            mean,
            kl_weight=self.kl_weight if self.kl_place == "loss" else 0.0,
            kl_estimator=self.kl_estimator,
            entropy_weight=self.entropy_weight,
        )
        return policy, *others


AnyConstants = TypeVar("AnyConstants", bound=Constants)

PRESETS: dict[Preset | None, Constants] = {
    None: Constants(),
    "trl": Constants(
        std_epsilon=1e-4, aggregation="token_mean", kl_weight=0.0, correction="sequence_mask", correction_cap=3.0
    ),
    "verl": Constants(dual_clip=3.0, aggregation="token_mean", kl_weight=0.0),
    "openrlhf": Constants(
        std_epsilon=1e-9, aggregation="token_mean", kl_weight=0.01, kl_estimator="k1", kl_place="return"
    ),
}


def resolve(preset: Preset | None, **explicit: Any) -> Constants:
    """The preset's constants, with those that are not None in their place; ValueError where they contradict."""
    return filled(PRESETS[preset], explicit)


def filled(constants: AnyConstants, explicit: Mapping[str, Any]) -> AnyConstants:
    """`constants` with those of `explicit` that are not None in their place; ValueError where they contradict."""
    constants = replace(constants, **{name: value for name, value in explicit.items() if value is not None})
    if constants.kl_place != "loss" and constants.kl_weight and explicit.get("kl_estimator") not in (None, "k1"):
        raise ValueError(
            f"kl_estimator is {constants.kl_estimator!r} with kl_place {constants.kl_place!r}; allowed there: k1"
        )
    return constants
