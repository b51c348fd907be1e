"""BabyAI in words: what is told is what the world holds, and its bot solves what it plays."""

from __future__ import annotations

import re
from typing import Any

import pytest

from posttrain.environments.babyai import ACTIONS, INSTRUCTIONS, babyai
from posttrain.environments.gymnasium import SpokenEpisode
from posttrain.errors import RecipeError


def played(level: str, **settings: Any) -> SpokenEpisode:
    environment: Any = babyai(level=level, settings=settings or None)
    return SpokenEpisode(**environment.settings)


def told(observation: Any) -> str:
    return str(observation.messages[-1]["content"])


def where(ahead: int, side: int) -> str:
    parts = [f"{ahead} step{'s' if ahead > 1 else ''} forward"] if ahead else []
    if side:
        parts.append(f"{abs(side)} step{'s' if abs(side) > 1 else ''} {'left' if side < 0 else 'right'}")
    return " and ".join(parts)


def in_sight(world: Any) -> set[str]:
    """Objects that the agent sees, by the world's own coordinates and rules of sight."""
    found = set()
    for x in range(world.width):
        for y in range(world.height):
            cell = world.grid.get(x, y)
            if cell is None or cell.type in ("wall", "floor") or not world.in_view(x, y) or not world.agent_sees(x, y):
                continue
            right, down = world.relative_coords(x, y)
            place = where(world.agent_view_size - 1 - down, right - world.agent_view_size // 2)
            if cell.type == "door":
                state = "open" if cell.is_open else "locked" if cell.is_locked else "closed"
                found.add(f"{'an' if cell.is_open else 'a'} {state} {cell.color} door {place}")
            elif place:
                found.add(f"a {cell.color} {cell.type} {place}")
    return found


@pytest.mark.parametrize("level", ["GoToLocal", "GoTo", "UnlockPickup", "BossLevel"])
def test_what_is_told_is_what_is_there(level: str) -> None:
    episode = played(level)
    observation, num_seen = episode.reset({"seed": 4}, 0), 0
    assert observation.messages[0] == {"role": "system", "content": INSTRUCTIONS}
    for action in ["turn left", "go forward"] * 3 + ["turn right", "go forward", "go forward", "toggle"] * 3:
        world = episode._environment.unwrapped
        task, sight, *_ = told(observation).splitlines()
        assert task == f"Task: {world.mission}."
        listed = {one for one in re.findall(r"(an? [a-z ]+ \d[^,.]*)", sight) if " wall " not in one}
        assert listed == in_sight(world)
        num_seen += len(listed)
        observation = episode.step(action).observation
    assert num_seen >= 5
    episode.close()


def test_walls() -> None:
    """The nearest ones straight ahead and to the sides, counted in the world's own grid."""
    episode = played("GoToLocal", num_dists=1)
    for seed in range(5):
        text = told(episode.reset({"seed": seed}, 0))
        world = episode._environment.unwrapped
        ahead, right = world.dir_vec, world.right_vec
        for way, step in (("forward", ahead), ("right", right), ("left", -right)):
            cells = (world.grid.get(*(world.agent_pos + step * far)) for far in range(1, 9))
            far = next(far for far, cell in enumerate(cells, start=1) if cell is not None)
            blocked = world.grid.get(*(world.agent_pos + step * far)).type == "wall"
            reach = world.agent_view_size - 1 if way == "forward" else world.agent_view_size // 2
            seen = f"a wall {far} step{'s' if far > 1 else ''} {way}" in text
            assert seen == (blocked and far <= reach), (seed, way, text)
    episode.close()


@pytest.mark.parametrize("level", ["GoToLocal", "PickupLoc", "UnlockLocal", "PutNextLocal", "BossLevel"])
def test_its_bot_solves_it(level: str) -> None:
    episode = played(level)
    for seed in (1, 2, 3):
        episode.reset({"seed": seed}, 0)
        step = None
        while step is None or not (step.terminated or step.truncated):
            action = episode.expert()
            assert action in ACTIONS
            step = episode.step(action)
            assert step.invalid is None
        assert step.solved is True and step.reward is not None and 0 < step.reward <= 1
    episode.close()


def test_what_is_carried_is_told() -> None:
    episode = played("PickupLoc")
    episode.reset({"seed": 1}, 0)
    world = episode._environment.unwrapped
    while True:
        action = episode.expert()
        assert action is not None
        step = episode.step(action)
        if world.carrying is not None:
            assert told(step.observation).endswith(f" You carry a {world.carrying.color} {world.carrying.type}.")
            break
        assert "You carry" not in told(step.observation)
    assert step.solved is True
    episode.close()


def test_a_level_that_is_none_is_named() -> None:
    with pytest.raises(RecipeError, match="BabyAI-GoToLocl-v0: cannot be made"):
        played("GoToLocl")
    environment: Any = babyai()
    with pytest.raises(RecipeError, match="cannot be imported"):
        SpokenEpisode(**{**environment.settings, "describe": "posttrain.environments.babyai:texts"})
