"""Gymnasium's environments in words."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain.environments.gymnasium import SpokenEpisode
from posttrain.errors import RecipeError

DIRECTIONS = ["left", "down", "right", "up"]


def spoken(id: str, **changes: Any) -> SpokenEpisode:
    defaults: dict[str, Any] = {
        "settings": {}, "register": None, "actions": None, "observations": None, "render": False,
        "fully_observed": False, "instructions": None, "solved_above": 0.0,
    }  # fmt: skip
    return SpokenEpisode(id=id, **defaults | changes)


def test_a_lake_is_crossed() -> None:
    lake = spoken(
        "FrozenLake-v1", settings={"is_slippery": False}, actions=DIRECTIONS, render=True, fully_observed=True,
        instructions="Cross the lake.",
    )  # fmt: skip
    first = lake.reset({"seed": 3}, 0)
    system, drawn = first.messages
    assert system["content"] == "Cross the lake." and "SFFF" in drawn["content"].replace("\x1b[41mS\x1b[0m", "S")  # type: ignore[index]
    assert first.actions == tuple(DIRECTIONS)
    bad = lake.step("jump")
    assert bad.invalid == "Say one of: left, down, right, up."
    states = {first.state}
    for action in ("Down", "down", "<think>up?</think>right", "down", "right", "right"):
        step = lake.step(action)
        assert step.invalid is None
        states.add(step.observation.state)
    assert step.terminated and step.solved is True and step.reward == 1.0 and len(states) == 7
    lake.close()


def test_a_hole_is_not_the_goal() -> None:
    lake = spoken("FrozenLake-v1", settings={"is_slippery": False}, actions=DIRECTIONS)
    assert lake.reset({}, 0).messages == ({"role": "user", "content": "0"},)
    lake.step("right")
    step = lake.step("down")
    assert step.terminated and step.solved is False
    lake.close()


def test_numbers_and_their_names() -> None:
    cards = spoken("Blackjack-v1", actions=["stick", "hit"])
    first = cards.reset({"seed": 1}, 0)
    assert len(first.messages[0]["content"].splitlines()) == 3  # type: ignore[index]
    assert cards.reset({"seed": 1}, 5) == first
    assert cards.step("stick").terminated
    cards.close()
    pole = spoken("CartPole-v1")
    assert pole.reset({}, 0).actions == ("0", "1")
    assert len(pole.step("1").observation.messages[0]["content"].split()) == 4  # type: ignore[index]
    pole.close()
    named = spoken("FrozenLake-v1", actions=DIRECTIONS, observations=[f"field {i}" for i in range(16)])
    assert named.reset({}, 0).messages[0]["content"] == "field 0"  # type: ignore[index]
    named.close()


def test_text_in_and_text_out() -> None:
    import gymnasium
    from gymnasium import spaces

    class Echo(gymnasium.Env[Any, str]):
        observation_space = spaces.Dict({"said": spaces.Text(9)})
        action_space = spaces.Text(9)

        def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
            super().reset(seed=given["seed"])
            return {"said": f"{self.np_random.integers(9)}"}, {}

        def step(self, action: str) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return {"said": action}, 0.5, False, action == "enough", {"heard": 1}

    gymnasium.register("Echo-v0", Echo)
    echo = spoken("Echo-v0")
    assert echo.reset({"seed": 4}, 0) == echo.reset({"seed": 4}, 1)
    step = echo.step("hello")
    assert step.observation.messages == ({"role": "user", "content": "said: hello"},) and step.info == {"heard": 1}
    invalid = echo.step("much too long for it").invalid
    assert invalid is not None and invalid.startswith("Not an action: Text(1, 9")
    over = echo.step("enough")
    assert over.truncated and over.solved is True
    echo.close()


@pytest.mark.parametrize(
    ("id", "settings", "why"),
    [
        ("NoSuch-v0", {}, "cannot be made"),
        ("CartPole-v1", {"register": "no_such_module"}, "cannot be made"),
        ("Pendulum-v1", {}, "have no words"),
        ("FrozenLake-v1", {"actions": ["go"]}, "1 names; allowed: 4, one for each"),
    ],
)
def test_what_has_no_words_is_named(id: str, settings: dict[str, Any], why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        spoken(id, **settings)
