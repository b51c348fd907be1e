"""ScienceWorld's own simulator, in its Java."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from posttrain.environments import Environment
from posttrain.environments.scienceworld import INSTRUCTIONS, scienceworld
from posttrain.errors import MissingDependencyError, RecipeError
from tests.living import descendants, left


@pytest.fixture(scope="module")
def world() -> Iterator[Environment]:
    environment = scienceworld(simplifications=["easy"], processes=1)
    yield environment
    environment.close()


def test_its_own_way_solves_it(world: Environment) -> None:
    """Two variations of a task, a second task, and the first again, one after another in one simulator."""
    openings: list[str] = []

    async def play(task: str, seed: int) -> float:
        first, episode = await world.reset("", {"task": task, "seed": seed}, 0)
        system, said = first.messages
        assert system == {"role": "system", "content": INSTRUCTIONS} and "look around" in first.actions
        openings.append(said["content"])  # type: ignore[index]
        earned, solved = 0.0, None
        for _ in range(80):
            action = await episode.expert()  # type: ignore[attr-defined]
            if action is None:
                break
            step = await episode.step(action)
            assert step.invalid is None and step.observation.messages and step.reward is not None
            earned, solved = earned + step.reward, step.solved
            if step.terminated:
                break
        await episode.close()
        assert solved is True
        return earned

    for task, seed in (("find-living-thing", 0), ("find-living-thing", 1), ("find-plant", 0), ("find-living-thing", 0)):
        assert 0.8 < asyncio.run(play(task, seed)) <= 1, "less what the task has from the start"
    one, other, third, again = openings
    assert one == again and len({one, other, third}) == 3 and one.startswith("Your task is to find a")


def test_what_is_not_known_is_told(world: Environment) -> None:
    async def play() -> list[Any]:
        _, episode = await world.reset("", {"seed": 0}, 0)
        steps = [await episode.step(said) for said in ("frobnicate the moon", "", "look around", "inventory")]
        assert await episode.expert() is None, "it was asked too late"  # type: ignore[attr-defined]
        await episode.close()
        return steps

    unknown, empty, looked, carried = asyncio.run(play())
    assert unknown.invalid == "No known action matches that input." and empty.invalid == "Say a command."
    assert looked.invalid is None and looked.reward == 0.0 and not looked.terminated
    assert "In your inventory" in carried.observation.messages[0]["content"]


def test_mistakes(world: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="did you mean 'find-plant'"):
        asyncio.run(world.reset("", {"task": "find-plants", "seed": 0}, 0))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(MissingDependencyError, match="needs Java"):
        scienceworld()


def test_its_java_ends_with_it() -> None:
    before = descendants()
    environment = scienceworld(processes=1)
    asyncio.run(environment.reset("", {"seed": 0}, 0))
    assert descendants(running="java")
    environment.close()
    assert not left(child for child in descendants() if child not in before)
