"""The single-turn environment."""

from __future__ import annotations

import asyncio

import pytest

from posttrain import catalog
from posttrain.environments import Observation
from posttrain.environments.single_turn import single_turn
from posttrain.trajectory import Prompt


@pytest.mark.parametrize("prompt", ["1 + 1 =", ({"role": "user", "content": "1 + 1 ="},)])
def test_the_first_completion_ends_it(prompt: Prompt) -> None:
    async def play() -> None:
        observation, episode = await single_turn().reset(prompt, {"answer": "2"}, seed=0)
        assert observation.messages == prompt
        step = await episode.step("2")
        assert step.terminated and not step.truncated
        assert step.reward is None and step.observation == Observation()
        await episode.close()

    asyncio.run(play())


def test_it_is_in_the_catalogue() -> None:
    assert type(catalog.build("environments", "single_turn", {})) is type(single_turn())
