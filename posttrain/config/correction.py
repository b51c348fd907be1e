"""Whether a run corrects for rollouts of another policy than the trainer's, and how: `rollout.correction` resolved."""

from __future__ import annotations

from posttrain.config.asked import Algorithm, Term
from posttrain.config.schema import Correction, Recipe

_PARTS = {"denominator", "mask", "advantage", "likelihood"}


def correction(recipe: Recipe, algorithm: Algorithm) -> Correction:
    """LEVEL_MODE of the importance weights that `correctable` terms get, or "none".

    auto is token_truncate where the sampler differs, unless the ratios begin at the sampler's own logprobs or the
    algorithm corrects itself.
    """
    asked = recipe.rollout.correction
    if not correctable(algorithm):
        return "none"
    if asked != "auto":
        return asked
    return "token_truncate" if differs(recipe) and recipe.rollout.old_logprobs == "trainer" else "none"


def differs(recipe: Recipe) -> bool:
    """Whether the recipe alone says that another policy samples: an older one, another engine's, one of less precision.

    Rounding to the precision that `auto` picks on a device is not in the recipe, and not taken for a difference.
    """
    return recipe.rollout.max_staleness > 0 or recipe.rollout.engine == "vllm" or samples_below_precision(recipe)


def samples_below_precision(recipe: Recipe) -> bool:
    """Whether the recipe samples in half precision and trains in more."""
    low = recipe.rollout.dtype in ("bfloat16", "float16")
    return low and recipe.model.dtype in ("float32", "float64") and recipe.training.mixed_precision == "no"


def correctable(algorithm: Algorithm) -> tuple[Term, ...]:
    """The policy gradients on rollouts that a weight on each token corrects, and that do not correct themselves.

    Not those that compare pairs: preferences among rollouts hold for any policy's, and a ratio of two completions is no
    product of its tokens' terms.
    """
    return tuple(
        term
        for term in algorithm.terms
        if term.source == "rollouts"
        and term.describe().keys() >= _PARTS
        and "rewards" in term.describe()["advantage"].needs
        and not corrects_itself(term)
        and term.describe()["advantage"].couples != "pair"
    )


def corrects_itself(term: Term) -> bool:
    """Whether its ratio or its mask compares with what the sampler reported; a filter may read that for other ends."""
    parts = term.describe()
    return any("behavior_logprobs" in parts[role].needs for role in ("denominator", "mask") if role in parts)
