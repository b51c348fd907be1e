"""HPT against its parts and its kin, from the same mediocre model."""

from __future__ import annotations

from studies.common import ADDED, HELD_OUT, base, rows, sampling
from studies.study import Arm, Claim, Figure, Study, Tree
from studies.tasks import Reverse, Rows

STEPS = 200
WORDS = Rows(Reverse(3, 7, wrong=0.3), "train", 1000)
OTHERS = ("SFT", "GRPO", "SFT, then GRPO", "LUFFY", "SRFT")


def _rollouts(**algorithm: object) -> Tree:
    return sampling("exact", group_size=4) | {"algorithm": algorithm}


def _sft(steps: int) -> Tree:
    return {"algorithm": {"name": "sft", "sequence_normalised": True}, "training": {"steps": steps}}


def _grpo(steps: int) -> Tree:
    data = {"demonstrations": None, "prompts": rows(WORDS), "training": {"steps": steps, "learning_rate": 1e-4}}
    return data | _rollouts(name="grpo", kl_weight=0.0)


HPT = Study(
    name="hpt",
    title="HPT: imitate where every rollout fails, reinforce where some succeed",
    paper="A switch per prompt between imitation and reinforcement beats each of them, the one after the other, and "
    "the fixed mixtures LUFFY and SRFT (arXiv 2509.04419, tables 2 and 3).",
    setting="Words of three to seven letters are to be spelt backward by a model that can spell about half of them; of "
    "the 1,000 demonstrations, three in ten have a wrong letter, which the reward does not accept.",
    equal=f"the starting model, {STEPS} optimiser steps of 16 prompts, 4 rollouts a prompt where there are rollouts; "
    "the learning rate is each arm's own (1e-3; GRPO 1e-4 and LUFFY 2e-4, above which they fall below the start).",
    base=base({"demonstrations": rows(WORDS)}, steps=STEPS, prompts_per_step=16, learning_rate=1e-3),
    arms=(
        Arm("starting model", ()),
        Arm("SFT", (_sft(STEPS),)),
        Arm("GRPO", (_grpo(STEPS),)),
        Arm("SFT, then GRPO", (_sft(STEPS // 2), _grpo(STEPS // 2))),
        Arm("LUFFY", (_rollouts(name="luffy") | {"training": {"learning_rate": 2e-4}},)),
        Arm("SRFT", (_rollouts(name="srft"),)),
        Arm("HPT", (_rollouts(name="hpt", length=8),)),
    ),
    figures={
        "greedy": Figure("solved, greedy", ".1%"),
        "sampled": Figure("solved, temperature 1", ".1%"),
        "seconds": Figure("training, s", ".0f"),
    },
    claims=tuple(Claim(f"HPT solves more than {name}, temperature 1", "sampled", "HPT", name) for name in OTHERS)
    + tuple(Claim(f"HPT solves more than {name}, greedy", "greedy", "HPT", name) for name in OTHERS),
    measure=HELD_OUT.solved,
    note="A first version on seeds 0 to 2 (150 steps, 8 rollouts, a weaker starting model that solved 23 % at "
    "temperature 1) did not separate the arms either: SRFT 35 %, SFT 33 %, SFT, then GRPO 29 %, HPT 26 %, "
    "GRPO 23 %, LUFFY 21 %. Its settings were changed for cost and for starting models that are more alike; "
    "then GRPO and LUFFY got learning rates of their own. SFT, then GRPO ends at a tenth of the others' learning rate, "
    "which may be part of its lead; schedules were not compared. " + ADDED,
)
