"""What the studies share: a tiny model, words to spell backward, and a starting model that can spell short ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.trajectory import Group
from studies import measure
from studies.context import Context, Made, merge
from studies.study import Figures, Finished, Tree
from studies.tasks import Reverse, Rows
from studies.training import Trained

MODEL: Tree = {
    "config": {
        "model_type": "qwen3",
        "hidden_size": 96,
        "intermediate_size": 256,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "num_key_value_heads": 3,
        "head_dim": 32,
        "max_position_embeddings": 128,
        "tie_word_embeddings": True,
    }
}
COMMON: Tree = {
    "tokenizer": "characters",
    "training": {"warmup_steps": 5, "betas": [0.9, 0.95], "weight_decay": 0.0},
    "checkpoint": {"every_steps": 0},
}
WORDS = Rows(Reverse(3, 7), "train", 1000)


def rows(made: Made) -> Tree:
    """A data source of a recipe."""
    return {"path": made, "chat": True}


def from_scratch(data: Made, steps: int, learning_rate: float = 3e-3) -> Trained:
    """A model made by imitation alone."""
    training = {"steps": steps, "prompts_per_step": 64, "learning_rate": learning_rate, "schedule": "linear"}
    tree: Tree = {"model": MODEL, "algorithm": "sft", "demonstrations": rows(data), "training": training}
    return Trained(merge(COMMON, tree))


START = from_scratch(Rows(Reverse(3, 5), "train", 2000, stream=1), steps=130)
"""Solves about half of the held-out words of three to seven letters: the short ones."""


def base(*trees: Tree, steps: int, prompts_per_step: int, learning_rate: float) -> Tree:
    """What every arm of a study has."""
    training = {"steps": steps, "prompts_per_step": prompts_per_step, "learning_rate": learning_rate}
    return merge(COMMON, {"model": {"path": START}, "training": training}, *trees)


def sampling(*rewards: str | Tree, group_size: int = 8, **others: Any) -> Tree:
    """The rollouts of a recipe, and their rewards; without any, rollouts are not graded."""
    rollout = {"group_size": group_size, "max_tokens": 8, "dtype": "float32"} | others
    if not rewards:
        return {"rollout": rollout}
    return {"rollout": rollout | {"reward_workers": 1}, "rewards": list(rewards)}


@dataclass(frozen=True)
class HeldOut:
    """What is asked of a finished model."""

    rows: Rows
    reward: str = "exact"
    max_tokens: int = 8

    def play(self, context: Context, loaded: measure.Loaded, samples: int = 0) -> list[Group]:
        """Graded completions: `samples` of each prompt at temperature 1, or greedy ones."""
        temperature = 1.0 if samples else 0.0
        asking = measure.Asking(self.rows.path(context), (self.reward,), self.max_tokens, max(1, samples), temperature)
        return asking.play(loaded, context.seed)

    def solved(self, run: Finished, final: Path | None = None) -> Figures:
        """Shares of held-out prompts that a model solves, greedily and at temperature 1."""
        loaded = measure.Loaded.of(final or run.final)
        greedy, sampled = (self.play(run.context, loaded, samples) for samples in (0, 4))
        return {"greedy": measure.pass_rate(greedy), "sampled": measure.pass_rate(sampled)}

    def kl(self, run: Finished) -> float:
        """KL(model || starting model), in nats a completion."""
        loaded = measure.Loaded.of(run.final)
        played = measure.sequences(self.play(run.context, loaded, 4))
        return measure.divergence(played, loaded.model, measure.Loaded.of(run.start).model)


ADDED = "In the reported runs seeds 3 and 4 were added after the first three had been seen."
HELD_OUT = HeldOut(Rows(Reverse(3, 7), "held_out", 300))
