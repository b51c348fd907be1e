"""ALFWorld's engine on a game of our own, in ALFWorld's format: none of its games comes with the package."""

from __future__ import annotations

import asyncio
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from posttrain.environments import Environment, Guided
from posttrain.environments.alfworld import INSTRUCTIONS, HouseGame, alfworld
from posttrain.errors import RecipeError

PROBLEM = """
(define (problem house) (:domain alfred)
 (:objects
  agent1 - agent
  Potato_bar_1 Potato_bar_2 Mug_bar_1 - object
  PotatoType MugType KnifeType ButterKnifeType - otype
  CounterTop_bar_1 Fridge_bar_1 Microwave_bar_1 - receptacle
  CounterTopType FridgeType MicrowaveType SinkType SinkBasinType - rtype
  loc_bar_0 loc_bar_1 loc_bar_2 loc_bar_3 - location)
 (:init
  (= (total-cost) 0)
  (atLocation agent1 loc_bar_0)
  (receptacleType CounterTop_bar_1 CounterTopType) (receptacleAtLocation CounterTop_bar_1 loc_bar_1)
  (receptacleType Fridge_bar_1 FridgeType) (receptacleAtLocation Fridge_bar_1 loc_bar_2) (openable Fridge_bar_1)
  (receptacleType Microwave_bar_1 MicrowaveType) (receptacleAtLocation Microwave_bar_1 loc_bar_3)
  (openable Microwave_bar_1)
  (canContain CounterTopType PotatoType) (canContain CounterTopType MugType) (canContain FridgeType PotatoType)
  (objectType Potato_bar_1 PotatoType) (objectType Potato_bar_2 PotatoType) (objectType Mug_bar_1 MugType)
  (pickupable Potato_bar_1) (pickupable Potato_bar_2) (pickupable Mug_bar_1)
  (heatable Potato_bar_1) (heatable Potato_bar_2)
  (inReceptacle Potato_bar_1 CounterTop_bar_1) (objectAtLocation Potato_bar_1 loc_bar_1)
  (inReceptacle Mug_bar_1 CounterTop_bar_1) (objectAtLocation Mug_bar_1 loc_bar_1)
  (inReceptacle Potato_bar_2 Fridge_bar_1) (objectAtLocation Potato_bar_2 loc_bar_2))
 (:goal (exists (?o - object)
  (and (objectType ?o PotatoType) (isHot ?o) (inReceptacle ?o CounterTop_bar_1))))
 (:metric minimize (total-cost)))
"""


def write(folder: Path, task: str, goal: str = "heat some potato", solvable: bool = True) -> None:
    """A game as ALFWorld's generator writes it: its own domain and grammar, the problem, and what is known of it."""
    own = files("alfworld") / "data"
    game = {
        "pddl_domain": (own / "alfred.pddl").read_text(),
        "grammar": (own / "alfred.twl2").read_text().replace("UNKNOWN GOAL", goal),
        "pddl_problem": PROBLEM,
        "solvable": solvable,
    }
    place = folder / "json_2.1.1" / "train" / task / "trial_1"
    place.mkdir(parents=True)
    (place / "game.tw-pddl").write_text(json.dumps(game))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alfworld")
    write(folder, "pick_heat_then_place_in_recep-Potato-None-CounterTop-1")
    write(folder, "pick_heat_then_place_in_recep-Potato-None-CounterTop-2", solvable=False)
    write(folder, "pick_and_place_simple-Mug-None-Desk-3", goal="put a mug somewhere")
    write(folder, "pick_and_place_with_movable_recep-Mug-Pan-Desk-4")
    write(folder, "pick_and_place_simple-AppleSliced-None-Desk-5")
    return folder


@pytest.fixture
def game(data: Path) -> Any:
    environment: Any = alfworld(data=str(data))
    found = HouseGame(**{**environment.settings, "show_actions": True})
    yield found
    found.close()


