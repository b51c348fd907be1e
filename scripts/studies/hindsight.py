"""Offline RL on negotiations: with and without what would have been better in hindsight."""

from __future__ import annotations

from studies.agents import going_on
from studies.dialogues import Regenerations
from studies.negotiation import FIGURES, START, measured
from studies.study import Arm, Claim, Study, Tree

STEPS = 80
PLAYED, ALL = (Regenerations(START, 500, hindsight) for hindsight in (False, True))
IMITATION: Tree = {"algorithm": {"name": "return_weighted", "beta": None}}
ILQL: Tree = {
    "algorithm": {"name": "ilql", "per": "turn", "gamma": 1.0, "beta": 10.0, "target_rate": 0.1},
    "critic": {"learning_rate": 2e-3},
}


def _on(data: Regenerations) -> Tree:
    return {"trajectories": {"path": data}}


HINDSIGHT = Study(
    name="hindsight",
    title="Hindsight regenerations: offline RL on dialogues that went better",
    paper="Offline RL on dialogues together with regenerations of them from better lines beats imitation of the same "
    "dialogues, and offline RL without the regenerations (arXiv 2411.05194).",
    setting="New Recruit as above. The starting model plays 500 games; a scripted hindsight, which has read in the "
    "finished dialogue what matters to the candidate, proposes another line at one drawn place, and the same model "
    "plays on from there with the same candidate. ILQL (arXiv 2206.11871) takes an utterance as an action and "
    "extracts its policy by advantage weights.",
    equal=f"the starting model, {STEPS} steps of 24 games at a learning rate of 1e-3; both kinds of learning on all "
    "dialogues see the same file.",
    base=going_on(START, steps=STEPS, prompts_per_step=24, learning_rate=1e-3),
    arms=(
        Arm("starting model", ()),
        Arm("SFT on all dialogues", (IMITATION | _on(ALL),)),
        Arm("ILQL on the played ones", (ILQL | _on(PLAYED),)),
        Arm("ILQL on all dialogues", (ILQL | _on(ALL),)),
    ),
    figures=FIGURES,
    claims=tuple(
        Claim(f"ILQL on all dialogues {what} than {other}", figure, "ILQL on all dialogues", other)
        for what, figure in (("earns more points", "points"), ("reaches the goal more often", "goal"))
        for other in ("SFT on all dialogues", "ILQL on the played ones")
    ),
    measure=measured,
)
