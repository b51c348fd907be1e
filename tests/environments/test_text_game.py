"""TextWorld games: made by seed, played in the game's own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from posttrain import catalog
from posttrain.environments import Observation, Step
from posttrain.environments.text_game import TextGame, read_command
from posttrain.environments.text_game_files import FAMILIES, game_file, game_spec
from posttrain.errors import MissingDependencyError, RecipeError

SMALL: dict[str, dict[str, Any]] = {
    "simple": {},
    "cooking": {"open": True, "cook": True},
    "coin_collector": {"level": 102},
    "treasure_hunter": {"level": 2},
    "custom": {"world_size": 2, "quest_length": 2},
}


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("games")


def start(cache: Path, family: str = "simple", seed: int = 7, **settings: Any) -> tuple[TextGame, Observation]:
    defaults = {"game": SMALL[family], "grammar": {}, "show_actions": False, "instructions": None}
    game = TextGame(family=family, cache=str(cache), **defaults | settings)
    return game, game.reset({"seed": seed}, 0)


def say(step: Step) -> str:
    (message,) = step.observation.messages
    return str(message["content"])  # type: ignore[index]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_walkthrough_earns_the_whole_score(cache: Path, family: str) -> None:
    game, first = start(cache, family)
    opening = first.messages[-1]["content"]  # type: ignore[index]
    assert "-=" in opening and "$$$" not in opening and "\n\n" not in opening and ">" not in opening
    rewards: list[float] = []
    observation = first
    while True:
        action = game.expert()
        assert action is not None and action in observation.actions
        step = game.step(action)
        assert step.invalid is None and step.reward is not None
        assert say(step) and "\n>" not in say(step)
        rewards.append(step.reward)
        observation = step.observation
        if step.terminated:
            break
        assert step.solved is None
    game.close()
    assert step.solved is True
    assert sum(rewards) == pytest.approx(1.0) and all(reward >= 0 for reward in rewards)


def test_a_seed_is_a_game_and_a_place_in_it_a_state(cache: Path) -> None:
    one, first = start(cache, "coin_collector")
    other, again = start(cache, "coin_collector")
    _, elsewhere = start(cache, "coin_collector", seed=8)
    assert first == again and first.messages != elsewhere.messages and first.state != elsewhere.state
    there = one.expert()
    assert there is not None
    back = {"north": "south", "south": "north", "east": "west", "west": "east"}[there.removeprefix("go ")]
    assert one.step("look").observation.state == first.state
    moved = one.step(there).observation
    assert moved.state != first.state and moved.state == other.step(there).observation.state
    assert one.step(f"go {back}").observation.state == first.state
    one.close()
    other.close()


def test_the_expert_finds_its_way_back(cache: Path) -> None:
    game, first = start(cache, "coin_collector")
    wrong = next(a for a in first.actions if a.startswith("go ") and a != game.expert())
    game.step(wrong)
    for _ in range(5):
        action = game.expert()
        assert action is not None
        step = game.step(action)
        if step.terminated:
            break
    assert step.solved
    game.close()


def test_what_the_game_does_not_carry_out_is_invalid_in_its_own_words(cache: Path) -> None:
    game, first = start(cache)
    for said, why in (
        ("go up", "You can't go that way."),
        ("frobnicate", "That's not a verb I recognise."),
        ("take moon", "You can't see any such thing."),
        ("go east", "You have to open the wooden door first."),
        ("take", "What do you want to take?"),
        ("", "Say a command."),
        ("quit", "'quit' is not part of the game."),
        ("tw-print state", "'tw-print' is not part of the game."),
        ("look. look", "One command at a time."),
        ("look then look", "One command at a time."),
        ("look\nlook", "A command is one line of plain English letters."),
        ("\\s", "A command is one line of plain English letters."),
        ("gehe nach süden", "A command is one line of plain English letters."),
    ):
        step = game.step(said)
        assert step.invalid == why and step.reward is None and not step.terminated, said
        assert step.observation.state == first.state and step.observation.actions == first.actions
    for said in ("look", "i", "x bed", "<think>quit.</think>open chest drawer"):
        assert game.step(said).invalid is None, said
    game.close()


def test_a_lost_game_is_not_solved(cache: Path) -> None:
    game, _ = start(cache, "cooking")
    while not (action := game.expert() or "").startswith("cook"):
        game.step(action)
    assert game.step(action).solved is None
    step = game.step(action)  # what is cooked twice is burnt
    assert step.terminated and step.solved is False and "You lost!" in say(step)
    game.close()


def test_actions_can_be_shown(cache: Path) -> None:
    game, first = start(cache, show_actions=True)
    assert first.messages[-1]["content"].endswith(f"You can: {'; '.join(first.actions)}")  # type: ignore[index]
    assert say(game.step("open chest drawer")).count("You can: ") == 1
    assert say(game.step("open chest drawer")).startswith("That's already open.\nYou can: close chest drawer; ")
    game.close()


def test_rows_choose_the_game(cache: Path) -> None:
    row = {"family": "coin_collector", "level": 3, "seed": 5}
    spec = game_spec("simple", {}, {}, row, 9)
    assert (spec.family, spec.settings, spec.seed) == ("coin_collector", {"level": 3}, 5)
    assert game_spec("simple", {}, {}, {}, 9).seed == 9
    path = game_file(game_spec("custom", SMALL["custom"], {}, {"seed": 7}, 0), cache)
    made = path.stat().st_mtime_ns
    assert game_file(game_spec("custom", SMALL["custom"], {}, {"seed": 7}, 0), cache).stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"family": "simple", "game": {"level": 3}}, "text_game: game.level: is no setting of simple"),
        ({"family": "coin_collector", "game": {"level": 301}}, "301 is not allowed; allowed: 1 to 300"),
        ({"family": "simple", "game": {"rewards": "some"}}, "allowed: dense, balanced, sparse"),
        ({"family": "cooking", "game": {"open": 1}}, "game.open: 1 is not allowed; allowed: bool"),
        ({"grammar": {"themes": "basic"}}, "did you mean 'theme'?"),
        ({"family": "zork"}, "family"),
    ],
)
def test_settings_are_checked_before_a_game_is_made(settings: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        catalog.build("environments", "text_game", settings)


@pytest.mark.parametrize("package", ["textworld", "gymnasium"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    name, settings = {"textworld": ("text_game", {}), "gymnasium": ("gymnasium", {"id": "CartPole-v1"})}[package]
    monkeypatch.setattr(f"posttrain.environments.{name}.find_spec", lambda _: None)
    with pytest.raises(MissingDependencyError, match=package):
        catalog.build("environments", name, settings)


def test_a_thought_is_no_command() -> None:
    assert read_command("<think>go north?</think>\n go   south ") == ("go   south", None)
