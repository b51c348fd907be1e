"""HPT with a soft switch: coefficients of rollouts and demonstration that depend on how many rollouts are solved."""

from __future__ import annotations

from posttrain.algorithms.hpt import hybrid_terms
from posttrain.estimator import Algorithm
from posttrain.estimator.masks import Clip, Unmasked
from posttrain.estimator.weights import SolvedTable


def hpt_soft(
    *,
    rollouts: tuple[float, ...] = (0.0, 0.0, 0.125, 0.25, 0.5, 1.0),
    demonstrations: tuple[float, ...] = (1.0, 1.0, 0.5, 0.25, 0.125, 0.0),
    off_policy: tuple[float, ...] = (0.0,),
    clip: bool = True,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    std: bool = False,
    length: int = 8192,
    gamma: float = 0.1,
) -> Algorithm:
    """L = alpha L_RL + beta L_SFT + delta L_off, alpha = rollouts[n], beta = demonstrations[n], delta = off_policy[n].

    n is the number of solved rollouts of the prompt, a table's last entry stands for every higher n, and the losses
    are those of `hpt` (arXiv 2509.04419, eq. 8-13 with general f and g). The tables are the second of the three in
    its code, for 8 rollouts a prompt, read with n = 0 as n = 1.
    """
    mask = Clip(low=clip_low, high=clip_high) if clip else Unmasked()
    off = SolvedTable(off_policy) if any(off_policy) else None
    weights = SolvedTable(rollouts), SolvedTable(demonstrations), off
    return Algorithm("hpt_soft", hybrid_terms(*weights, mask=mask, std=std, length=length, gamma=gamma))
