"""Reward models on a task with a known gold reward: how often they are right on held-out pairs, and how sure."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from posttrain.config.schema import SourceSettings
from posttrain.data.sources import load_source
from posttrain.evaluation.calibration import calibration
from posttrain.evaluation.reward_model import RewardModel
from studies.common import base, rows
from studies.oreal import START
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree
from studies.tasks import Judged, Rows

TASK = Judged()
HELD_OUT = Rows(TASK, "held_out", 400)


def _arm(title: str, **settings: Any) -> Arm:
    algorithm: Tree = {"name": "bradley_terry"} | settings
    return Arm(title, ({"algorithm": algorithm},))


def _measure(run: Finished) -> Figures:
    """On held-out pairs: accuracy by the noisy judge and by the gold reward (which ties leave out), calibration."""
    model = RewardModel.load(str(run.final), device="cpu")
    examples = list(load_source(SourceSettings(path=HELD_OUT.path(run.context), chat=True), "preferences"))
    sides = [(one.prompt, side) for one in examples for side in (one.chosen, one.rejected) if side is not None]
    scores = [model.reward(said, side)[0] for said, (_, side) in zip(model(sides), sides, strict=True)]
    chances = [
        1 / (1 + math.exp(rejected - chosen)) for chosen, rejected in zip(scores[::2], scores[1::2], strict=True)
    ]
    found = calibration(chances, [1.0] * len(chances), mirrored=True)
    gold = [one.columns["gold_chosen"] - one.columns["gold_rejected"] for one in examples]
    agrees = [
        (chance > 0.5) == (difference > 0) for chance, difference in zip(chances, gold, strict=True) if difference
    ]
    ideal = [1 / (1 + math.exp(-difference)) for difference in gold]
    best = calibration(ideal, [1.0] * len(ideal), mirrored=True)
    return {
        "accuracy": found.accuracy,
        "best_accuracy": best.accuracy,
        "gold_accuracy": fmean(agrees),
        "above_chance": fmean(agrees) - 0.5,
        "calibration_error": found.calibration_error,
        "excess": found.calibration_error - found.floor,
        "log_loss": found.log_loss,
        "best_log_loss": best.log_loss,
        "offset": abs(fmean(scores)),
    }


REWARD_MODELS = Study(
    name="reward_models",
    title="Reward models: held-out accuracy and calibration on a known gold reward",
    paper="A Bradley-Terry reward model ranks held-out completions as its judge does (arXiv 2307.09288, sec. 3.2); a "
    "centre penalty keeps its scores near 0 at no cost (arXiv 2312.09244); goal-conditioned contrast adds accuracy "
    "(arXiv 2407.13887, table 2).",
    setting="Two strings of a, b and c; the gold reward is the number of c's, and the judge prefers the better one "
    "with probability sigma(difference), so that even the gold reward is not always right ('best'). 400 held-out "
    "pairs.",
    equal="a starting model that writes letters by chance, 1,000 pairs, 100 steps of 32 pairs.",
    base=base(
        {"model": {"path": START}, "preferences": rows(Rows(TASK, "train", 1000))},
        steps=100,
        prompts_per_step=32,
        learning_rate=3e-3,
    ),
    arms=(
        _arm("Bradley-Terry"),
        _arm("centre penalty 0.01", centre=0.01),
        _arm("goal contrast", name="goal_contrastive"),
    ),
    figures={
        "accuracy": Figure("judge's preference", ".1%"),
        "best_accuracy": Figure("the same, best", ".1%"),
        "gold_accuracy": Figure("gold preference", ".1%"),
        "above_chance": Figure("the same, above chance", ".1%"),
        "calibration_error": Figure("calibration error", ".3f"),
        "excess": Figure("above a calibrated model's", ".3f"),
        "log_loss": Figure("log loss, nats", ".3f"),
        "best_log_loss": Figure("the same, best", ".3f"),
        "offset": Figure("|mean score|", ".2f"),
        "seconds": Figure("training, s", ".0f"),
    },
    claims=(
        Claim("Bradley-Terry ranks as the gold reward does, above chance", "above_chance", "Bradley-Terry"),
        Claim(
            "its calibration error is at most 0.05 above a calibrated model's", "excess", "Bradley-Terry", at_most=0.05
        ),
        Claim(
            "the centre penalty brings scores nearer to 0", "offset", "centre penalty 0.01", "Bradley-Terry", sign=-1
        ),
        Claim(
            "the centre penalty costs at most 3 points of accuracy",
            "gold_accuracy",
            "centre penalty 0.01",
            "Bradley-Terry",
            at_most=0.03,
        ),
        Claim("goal contrast ranks better", "gold_accuracy", "goal contrast", "Bradley-Terry"),
    ),
    measure=_measure,
)
