"""HyPO and DPO on the same offline pairs, which say nothing of most completions."""

from __future__ import annotations

from studies.common import HELD_OUT, base, rows, sampling
from studies.context import merge
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree
from studies.tasks import Compared, Reverse, Rows

STEPS = 30
PAIRS = Rows(Compared(Reverse(3, 7)), "train", 1000)
PROMPTS = Rows(Reverse(3, 7), "train", 1000)


def _measure(run: Finished) -> Figures:
    return HELD_OUT.solved(run) | {"kl": HELD_OUT.kl(run)}


def _hypo(kl_weight: float) -> Tree:
    algorithm = {"name": "hypo", "kl_weight": kl_weight}
    return merge(sampling(group_size=4), {"algorithm": algorithm, "prompts": rows(PROMPTS)})


HYPO = Study(
    name="hypo",
    title="HyPO: offline preferences, with the divergence held by rollouts",
    paper="Where offline pairs cover little of what the policy may say, DPO drifts from the reference; a reverse KL on "
    "unlabelled rollouts keeps it near and scores higher (arXiv 2406.01462, sec. 5 and 6).",
    setting="Pairs of the word spelt backward and the same with one wrong letter: completions of another length, or "
    "with more mistakes, are in no pair.",
    equal=f"the starting model (also the reference), {STEPS} steps of the same 32 pairs, beta 0.1; HyPO also samples 4 "
    "rollouts of 32 prompts a step.",
    base=base({"preferences": rows(PAIRS)}, steps=STEPS, prompts_per_step=32, learning_rate=1e-4),
    arms=(
        Arm("reference", ()),
        Arm("DPO", ({"algorithm": {"name": "dpo", "beta": 0.1}},)),
        Arm("HyPO", (_hypo(0.1),)),
    ),
    figures={
        "sampled": Figure("solved, temperature 1", ".1%"),
        "greedy": Figure("solved, greedy", ".1%"),
        "kl": Figure("KL to the reference, nats", ".2f"),
        "seconds": Figure("training, s", ".0f"),
    },
    claims=(
        Claim("HyPO stays nearer to the reference", "kl", "HyPO", "DPO", sign=-1, ratio=True),
        Claim("HyPO solves more, temperature 1", "sampled", "HyPO", "DPO"),
    ),
    measure=_measure,
    note="In the reported runs the pairs do not raise what is solved in 30 steps: DPO loses some of it, HyPO keeps it; "
    "seeds 3 and 4 were added after the first three had been seen.",
)
