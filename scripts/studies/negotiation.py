"""A negotiation learnt from demonstrations, then in the environment."""

from __future__ import annotations

from studies.common import COMMON
from studies.context import merge
from studies.dialogues import Demonstrations, play, playing
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree
from studies.training import Trained

STEPS = 150
DEMONSTRATIONS = Demonstrations(900)
MODEL: Tree = {
    "config": {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 160,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 192,
        "tie_word_embeddings": True,
    }
}
START = Trained(
    merge(
        COMMON,
        {
            "model": MODEL,
            "tokenizer": {"path": "bpe", "corpus": DEMONSTRATIONS, "vocabulary": 512},
            "algorithm": "sft",
            "demonstrations": {"path": DEMONSTRATIONS},
            "training": {"steps": 100, "prompts_per_step": 32, "learning_rate": 3e-3, "schedule": "linear"},
        },
    )
)
"""Imitates the plain negotiator."""

BASE: Tree = merge(COMMON, {"tokenizer": None, "model": {"path": START}})


def measured(run: Finished) -> Figures:
    """Held-out games."""
    return play(run.final, run.context.seed)


FIGURES = {
    "points": Figure("points", ".0f"),
    "goal": Figure("6,000 points or more", ".1%"),
    "agreed": Figure("agreed", ".1%"),
    "seconds": Figure("training, s", ".0f"),
}
NEGOTIATION = Study(
    name="negotiation",
    title="Negotiation: demonstrations, then the environment",
    paper="Reinforcement in the environment takes an agent beyond what it has imitated (the game is New Recruit of "
    "TextArena, arXiv 2504.11442).",
    setting="A recruiter negotiates eight issues with a scripted candidate, whose demand and concern follow from the "
    "game's seed, in at most four lines of its own; 14,800 points are the most, 5,000 the middle of every issue. The "
    "demonstrations are a plain negotiator's, near the middle. 300 games are held out, played at temperature 1.",
    equal=f"the starting model; RL is GRPO, {STEPS} steps of 4 games and 16 dialogues each, the reward the points.",
    base=merge(BASE, {"training": {"steps": STEPS, "prompts_per_step": 4, "learning_rate": 1e-3}}),
    arms=(
        Arm("SFT", ()),
        Arm(
            "SFT, then RL",
            ({"algorithm": "grpo", "tracking": {"trajectories": "none"}} | playing(0, 20_000, group_size=16),),
        ),
    ),
    figures=FIGURES,
    claims=(
        Claim("RL earns more points than SFT", "points", "SFT, then RL", "SFT"),
        Claim("RL reaches the goal more often", "goal", "SFT, then RL", "SFT"),
    ),
    measure=measured,
)
