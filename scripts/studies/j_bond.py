"""J-BOND, sampling the best of n, and REINFORCE with a KL penalty, by win rate at a divergence."""

from __future__ import annotations

import math

from studies import measure
from studies.common import ADDED, HeldOut, base, from_scratch, rows, sampling
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree
from studies.tasks import Chance, Rows

STEPS = 80
START = from_scratch(Rows(Chance(), "train", 2000, stream=1), steps=60)
PROMPTS = Rows(Chance(), "train", 1000)
HELD_OUT = HeldOut(Rows(Chance(), "held_out", 100), "late_letters", max_tokens=10)
NUM_REFERENCE = 64


def _measure(run: Finished) -> Figures:
    if not run.stages:
        return {"won": 0.5, "kl": 0.0}
    start, loaded = measure.Loaded.of(run.start), measure.Loaded.of(run.final)
    reference = HELD_OUT.play(run.context, start, NUM_REFERENCE)
    played = HELD_OUT.play(run.context, loaded, 16)
    won = measure.win_rate(played, reference)
    kl = measure.divergence(measure.sequences(played), loaded.model, start.model)
    return {"won": won, "kl": kl, "spent": kl / best_of_n_kl(won), "above_4": won - 0.8}


def _rloo(kl_weight: float) -> Tree:
    rollouts = sampling("late_letters", group_size=3, max_tokens=10)
    return rollouts | {"algorithm": {"name": "rloo", "kl_weight": kl_weight}}


def best_of_n_kl(won: float) -> float:
    """log n - (n - 1) / n of the n (a real number) whose best of n wins this often: n / (n + 1) (arXiv 2401.01879)."""
    n = won / (1 - won)
    return math.log(n) - (n - 1) / n


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
        Arm("REINFORCE (RLOO), KL 0.03", (_rloo(0.03),)),
        Arm("J-BOND", (sampling("late_letters", group_size=1, max_tokens=10) | {"algorithm": {"name": "j_bond"}},)),
    ),
    figures={
        "won": Figure("win rate", ".1%"),
        "kl": Figure("KL to the reference, nats", ".2f"),
        "spent": Figure("KL / that of the best of n with this win rate", ".2f"),
        "above_4": Figure("win rate above 80 %", "+.1%"),
        "seconds": Figure("training, s", ".0f"),
    },
    claims=(
        Claim("J-BOND wins more often than the best of 4 (80 %)", "above_4", "J-BOND"),
        *(
            Claim(f"J-BOND spends less KL for its win rate than {name}", "spent", "J-BOND", name, sign=-1, ratio=True)
            for name in ("REINFORCE (RLOO), KL 0.01", "REINFORCE (RLOO), KL 0.03")
        ),
    ),
    measure=_measure,
    note=ADDED,
)