def test_a_game_is_played(game: HouseGame) -> None:
    first = game.reset({"seed": 1}, 0)
    system, opening = first.messages
    assert system == {"role": "system", "content": INSTRUCTIONS}
    room, task, can = opening["content"].splitlines()  # type: ignore[index]
    assert room.startswith("You are in the middle of a room.") and "a fridge 1" in room
    assert task == "Your task is to: heat some potato." and can.startswith("You can: go to countertop 1; ")
    assert "help" not in first.actions
    arrived = game.step("go to countertop 1")
    assert "On the countertop 1, you see a mug 1, and a potato" in arrived.observation.messages[0]["content"]  # type: ignore[index]
    assert arrived.invalid is None and arrived.reward == 0.0 and arrived.solved is None
    for said in ("take fridge 1 from countertop 1", "go to countertop 9", "open fridge 1"):
        bad = game.step(said)
        assert bad.invalid == "Nothing happens." and bad.observation.state == arrived.observation.state
    assert game.step("restart").invalid == "'restart' is not part of the game."
    (taken,) = [command for command in arrived.observation.actions if command.startswith("take potato")]
    potato = taken.removeprefix("take ").removesuffix(" from countertop 1")
    states = {first.state, arrived.observation.state}
    for said in (
        taken,
        "go to microwave 1",
        f"heat {potato} with microwave 1",
        "<think>back</think>go to countertop 1",
    ):
        step = game.step(said)
        assert step.invalid is None and not step.terminated
        states.add(step.observation.state)
    done = game.step(f"move {potato} to countertop 1")
    assert (done.reward, done.terminated, done.solved) == (1.0, True, True) and len(states) == 6


def test_the_planner_leads_on_from_anywhere(game: HouseGame) -> None:
    game.reset({"seed": 1}, 0)
    game.step("go to countertop 1")
    game.step("take mug 1 from countertop 1")  # which is none of its business
    number = 0
    while number < 15:
        number += 1
        action = game.expert()
        assert action is not None
        step = game.step(action)
        assert step.invalid is None
        if step.terminated:
            break
    assert step.solved is True and number <= 8


def test_which_games_there_are(data: Path, game: HouseGame, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mug's first, by name; what cannot be solved is passed over; ALFWorld's own exclusions hold."""
    monkeypatch.setenv("ALFWORLD_DATA", str(data))
    tasks = []
    for seed in range(4):
        tasks.append(game.reset({"seed": seed}, 0).messages[1]["content"].splitlines()[1])  # type: ignore[index]
        game.close()
    mug, potato = "Your task is to: put a mug somewhere.", "Your task is to: heat some potato."
    assert tasks == [mug, potato, mug, mug]
    only: Any = alfworld(tasks=["pick_heat_then_place_in_recep"])
    assert len(only.settings["games"]) == 2


def test_in_processes(data: Path) -> None:
    environment: Environment = alfworld(data=str(data), processes=1)

    async def play() -> Any:
        (first, episode), (other, second) = [await environment.reset("", {"seed": 1}, 0) for _ in range(2)]
        assert first == other and isinstance(episode, Guided)
        action = await episode.expert()
        steps = [await one.step(action or "") for one in (episode, second)]
        for one in (episode, second):
            await one.close()
        return steps

    try:
        one, two = asyncio.run(play())
    finally:
        environment.close()
    assert one == two and one.invalid is None


def test_where_there_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ALFWORLD_DATA", raising=False)
    with pytest.raises(RecipeError, match=r"\$ALFWORLD_DATA is not set"):
        alfworld()
    with pytest.raises(RecipeError, match=r"no games in .*json_2.1.1/valid_seen; allowed"):
        alfworld(data=str(tmp_path), split="valid_seen")
    with pytest.raises(RecipeError, match="did you mean 'pick_two_obj_and_place'"):
        alfworld(tasks=["pick_two_objects_and_place"])
