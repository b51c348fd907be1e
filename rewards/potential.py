"""Potential-based shaping over an episode's turns (Ng, Harada and Russell, ICML 1999)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from posttrain.errors import DataError, RecipeError
from posttrain.reward import Graded
from posttrain.reward.shaping import potential_based


def potential(states: Sequence[str], potentials: Mapping[str, float], *, discount: float = 1.0) -> float:
    """F_t = discount Phi(s_{t+1}) - Phi(s_t) at turn t, where Phi is 0 after the last turn; list it `shaping: true`.

    states: what the environment calls the state of each turn. potentials: the row's column, Phi of each by name; 0 for
    a state that it does not name. Whatever Phi is, the best policy under the sum of rewards stays the best one, if
    `discount` is the one that returns are made with. RecipeError for a discount outside [0, 1], DataError where
    potentials has something else than numbers.
    """
    if not 0 <= discount <= 1:
        raise RecipeError(f"potential: discount is {discount}; allowed: 0 to 1")
    try:
        values = [float(potentials.get(state, 0.0)) for state in states]
    except (AttributeError, TypeError, ValueError) as error:
        raise DataError(
            f"potential: the column 'potentials' is {potentials!r:.100}; allowed: state -> number"
        ) from error
    return Graded.spread(potential_based(values, discount))
