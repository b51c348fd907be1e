"""The nearest demonstration in context."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from posttrain import catalog
from posttrain.environments.demonstrated import Demonstration, Library, demonstrated
from posttrain.errors import DataError, RecipeError

ROWS = [
    ("click the red button", ["click 1"], 0),
    ("type hello in the box", ["click 2", "type hello"], 1),
    ("click the blue link", ["click 3"], 2),
]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "demonstrations.jsonl"
    rows = [
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": instruction}],
            "completion": [
                one
                for action in actions
                for one in ({"role": "assistant", "content": action}, {"role": "user", "content": f"after {action}"})
            ],
            "seed": seed,
        }
        for instruction, actions, seed in ROWS
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def first(file: Path, instruction: str, seed: int = 9, **settings: Any) -> str:
    environment = demonstrated(inner="single_turn", demonstrations=str(file), **settings)
    prompt = ({"role": "system", "content": "s"}, {"role": "user", "content": instruction})

    async def play() -> str:
        observation, episode = await environment.reset(prompt, {"seed": seed, "prompt": "x"}, 0)
        assert observation.messages[0] == prompt[0]
        assert (await episode.step("done")).terminated
        return str(observation.messages[1]["content"])

    return asyncio.run(play())


def test_the_nearest_is_shown(file: Path) -> None:
    shown = first(file, "click the green link")
    assert (
        shown == "How a task like this was done:\nclick the blue link\n> click 3\n\nNow the task:\nclick the green link"
    )
    assert "type hello in the box\n> click 2\n> type hello\n" in first(file, "type goodbye in the box")
    with_pages = first(file, "type goodbye in the box", observations=True)
    assert "> click 2\nafter click 2\n> type hello\nafter type hello" in with_pages
    assert "red button" in first(file, "click the green link", nearest=2)


def test_the_task_itself_is_not_shown(file: Path) -> None:
    assert "red button\n> click 1" not in first(file, "click the red button", seed=0)
    assert "red button\n> click 1" in first(file, "click the red button", seed=0, same_task=True)


def test_rare_words_count_more() -> None:
    library = Library([Demonstration(text, (), {}) for text in ("the the the apple", "the pear the", "the fig")])
    assert library.seek("the pear and the apple apple", 1, None)[0].instruction == "the the the apple"
    assert library.seek("the pear", 1, None)[0].instruction == "the pear the"
    assert library.seek("unknown words", 1, None)[0].instruction == "the the the apple"


def test_mistakes(file: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        first(tmp_path / "none.jsonl", "x")
    with pytest.raises(RecipeError, match="nearest is 0"):
        first(file, "x", nearest=0)
    with pytest.raises(RecipeError, match="inner"):
        catalog.build("environments", "demonstrated", {"inner": {"rounds": 1}, "demonstrations": str(file)})
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": []}\n')
    with pytest.raises(DataError, match=r"bad.jsonl:1: not a demonstration"):
        first(bad, "x")
