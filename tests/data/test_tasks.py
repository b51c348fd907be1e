"""Rows of tasks."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.config.schema import SourceSettings
from posttrain.data.sources import load_source
from posttrain.errors import DataError


def load(**config: Any) -> Any:
    return load_source(SourceSettings(path="tasks", config=config), "prompts")


def test_combinations_share_a_seed() -> None:
    found = load(size=5, seed=7, task=["click", "type"], level=2)
    wanted = [(task, seed) for seed in (7, 8, 9) for task in ("click", "type")][:5]
    assert [(one.columns["task"], one.columns["seed"]) for one in found] == wanted
    assert all(one.columns["level"] == 2 for one in found)
    assert found[1].prompt == ({"role": "user", "content": "(task type, level 2, seed 7)"},)
    assert len({one.id for one in found}) == 5


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"size": 0}, "config.size: must be an integer from 1, got 0"),
        ({"seed": -1}, "config.seed"),
        ({"task": []}, "config.task: an empty list"),
        ({"prompt": "x"}, "config.prompt"),
    ],
)
def test_mistakes(config: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(**config)
