"""P3O and PPO where every prompt's rewards are shifted by a number of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from studies.common import ADDED, HELD_OUT, START, WORDS, base, rows, sampling
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree
from studies.tasks import Rows, Shifted

STEPS = 30
SHIFTED = Rows(Shifted(WORDS.make, deviation=4), "train", WORDS.size)


def _twice(**settings: Any) -> tuple[Tree, ...]:
    """Without and with the shift, each from the starting model."""
    plain, shifted = sampling("exact", group_size=4), sampling("exact", "shift", group_size=4)
    return tuple(settings | {"model": {"path": START}} | rewarded for rewarded in (plain, shifted))


def _measure(run: Finished) -> Figures:
    if not run.stages:
        rate = HELD_OUT.solved(run)["sampled"]
        return {"plain": rate}
    plain, shifted = (stage / "final" for stage in run.stages)
    rates = [HELD_OUT.solved(run, final)["sampled"] for final in (plain, shifted)]
    moved = _distance(plain, run.start)
    return {
        "plain": rates[0],
        "shifted": rates[1],
        "change": abs(rates[1] - rates[0]),
        "apart": _distance(plain, shifted) / moved,
    }


def _distance(one: Path, other: Path) -> float:
    """Between the weights of two models."""
    a, b = (load_file(path / "model.safetensors") for path in (one, other))
    return float(torch.stack([(a[name].double() - b[name].double()).norm() for name in a]).norm())


P3O = Study(
    name="p3o",
    title="P3O: invariant to a shift of a prompt's rewards",
    paper="Rewards that differ by a number per prompt mean the same preferences; P3O's update does not change with "
    "that number, PPO's does (arXiv 2310.00212, sec. 3 and 4).",
    setting="Words of three to seven letters are to be spelt backward; the second run of each algorithm adds to every "
    "prompt's rewards a whole number of its own, of standard deviation 4.",
    equal=f"the starting model, {STEPS} steps of 32 prompts with 4 rollouts each, the same prompts and seeds.",
    base=base({"prompts": rows(SHIFTED)}, steps=STEPS, prompts_per_step=32, learning_rate=3e-4),
    arms=(
        Arm("starting model", ()),
        Arm("PPO", _twice(algorithm={"name": "ppo", "kl_weight": 0.0}, critic={"learning_rate": 1e-3})),
        Arm("P3O", _twice(algorithm={"name": "p3o", "beta": 0.0})),
    ),
    figures={
        "plain": Figure("solved, no shift", ".1%"),
        "shifted": Figure("solved, shifted", ".1%"),
        "change": Figure("absolute change", ".1%"),
        "apart": Figure("distance of the two runs' weights / distance from the start", ".2g"),
        "seconds": Figure("training of both, s", ".0f"),
    },
    claims=(
        Claim("P3O's two runs end at the same weights (at most 1e-6 apart)", "apart", "P3O", at_most=1e-6),
        Claim("PPO's two runs end further apart than P3O's", "apart", "PPO", "P3O"),
        Claim("with the shift, P3O solves more than PPO", "shifted", "P3O", "PPO"),
    ),
    measure=_measure,
    note=ADDED,
)
