"""A negotiation learnt from demonstrations, then in the environment."""

from __future__ import annotations

from studies.agents import going_on, imitation
from studies.dialogues import Demonstrations, play, playing
from studies.study import Arm, Claim, Figure, Figures, Finished, Study, Tree

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
START = imitation(
    DEMONSTRATIONS,
    512,
    {"model": MODEL, "training": {"steps": 100, "prompts_per_step": 32, "learning_rate": 3e-3}},
)
"""Imitates the plain negotiator."""


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
    base=going_on(START, steps=STEPS, prompts_per_step=4, learning_rate=1e-3),
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
