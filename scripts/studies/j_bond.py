"""J-BOND, sampling the best of n, and REINFORCE with a KL penalty, by win rate at a divergence."""

from __future__ import annotations

import math

from studies import measure
from studies.common import HeldOut, base, from_scratch, rows, sampling
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree
from studies.tasks import Chance, Rows

STEPS = 150
START = from_scratch(Rows(Chance(), "train", 2000, stream=1), steps=60)
PROMPTS = Rows(Chance(), "train", 1000)
HELD_OUT = HeldOut(Rows(Chance(), "held_out", 100), "late_letters", max_tokens=10)
NUM_REFERENCE = 64


def _measure(run: Finished) -> Figures:
    start, loaded = measure.Loaded.of(run.start), measure.Loaded.of(run.final)
    reference = HELD_OUT.play(run.context, start, NUM_REFERENCE)
    played = HELD_OUT.play(run.context, loaded, 16)
    kl = measure.divergence(measure.sequences(played), loaded.model, start.model) if run.stages else 0.0
    won = measure.win_rate(played, reference) if run.stages else 0.5
    frontier = best_of_n_win_rate(kl)
    return {"won": won, "kl": kl, "frontier": frontier, "gap": won - frontier, "above_4": won - 0.8}


def _rloo(kl_weight: float) -> Tree:
    rollouts = sampling("late_letters", group_size=3, max_tokens=10)
    return rollouts | {"algorithm": {"name": "rloo", "kl_weight": kl_weight}}


def best_of_n_win_rate(kl: float) -> float:
    """Win rate n / (n + 1) of the best of n whose divergence log n - (n - 1) / n is `kl`, n a real number."""
    low, high = 1.0, 2.0
    while math.log(high) - (high - 1) / high < kl:
        high *= 2
    for _ in range(60):
        n = (low + high) / 2
        low, high = (n, high) if math.log(n) - (n - 1) / n < kl else (low, n)
    return low / (low + 1)


J_BOND = Study(
    name="j_bond",
    title="J-BOND: the distribution of the best of n, without sampling n",
    paper="Distilling best-of-n with Jeffreys divergence and a moving anchor gives a better trade of reward against KL "
    "than REINFORCE with a KL penalty, "
    "and approaches what sampling the best of n gives (arXiv 2407.14622, sec. 5 and 6).",
    setting="Seven letters are to be written, and a taste for late letters of the alphabet ranks any two completions; "
    "the win rate is against completions of the starting model.",
    equal=f"the starting model, {STEPS} steps of 32 prompts with 3 sampled completions each (J-BOND: 2 of them the "
    "anchor's).",
    base=base(
        {"model": {"path": START}, "prompts": rows(PROMPTS)}, steps=STEPS, prompts_per_step=32, learning_rate=3e-4
    ),
    arms=(
        Arm("reference", ()),
        Arm("REINFORCE (RLOO), KL 0.01", (_rloo(0.01),)),
        Arm("REINFORCE (RLOO), KL 0.1", (_rloo(0.1),)),
        Arm("J-BOND", (sampling("late_letters", group_size=1, max_tokens=10) | {"algorithm": {"name": "j_bond"}},)),
    ),
    figures={
        "won": Figure("win rate", ".1%"),
        "kl": Figure("KL to the reference, nats", ".2f"),
        "frontier": Figure("win rate of the best of n at this KL", ".1%"),
        "gap": Figure("difference", "+.1%"),
        "above_4": Figure("win rate above 80 %", "+.1%"),
        "seconds": Figure("training, s", ".0f"),
    },
    claims=(
        Claim("J-BOND wins against the reference more than the best of 4 (80 %)", "above_4", "J-BOND"),
        Claim("J-BOND is nearer to the best of n at its KL than KL 0.01", "gap", "J-BOND", "REINFORCE (RLOO), KL 0.01"),
        Claim("J-BOND is nearer to the best of n at its KL than KL 0.1", "gap", "J-BOND", "REINFORCE (RLOO), KL 0.1"),
    ),
    measure=_measure,
)
