"""What several tests share: a tiny recipe that trains in a second; the order of files, and what may be skipped."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import settings

from posttrain import sandbox
from posttrain.environments.chromium import find_chromium
from posttrain.errors import PosttrainError

# Tiny models: threads cost more than they give, and those that wait should sleep. torch, not imported yet, reads this.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

settings.register_profile("same_every_time", derandomize=True)
settings.load_profile("same_every_time")  # a gate gives the same answer for the same code

NEEDS: tuple[tuple[Callable[[], Any], tuple[str, ...]], ...] = (
    (sandbox.check, ("test_sandbox", "code_tests", "humaneval", "mbpp")),
    (
        find_chromium,
        (
            "test_browser.py",
            "test_browser_run",
            "test_agents.py::test_the_expert_solves_it_and_babble_does_not[miniwob",
        ),
    ),
)
"""What not every machine has, and parts of the names of tests that need it."""


SLOW_FIRST = (
    "tests/trainer/test_ranks",
    "tests/rollout/test_faults",
    "tests/trainer/",
    "tests/rollout/",
    "tests/test_",
)
"""Beginnings of names. Files are shared out among processes in order, so the last ones should be short."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first. Where there is no sandbox or no Chromium, the tests that need it say so."""
    items.sort(key=lambda item: [not item.nodeid.startswith(name) for name in SLOW_FIRST])
    for check, names in NEEDS:
        wanting = [item for item in items if any(name in item.nodeid for name in names)]
        try:
            check()
        except PosttrainError as error:
            for item in wanting:
                item.add_marker(pytest.mark.skip(reason=str(error)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Iterator[None]:
    """CI has all that tests need: there a skipped test is a failed one."""
    report = yield
    if report.skipped and os.environ.get("CI"):
        report.outcome = "failed"
    return report


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
    "rewards": [{"name": "regex_match", "expression": r"\d+"}],
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
