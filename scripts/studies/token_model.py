"""The token-level outcome model alone, where one letter in many decides: does it find that letter?"""

from __future__ import annotations

from statistics import fmean

import torch

from posttrain.config.schema import SourceSettings
from posttrain.data.sources import load_source
from posttrain.evaluation.calibration import calibration
from posttrain.evaluation.reward_model import RewardModel
from studies.common import base, rows
from studies.oreal import START
from studies.study import Arm, Claim, Figure, Figures, Finished, Study
from studies.tasks import Decided, Rows

TASK = Decided()
HELD_OUT = Rows(TASK, "held_out", 400)


def _measure(run: Finished) -> Figures:
    """Weights of arXiv 2502.06781, eq. 10, for what a completion is: of the letter that decides, and before it."""
    model = RewardModel.load(str(run.final), device="cpu")
    examples = list(load_source(SourceSettings(path=HELD_OUT.path(run.context), chat=True), "trajectories"))
    played = [(one.prompt, outcome) for one in examples for outcome in one.outcomes]
    decisive, before, chances = [], [], []
    for scored, (_, outcome) in zip(model([(prompt, one.completion) for prompt, one in played]), played, strict=True):
        probability = torch.sigmoid(scored.scores[0])
        sign = 1 if outcome.solved else -1
        weights = (sign * (2 * probability - 1)).clamp(min=0).tolist()
        decisive.append(weights[TASK.place])
        before.append(fmean(weights[: TASK.place]))
        chances.append(float(torch.sigmoid(scored.scores[0].mean())))
    found = calibration(chances, [float(outcome.solved) for _, outcome in played])
    mean = {"decisive": fmean(decisive), "before": fmean(before)}
    mean["raised"] = mean["decisive"] - mean["before"]
    return mean | {
        "accuracy": found.accuracy,
        "calibration_error": found.calibration_error,
        "excess": found.calibration_error - found.floor,
    }


TOKEN_MODEL = Study(
    name="token_model",
    title="A token-level outcome model finds the token that decides",
    paper="Trained on outcomes alone, the token-level reward model gives the decisive tokens weight (arXiv 2502.06781, "
    "sec. 3.2).",
    setting="Seven letters, of which the one in the middle decides: it is a c in half of the completions, the "
    "solved ones. 400 held-out prompts.",
    equal="there is one arm: 200 steps of 32 completions from a model that writes letters by chance.",
    base=base(
        {"model": {"path": START}, "trajectories": rows(Rows(TASK, "train", 1500))},
        steps=200,
        prompts_per_step=32,
        learning_rate=2e-3,
    ),
    arms=(Arm("token model", ({"algorithm": "outcome_reward"},)),),
    figures={
        "decisive": Figure("weight of the decisive letter", ".3f"),
        "before": Figure("of the letters before it", ".3f"),
        "raised": Figure("difference", ".3f"),
        "accuracy": Figure("outcome told", ".1%"),
        "calibration_error": Figure("calibration error", ".3f"),
        "excess": Figure("above a calibrated model's", ".3f"),
        "seconds": Figure("training, s", ".0f"),
    },
    claims=(Claim("the decisive letter has more weight than those before it", "raised", "token model"),),
    measure=_measure,
)
