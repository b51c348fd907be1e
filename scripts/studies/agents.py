"""What the studies of agents share: a tiny model, an expert's demonstrations, who imitates them, and what goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.curation.record import record
from studies.common import COMMON
from studies.context import Context, Made, merge
from studies.study import Tree
from studies.training import Trained, recipe_beside

MODEL: Tree = {
    "config": {
        "model_type": "qwen3",
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
        "tie_word_embeddings": True,
    }
}


@dataclass(frozen=True)
class Demonstrations:
    """What the environment's expert does in the first `size` prompts of `playing`, a share `noise` of it by chance."""

    playing: Tree
    size: int
    noise: float = 0.0

    def path(self, context: Context) -> str:
        """The file, recorded where it is missing."""
        tree = context.resolve(self.playing)
        tree = tree | {"model": {"path": "unread"}, "algorithm": "rloo", "seed": context.seed}
        return context.file(["demonstrations", tree, self.noise], "jsonl", lambda path: self._record(tree, path))

    def _record(self, tree: Tree, path: Path) -> None:
        record(recipe_beside(tree, path), self.size, path, self.noise)


def imitation(shown: Made, vocabulary: int, *trees: Tree) -> Trained:
    """A model from scratch that imitates, with a tokenizer learnt from the same."""
    tree: Tree = {
        "model": MODEL,
        "tokenizer": {"path": "bpe", "corpus": shown, "vocabulary": vocabulary},
        "algorithm": "sft",
        "demonstrations": {"path": shown},
        "training": {"schedule": "linear"},
    }
    return Trained(merge(COMMON, tree, *trees))


def going_on(start: Trained, **training: Any) -> Tree:
    """The base of a study that begins with `start`."""
    return merge(COMMON, {"tokenizer": None, "model": {"path": start}, "training": training})
