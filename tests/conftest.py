"""What several tests share: a tiny recipe that trains in a second."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from posttrain import sandbox
from posttrain.errors import PosttrainError

settings.register_profile("same_every_time", derandomize=True)
settings.load_profile("same_every_time")  # a gate gives the same answer for the same code

SANDBOXED = ("test_sandbox", "code_tests", "humaneval", "mbpp")
"""Parts of the names of tests that run code in the sandbox."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where no sandbox can be made, the tests that need one say so; CI has one."""
    wanting = [item for item in items if any(name in item.nodeid for name in SANDBOXED)]
    if wanting:
        try:
            sandbox.check()
        except PosttrainError as error:
            for item in wanting:
                item.add_marker(pytest.mark.skip(reason=str(error)))


TINY_RECIPE: dict[str, Any] = {
    "model": {
        "config": {
            "model_type": "qwen3",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 16,
            "max_position_embeddings": 128,
            "tie_word_embeddings": True,
        }
    },
    "tokenizer": {"path": "characters"},
    "algorithm": {"name": "hpt", "length": 8},
    "demonstrations": {
        "path": "reasoning_gym",
        "config": {"dataset": "chain_sum", "size": 64, "seed": 1, "min_terms": 2, "max_terms": 2, "max_digits": 1},
    },
    "rewards": [{"name": "reasoning_gym"}],
    "rollout": {"group_size": 4, "max_tokens": 8, "dtype": "float32", "reward_workers": 1},
    "training": {"steps": 4, "prompts_per_step": 4, "learning_rate": 1e-3},
    "checkpoint": {"every_steps": 1},
    "seed": 7,
}


@pytest.fixture
def tiny_recipe() -> dict[str, Any]:
    """A recipe to change and to hand to `write_recipe`."""
    return copy.deepcopy(TINY_RECIPE)


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Writes a recipe to tmp_path/NAME.yaml."""

    def write(recipe: dict[str, Any], name: str = "tiny") -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(recipe))
        return path

    return write
