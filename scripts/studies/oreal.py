"""OREAL without its token weights, and without its treatment of failures, where one letter in many decides."""

from __future__ import annotations

from typing import Any

from studies.common import ADDED, HeldOut, base, from_scratch, rows, sampling
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree
from studies.tasks import Chance, Rows

STEPS = 60
START = from_scratch(Rows(Chance(), "train", 2000, stream=1), steps=60)
HELD_OUT = HeldOut(Rows(Chance(), "held_out", 300), "decisive")


def _oreal(**settings: Any) -> tuple[Tree, ...]:
    critic = {} if settings.get("token_model") is False else {"critic": {"learning_rate": 1e-3, "warmup_steps": 10}}
    steps = STEPS + 10 if critic else STEPS
    algorithm = {"name": "oreal", "kl_anchor": "reference"} | settings
    return (critic | {"algorithm": algorithm, "training": {"steps": steps}},)


def _measure(run: Finished) -> Figures:
    figures = HELD_OUT.solved(run) | {"kl": HELD_OUT.kl(run)}
    if not run.stages:
        return figures
    return figures | {"per_nat": (figures["sampled"] - 1 / len(Chance.letters)) / figures["kl"]}


OREAL = Study(
    name="oreal",
    title="OREAL: weights on the tokens that decide, and reshaped failures",
    paper="Where the reward is sparse, behaviour cloning of solved rollouts gains from reshaped penalties on unsolved "
    "ones and from token weights (arXiv 2502.06781, sec. 4, ablation).",
    setting="Seven letters are to be written, and only the one in the middle counts: it must be a c. The starting "
    "model writes its eight letters by chance.",
    equal=f"the starting model, {STEPS} steps of the policy with 16 prompts and 8 rollouts each, of which one solved "
    "and one unsolved are kept; the token model learns alone for 10 steps before.",
    base=base(
        {"model": {"path": START}, "prompts": rows(Rows(Chance(), "train", 1000))},
        sampling("decisive"),
        steps=STEPS,
        prompts_per_step=16,
        learning_rate=2e-4,
    ),
    arms=(
        Arm("starting model", ()),
        Arm("OREAL", _oreal()),
        Arm("without token weights", _oreal(token_model=False, one_each=True)),
        Arm("failures not reshaped", _oreal(shaping="none")),
        Arm("failures left out", _oreal(negative_weight=0.0)),
    ),
    figures={
        "sampled": Figure("solved, temperature 1", ".1%"),
        "kl": Figure("KL to the start, nats", ".2f"),
        "per_nat": Figure("gained per nat", ".3f"),
        "seconds": Figure("training, s", ".0f"),
    },
    claims=tuple(
        Claim(f"OREAL {what}: {name}", figure, "OREAL", name)
        for what, figure in (("solves more", "sampled"), ("gains more per nat", "per_nat"))
        for name in ("without token weights", "failures not reshaped", "failures left out")
    ),
    measure=_measure,
    note="With the KL towards the policy before the update, as the paper prints it, and a learning rate of 3e-4, "
    "runs of OREAL (seed 1) and of OREAL without token weights (seed 0) collapsed: that KL has no gradient at the "
    "first update of a rollout phase. Here the KL is towards the starting model, as in the authors' code. " + ADDED,
)
