"""The algorithm of a run: the recipe's, with the correction for its sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from posttrain.algorithms import load
from posttrain.config import Recipe
from posttrain.config.correction import correctable, correction
from posttrain.estimator import Algorithm, PolicyTerm
from posttrain.estimator.importance import sampler_correction
from posttrain.estimator.objective import Constant, constants

_ROLE = "correction"


def algorithm_of(recipe: Recipe) -> Algorithm:
    """The recipe's algorithm; where `rollout.correction` says so, importance weights on its gradients on rollouts."""
    algorithm = load(recipe.algorithm.name, **recipe.algorithm.settings)
    weights = sampler_correction(correction(recipe, algorithm), recipe.rollout.correction_cap)
    if weights is None:
        return algorithm
    chosen = {term.name for term in correctable(algorithm)}
    terms = (
        replace(term, correction=weights) if isinstance(term, PolicyTerm) and term.name in chosen else term
        for term in algorithm.terms
    )
    return replace(algorithm, terms=tuple(terms))


def correction_origins(algorithm: Algorithm, provenance: Mapping[str, str]) -> dict[Constant, str]:
    """The settings of the recipe that the correction's constants come from; provenance: dotted path -> origin."""
    found = {}
    for term, role, name in constants(algorithm):
        if role == _ROLE:
            path = f"rollout.{_ROLE}" + ("_cap" if name == "cap" else "")
            found[term, role, name] = f"{path}, {provenance[path]}"
    return found
