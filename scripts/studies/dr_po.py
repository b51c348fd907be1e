"""DR-PO and PPO on words so long that the whole answer is hardly ever right."""

from __future__ import annotations

from studies.common import ADDED, HeldOut, base, from_scratch, rows, sampling
from studies.study import Arm, Claim, Figure, Study, Tree
from studies.tasks import Reverse, Rows

STEPS = 120
TASK = Reverse(7, 7)
WORDS = Rows(TASK, "train", 1000)
START = from_scratch(Rows(Reverse(3, 7), "train", 3000, stream=1), steps=90)
HELD_OUT = HeldOut(Rows(TASK, "held_out", 300))
CRITIC: Tree = {"critic": {"learning_rate": 1e-3}}


def _arm(reset_probability: float) -> tuple[Tree, ...]:
    source = "demonstrations" if reset_probability else "prompts"
    algorithm = {"name": "dr_po", "reset_probability": reset_probability}
    return (CRITIC | {"algorithm": algorithm, source: rows(WORDS)},)


DR_PO = Study(
    name="dr_po",
    title="DR-PO: rollouts that start inside demonstrations",
    paper="Resetting the policy to states of offline data gives signal where whole rollouts earn none, so that PPO "
    "with resets scores higher than PPO (arXiv 2404.08495, table 1).",
    setting="Words of seven letters are to be spelt backward, paid only where every letter is right, by a model "
    "that seldom gets there.",
    equal=f"the starting model, {STEPS} steps of 16 prompts with 8 rollouts each, and every constant; DR-PO samples "
    "only what follows the given letters.",
    base=base(
        {"model": {"path": START}},
        sampling("exact", max_tokens=9),
        steps=STEPS,
        prompts_per_step=16,
        learning_rate=3e-4,
    ),
    arms=(Arm("starting model", ()), Arm("PPO", _arm(0.0)), Arm("DR-PO", _arm(1.0))),
    figures={
        "sampled": Figure("solved, temperature 1", ".1%"),
        "greedy": Figure("solved, greedy", ".1%"),
        "seconds": Figure("training, s", ".0f"),
    },
    claims=(
        Claim("DR-PO solves more than PPO, temperature 1", "sampled", "DR-PO", "PPO"),
        Claim("DR-PO solves more than PPO, greedy", "greedy", "DR-PO", "PPO"),
    ),
    measure=HELD_OUT.solved,
    note="A first version on seeds 0 to 2, with 50 steps, did not separate the two (temperature 1: PPO 1.4 %, DR-PO "
    "1.5 %). " + ADDED,
)
