"""Semi-online reinforcement learning on recorded trajectories, next to imitation and to single steps of them."""

from __future__ import annotations

import random
from dataclasses import dataclass

from studies.common import base, from_scratch, sampling
from studies.measure import Asking, Loaded, mean_reward, pass_rate
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree
from studies.tasks import Reverse, Row, Rows

STEPS = 100
SPELL = Reverse(3, 7)


@dataclass(frozen=True)
class Typed:
    """A word is typed, a letter a turn, each answered by what stands on the screen: a recorded trajectory.

    single: one step of it alone, its history that of the recording, and `answer` its letter.
    """

    task: Reverse
    single: bool = False

    def __call__(self, generator: random.Random) -> Row:
        """One row."""
        row = self.task(generator)
        answer = str(row["prompt"])
        messages: list[dict[str, str]] = [_say("user", str(row["prompt"]))]
        for place, letter in enumerate(answer, start=1):
            messages += [_say("assistant", letter), _say("user", answer[:place])]
        if not self.single:
            return {"prompt": messages[:1], "completion": messages[1:-1]}
        place = generator.randrange(len(answer))
        return {"prompt": messages[: 2 * place + 1], "completion": [messages[2 * place + 1]], "answer": answer[place]}


def _say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


RECORDED = Rows(Typed(SPELL), "train", 1000)
SINGLE = Rows(Typed(SPELL, single=True), "train", 4000)
START = from_scratch(Rows(Typed(Reverse(3, 5)), "train", 2000, stream=1), steps=150)
HELD_OUT = Rows(Typed(SPELL), "held_out", 300)


def _semi_online(patches: int) -> tuple[Tree, ...]:
    data: Tree = {
        "prompts": {"path": RECORDED},
        "environment": {"name": "semi_online", "match": "text", "patches": patches},
    }
    return (data | sampling("episode_return", max_tokens=3) | {"algorithm": {"name": "ui_s1", "least_spread": 0.0}},)


def measured(run: Finished) -> Figures:
    """PG, TSR and their mean on held-out recordings, greedily: the policy's own history, up to its first mistake."""
    environment = {"name": "semi_online", "match": "text", "patches": 0}
    asking = Asking(HELD_OUT.path(run.context), ("recorded_steps",), 3, environment=environment)
    played = asking.play(Loaded.of(run.final), run.context.seed)
    progress, whole = mean_reward(played), pass_rate(played)
    return {"progress": progress, "whole": whole, "score": (progress + whole) / 2}


PATCHES = {"no patches": 0, "one patch": 1, "any patches": -1}

UI_S1 = Study(
    name="ui_s1",
    title="UI-S1: reinforcement learning on recordings, as if they were live",
    paper="On recorded trajectories, rollouts on the own history with patches beat imitation, and reinforcement "
    "of single steps, the more patches the better (arXiv 2509.11543, table 2 and the ablation of the threshold).",
    setting="Words of three to seven letters are typed, a letter a turn, each turn answered by what stands on "
    "the screen; 1,000 recordings. SOP: how much of a held-out recording the policy goes through before its first "
    "mistake (PG), how many it goes through whole (TSR), and the mean of the two.",
    equal=f"the starting model, {STEPS} optimiser steps of 16 prompts, with 8 rollouts each but for imitation; "
    "learning rate 3e-4, imitation 1e-3.",
    base=base({}, steps=STEPS, prompts_per_step=16, learning_rate=3e-4) | {"model": {"path": START}},
    arms=(
        Arm("starting model", ()),
        Arm("SFT", ({"algorithm": "sft", "demonstrations": {"path": RECORDED}, "training": {"learning_rate": 1e-3}},)),
        Arm(
            "single steps",
            (
                {"prompts": {"path": SINGLE}, "algorithm": {"name": "grpo", "kl_weight": 1e-4}}
                | sampling("exact", max_tokens=3),
            ),
        ),
        *(Arm(f"semi-online, {name}", _semi_online(patches)) for name, patches in PATCHES.items()),
    ),
    figures={
        "score": Figure("SOP", ".1%"),
        "progress": Figure("PG", ".1%"),
        "whole": Figure("TSR", ".1%"),
        "seconds": Figure("training, s", ".0f"),
    },
    claims=tuple(
        Claim(f"{better} scores more than {other}", "score", better, other)
        for better, other in (
            ("semi-online, one patch", "SFT"),
            ("semi-online, one patch", "single steps"),
            ("semi-online, one patch", "semi-online, no patches"),
            ("semi-online, any patches", "semi-online, one patch"),
        )
    ),
    measure=measured,
    note="In text, the policy's history up to its first mistake is the recording's, so what sets semi-online rollouts "
    "apart here is their returns and their patches, not the histories.",
)
