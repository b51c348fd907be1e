"""Semi-online reinforcement learning on recorded trajectories, next to imitation and to single steps of them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from string import ascii_lowercase

from studies.common import base, from_scratch, sampling
from studies.context import merge
from studies.measure import Asking, Loaded, mean_reward, pass_rate
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree
from studies.tasks import Row, Rows
from studies.training import Trained

STEPS = 60
MOST_TOKENS = 20
_ONE_LESS = (1, 4)


@dataclass(frozen=True)
class Counted:
    """Each letter of a word is typed some places further in the alphabet, one a turn: a recorded trajectory.

    The prompt's number says how many places, in turns 1 and 4; it is one more in turns 2, 3 and 5. After a turn the
    screen shows what has been typed. thinks: whoever is recorded counts the places before typing, and stops at either
    number by chance; else what is to be typed is recorded alone. single: one step, its history that of the recording.
    """

    thinks: bool = False
    single: bool = False

    def __call__(self, generator: random.Random) -> Row:
        """One row."""
        word = "".join(generator.choices(ascii_lowercase, k=generator.randint(3, 5)))
        places = generator.randint(1, 6)
        messages = [_say("user", f"{places}{word}")]
        typed = ""
        for turn, letter in enumerate(word, start=1):
            less = generator.random() < 0.5 if self.thinks else turn in _ONE_LESS
            counted = "".join(_further(letter, place) for place in range(1, places + (1 if less else 2)))
            typed += counted[-1]
            messages.append(_say("assistant", f"{counted}</think>{counted[-1]}" if self.thinks else counted[-1]))
            messages.append(_say("user", typed))
        if not self.single:
            return {"prompt": messages[:1], "completion": messages[1:-1]}
        step = 2 * generator.randrange(len(word)) + 1
        return {"prompt": messages[:step], "completion": messages[step : step + 1]}


def _further(letter: str, places: int) -> str:
    return ascii_lowercase[(ascii_lowercase.index(letter) + places) % len(ascii_lowercase)]


def _say(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


RECORDED = Rows(Counted(), "train", 500)
SINGLE = Rows(Counted(single=True), "train", 2000)
HELD_OUT = Rows(Counted(), "held_out", 300)
_IMITATION = from_scratch(Rows(Counted(thinks=True), "train", 4000, stream=1), steps=200)
START = Trained(merge(_IMITATION.recipe, {"model": {"config": {"max_position_embeddings": 256}}}))
"""Thinks, and types one of two letters by chance."""


def _rollouts(data: Rows, algorithm: Tree, patches: int = 0, patch: str = "thought_free") -> tuple[Tree, ...]:
    environment = {"name": "semi_online", "match": "text", "patches": patches, "patch": patch}
    tree: Tree = {"prompts": {"path": data}, "environment": environment, "algorithm": algorithm}
    return (tree | sampling("episode_return", max_tokens=MOST_TOKENS),)


def _semi_online(patches: int, patch: str = "thought_free") -> tuple[Tree, ...]:
    return _rollouts(RECORDED, {"name": "ui_s1", "least_spread": 0.0}, patches, patch)


def measured(run: Finished) -> Figures:
    """PG, TSR and their mean on held-out recordings, greedily: the policy's own history, up to its first mistake."""
    environment = {"name": "semi_online", "match": "text", "patches": 0}
    asking = Asking(HELD_OUT.path(run.context), ("recorded_steps",), MOST_TOKENS, environment=environment)
    played = asking.play(Loaded.of(run.final), run.context.seed)
    progress, whole = mean_reward(played), pass_rate(played)
    return {"progress": progress, "whole": whole, "score": (progress + whole) / 2}


PATCHES = {"no patches": 0, "one patch": 1, "any patches": -1}

UI_S1 = Study(
    name="ui_s1",
    title="UI-S1: reinforcement learning on recordings, as if they were live",
    paper="On recorded trajectories, rollouts on the own history with patches beat imitation, and reinforcement "
    "of single steps, the more patches the better (arXiv 2509.11543, table 2 and the ablation of the threshold).",
    setting="Letters of words of three to five are typed some places further in the alphabet, one a turn, each turn "
    "answered by what stands on the screen. The starting model counts the places in a thought and stops at one of two "
    "by chance; which is right depends on the turn. 500 recordings hold what was typed, and no thoughts. SOP: how much "
    "of a held-out recording the policy goes through before its first mistake (PG), how many it goes through whole "
    "(TSR), and the mean of the two, greedily.",
    equal=f"the starting model, {STEPS} optimiser steps of 16 prompts, with 8 rollouts each but for imitation; "
    "learning rate 3e-4, imitation 1e-3.",
    base=base({}, steps=STEPS, prompts_per_step=16, learning_rate=3e-4) | {"model": {"path": START}},
    arms=(
        Arm("starting model", ()),
        Arm("SFT", ({"algorithm": "sft", "demonstrations": {"path": RECORDED}, "training": {"learning_rate": 1e-3}},)),
        Arm("single steps", _rollouts(SINGLE, {"name": "grpo", "kl_weight": 1e-4})),
        *(Arm(f"semi-online, {name}", _semi_online(patches)) for name, patches in PATCHES.items()),
        Arm("semi-online, one patch, its own thought", _semi_online(1, "on_policy_thought")),
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
            ("semi-online, one patch, its own thought", "semi-online, one patch"),
        )
    ),
    measure=measured,
    note="Imitation of recordings without thoughts unlearns thinking. Single steps follow histories without thoughts, "
    "which are strange to the starting model: it goes on thinking, solves a fifth to three tenths of them at the end "
    "of training, and on its own history types as before. In the former version of this study, where nobody thought, "
    "imitation was best (71.3 % to 51.8 %).",
)
