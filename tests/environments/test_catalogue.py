"""What every environment of the catalogue keeps to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from posttrain import catalog
from posttrain.environments import Environment, Episode, Guided, Observation
from posttrain.trajectory import Prompt
from tests.living import descendants, left

ASK: Prompt = ({"role": "user", "content": "Begin."},)


@dataclass(frozen=True)
class Case:
    """An environment's settings, two rows of different tasks, and an action that cannot be carried out."""

    settings: dict[str, Any] = field(default_factory=dict)
    rows: tuple[dict[str, Any], dict[str, Any]] = ({"seed": 1}, {"seed": 2})
    bad: str = "frobnicate the moon"
    prompts: tuple[Prompt, Prompt] = (ASK, ASK)
    most_actions: int = 30


CASES = {
    "single_turn": Case(prompts=(ASK, ({"role": "user", "content": "Go on."},))),
    "gymnasium": Case(
        {"id": "Blackjack-v1", "actions": ["stick", "hit"], "processes": 1}, rows=({"seed": 1}, {"seed": 3})
    ),
    "babyai": Case({"level": "GoToLocal", "processes": 1}),
    "text_game": Case({"family": "treasure_hunter", "game": {"level": 2}, "processes": 1}),
}
NAMES = [member.name for member in catalog.members("environments")]


def test_every_environment_is_tested() -> None:
    """Here, or in a file of its own where it needs a browser or models."""
    beside = [path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path != Path(__file__)]
    for name in {*NAMES} - {*CASES}:
        assert any(name in text for text in beside), f"{name} needs a Case here, or tests of its own"


@pytest.fixture(scope="module", autouse=True)
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Games made by one test serve the others."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@contextmanager
def opened(name: str) -> Iterator[Environment]:
    environment = catalog.build("environments", name, CASES[name].settings)
    try:
        yield environment
    finally:
        environment.close()


@asynccontextmanager
async def episode(environment: Environment, name: str, row: int = 0) -> AsyncIterator[tuple[Observation, Episode]]:
    case = CASES[name]
    observation, one = await environment.reset(case.prompts[row], case.rows[row], 5)
    try:
        yield observation, one
    finally:
        await one.close()


@pytest.fixture(params=[name for name in NAMES if name in CASES], scope="module")
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def environment(name: str) -> Iterator[Environment]:
    with opened(name) as made:
        yield made


def test_a_seeded_reset_repeats(environment: Environment, name: str) -> None:
    async def play() -> None:
        async with episode(environment, name) as (first, _), episode(environment, name) as (again, _):
            assert first == again and first.messages
        async with episode(environment, name, 1) as (other, _):
            assert other.messages != first.messages

    asyncio.run(play())


def test_a_bad_action_is_answered(environment: Environment, name: str) -> None:
    async def play() -> None:
        async with episode(environment, name) as (first, one):
            for action in (CASES[name].bad, "", "\x00\ud7ff" * 50, "a" * 10_000):
                step = await one.step(action)
                if step.terminated or step.truncated:
                    break
                assert step.invalid and step.reward in (None, 0) and step.solved is None
                assert step.observation.state in ("", first.state)

    asyncio.run(play())


def test_the_expert_solves_it(environment: Environment, name: str) -> None:
    async def play() -> None:
        for row in (0, 1):
            async with episode(environment, name, row) as (_, one):
                if not isinstance(one, Guided) or (action := await one.expert()) is None:
                    return
                for _ in range(CASES[name].most_actions):
                    step = await one.step(action)
                    assert step.invalid is None
                    if step.terminated:
                        break
                    action = await one.expert() or ""
                assert step.terminated and step.solved is True

    asyncio.run(play())


def test_as_many_episodes_as_there_is_room_for_run_at_once(environment: Environment, name: str) -> None:
    room = environment.capacity
    assert room is None or room >= 1
    number = min(room or 3, 3)

    async def play() -> None:
        case = CASES[name]
        started = await asyncio.gather(*(environment.reset(case.prompts[0], case.rows[0], 5) for _ in range(number)))
        steps = await asyncio.gather(*(one.step(case.bad) for _, one in started))
        assert len({str(step) for step in steps}) == 1
        await asyncio.gather(*(one.close() for _, one in started))

    asyncio.run(play())


@pytest.mark.parametrize("name", [name for name in NAMES if name in CASES])
def test_close_leaves_no_process(name: str) -> None:
    before = descendants()
    with opened(name) as environment:

        async def play() -> None:
            async with episode(environment, name):
                pass

        asyncio.run(play())
    assert not left(child for child in descendants() if child not in before)
