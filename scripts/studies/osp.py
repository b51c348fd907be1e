"""OSP's soft preferences against hard ones, from the same unsure judge."""

from __future__ import annotations

from studies.common import ADDED, HELD_OUT, WORDS, base, rows, sampling
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree

HARD, SOFT = "hard preferences", "soft preferences"
STEPS = 100
NOISE = 0.4


def _measure(run: Finished) -> Figures:
    return HELD_OUT.solved(run) | {"kl": HELD_OUT.kl(run)}


def _osp(hard_threshold: float | None) -> Tree:
    settings = {"judge": "rewards", "reward_scale": NOISE, "hard_threshold": hard_threshold}
    return {"algorithm": {"name": "osp", "beta": 0.1, "pairs": "mirrored"} | settings}


OSP = Study(
    name="osp",
    title="OSP: how sure the judge is, instead of what it prefers",
    paper="Training on the strength of a preference, rather than on its sign, overfits less to a judge that is not "
    "sure (arXiv 2405.14103; loss and strength reconstructed).",
    setting="The judge scores the share of right letters with noise of standard deviation 0.4, the same for a "
    "completion whenever it is asked: what can be overfitted.",
    equal=f"the starting model, {STEPS} steps of 16 prompts with 4 rollouts each, the same pairing, beta 0.1.",
    base=base(
        {"prompts": rows(WORDS)},
        sampling({"name": "letters", "noise": NOISE}, group_size=4),
        steps=STEPS,
        prompts_per_step=16,
        learning_rate=3e-4,
    ),
    arms=(
        Arm("starting model", ()),
        Arm(HARD, (_osp(0.5),)),
        Arm(SOFT, (_osp(None),)),
    ),
    figures={
        "sampled": Figure("solved, temperature 1", ".1%"),
        "greedy": Figure("solved, greedy", ".1%"),
        "kl": Figure("KL to the start, nats", ".2f"),
        "seconds": Figure("training, s", ".0f"),
    },
    claims=(
        Claim(
            "soft preferences stay nearer to the start",
            "kl",
            SOFT,
            HARD,
            sign=-1,
            ratio=True,
        ),
        Claim("soft preferences solve more, temperature 1", "sampled", SOFT, HARD),
        Claim("soft preferences solve more, greedy", "greedy", SOFT, HARD),
    ),
    measure=_measure,
    note="A first version (60 steps, learning rate 1e-4) hardly moved either arm, and did not separate them. " + ADDED,
)
