"""MiniWoB++ in a real Chromium (the Debian package chromium; without it these tests say so)."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from posttrain.environments import Environment, Episode, Guided, Observation, Step, browser_memory
from posttrain.environments.browser import browser
from posttrain.environments.browser_experts import EXPERTS
from posttrain.environments.browser_view import View
from posttrain.environments.processes import EpisodeLostError
from posttrain.errors import DataError, MissingDependencyError, RecipeError, UnknownNameError
from posttrain.images import opened
from posttrain.picture import images_of, in_words
from tests.living import command, descendants, left

OVERLAPPED = 8
"""A seed of click-test-2 whose button ONE lies under the other."""


@pytest.fixture(scope="module")
def pages() -> Iterator[Environment]:
    environment = browser(view="compact", processes=1, episodes_per_process=8)
    yield environment
    environment.close()


@pytest.fixture(scope="module", autouse=True)
def left_alone(pages: Environment) -> tuple[float, Episode]:
    """An episode that is begun before all others, and when."""
    return time.monotonic(), asyncio.run(start(pages, task="click-test", seed=0))[1]


async def start(pages: Environment, **columns: Any) -> tuple[Observation, Episode]:
    return await pages.reset("", columns, 0)


def play(pages: Environment, *actions: str, **columns: Any) -> list[Step]:
    async def steps() -> list[Step]:
        _, episode = await start(pages, **columns)
        found = [await episode.step(action) for action in actions]
        await episode.close()
        return found

    return asyncio.run(steps())


def text(observation: Observation) -> str:
    return "\n".join(str(message["content"]) for message in observation.messages if isinstance(message, Mapping))


async def solve(pages: Environment, task: str, seed: int) -> tuple[list[str], Step]:
    """What the expert read, and where it got to."""
    observation, episode = await start(pages, task=task, seed=seed)
    assert isinstance(episode, Guided)
    read = [text(observation)]
    while len(read) < 20:
        action = await episode.expert()
        assert action is not None, f"{task} {seed}: the expert sees nothing to do"
        step = await episode.step(action)
        assert step.invalid is None, f"{task} {seed}: {action}: {step.invalid}"
        if step.terminated:
            break
        read.append(text(step.observation))
    await episode.close()
    return read, step


def test_a_row_and_its_seed_are_one_page(pages: Environment) -> None:
    async def begun() -> list[Observation]:
        return [(await start(pages, task="click-button", seed=seed))[0] for seed in (3, 3, 4)]

    one, again, other = asyncio.run(begun())
    assert one == again
    assert text(one) != text(other)
    assert one.state != other.state
    goal, *lines = text(one).splitlines()
    assert goal.startswith('Click on the "')
    name = goal.split('"')[1]
    assert any(f'button "{name}"' in line for line in lines)


def test_experts_solve_their_tasks(pages: Environment) -> None:
    async def all_of_them() -> dict[str, tuple[list[str], Step]]:
        return {task: await solve(pages, task, 1) for task in EXPERTS}

    ends = asyncio.run(all_of_them())
    assert {task: step.solved for task, (_, step) in ends.items()} == dict.fromkeys(EXPERTS, True)
    assert all(step.reward == 1.0 for _, step in ends.values())
    assert len(ends["enter-text"][0]) == 2
    assert len(ends["login-user"][0]) == 3


def test_an_episode_begun_in_a_used_page_is_the_same(pages: Environment) -> None:
    used = browser(view="compact", processes=1, reload_pages=False)

    async def seeds(environment: Environment, *seeds: int) -> list[list[str]]:
        return [
            (await solve(environment, task, seed))[0] for task in ("click-dialog-2", "enter-text") for seed in seeds
        ]

    try:
        assert asyncio.run(seeds(used, 2, 3, 2)) == asyncio.run(seeds(pages, 2, 3, 2))
    finally:
        used.close()


def test_the_wrong_end_earns_nothing(pages: Environment) -> None:
    (step,) = play(pages, "click('14')", task="click-test-2", seed=1)
    assert (step.terminated, step.solved, step.reward) == (True, False, 0.0)


def test_what_is_typed_is_seen(pages: Environment) -> None:
    typed, pressed = play(pages, "fill('14', 'it\\'s \"x\"')", "keyboard_press('Backspace')", task="enter-text", seed=1)
    assert (typed.terminated, typed.reward, typed.invalid) == (False, 0.0, None)
    assert "textbox 'it" not in text(typed.observation)
    assert "= 'it" in text(typed.observation) or '= "it' in text(typed.observation)
    assert len(text(pressed.observation)) < len(text(typed.observation))
    assert pressed.observation.state != typed.observation.state


@pytest.mark.parametrize(
    ("action", "words"),
    [
        ("", "empty"),
        ("I would press the button.", "empty"),
        ("goto('javascript:core.endEpisode(1)')", "goto"),
        ("noop(100000)", "noop"),
        ("send_msg_to_user('done')", "send_msg_to_user"),
        ("__import__('os')", "__import__"),
        ("click('13') click('13')", "multi-action"),
        ("click()", "argument"),
        ("click('99')", "99"),
        ("fill('13', 'x')", "not an <input>"),
    ],
)
def test_what_cannot_be_done_is_said(pages: Environment, action: str, words: str) -> None:
    refused, done = play(pages, action, "Now click('13').", task="click-test", seed=1)
    assert refused.invalid is not None
    assert words in refused.invalid
    assert len(refused.invalid.splitlines()) == 1
    assert f"not done: {refused.invalid}" in text(refused.observation)
    assert '[13] button "Click Me!"' in text(refused.observation)
    assert done.solved is True


def test_a_covered_button_cannot_be_clicked(pages: Environment) -> None:
    (step,) = play(pages, "click('13')", task="click-test-2", seed=OVERLAPPED)
    assert step.invalid is not None
    assert "covered" in step.invalid


def test_rows_name_their_task(pages: Environment) -> None:
    with pytest.raises(DataError, match="no column 'task'; it has seed"):
        asyncio.run(start(pages, seed=1))
    with pytest.raises(UnknownNameError, match="'click-tset' is no MiniWoB"):
        asyncio.run(start(pages, task="click-tset"))


def test_views_and_pictures() -> None:
    environment = browser(processes=1, screenshots=True)
    try:
        observation, _ = asyncio.run(start(environment, task="enter-password", seed=1))
    finally:
        environment.close()
    system, user = observation.messages
    assert isinstance(system, Mapping)
    assert isinstance(user, Mapping)
    assert "fill(bid: str, value: str" in system["content"]
    assert "goto" not in system["content"]
    assert "RootWebArea 'Enter Password Task'" in user["content"]
    assert "\t\t\tStaticText 'Verify password'" in user["content"]
    assert "file:" not in user["content"]
    kind, data = observation.info["screenshot"].split(",", 1)
    assert kind == "data:image/png;base64"
    assert base64.b64decode(data).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("view", "says", "leaves_out"),
    [
        ("screenshot", "332 x 214 pixels; coordinates count", "RootWebArea"),
        ("tree+screenshot", "RootWebArea 'Enter Password Task'", "[14] textbox"),
        ("compact+screenshot", '] textbox ""', "RootWebArea"),
    ],
)
def test_views_that_show_the_page(view: View, says: str, leaves_out: str) -> None:
    """The policy is given a picture of the page as it is; the same row and seed give the same picture."""
    environment = browser(processes=1, view=view)
    try:
        first, episode = asyncio.run(start(environment, task="enter-password", seed=1))
        same, _ = asyncio.run(start(environment, task="enter-password", seed=1))
        step = asyncio.run(episode.step("mouse_click(60, 88)"))
        typed = asyncio.run(episode.step("keyboard_type('secret')"))
    finally:
        environment.close()
    text = "\n".join(in_words(message["content"]) for message in first.messages if not isinstance(message, str))
    assert says in text and leaves_out not in text and "[image]" in text
    (image,) = images_of([message for message in first.messages if not isinstance(message, str)])
    assert (opened(image).width, opened(image).height) == (332, 214)
    assert first.messages == same.messages and first.info == {}
    assert step.invalid is None and typed.invalid is None
    (after,) = images_of([message for message in typed.observation.messages if not isinstance(message, str)])
    assert after != image


def test_the_page_has_no_clock(pages: Environment, left_alone: tuple[float, Episode]) -> None:
    began, episode = left_alone
    time.sleep(max(0.0, began + 10.5 - time.monotonic()))
    step = asyncio.run(_finish(episode))
    assert step.solved is True


async def _finish(episode: Episode) -> Step:
    step = await episode.step("click('13')")
    await episode.close()
    return step


def test_a_killed_browser_fails_its_episodes_and_is_started_again(pages: Environment) -> None:
    async def killed() -> bool | None:
        _, episode = await start(pages, task="click-test", seed=1)
        programs = descendants(running="--remote-debugging-pipe")
        assert programs
        for program in programs:
            program.kill()
        assert not left(programs)
        with pytest.raises(EpisodeLostError, match="closed"):
            await episode.step("click('13')")
        await episode.close()
        return (await solve(pages, "click-test", 1))[1].solved

    assert asyncio.run(killed()) is True


_HOLDER = """
import asyncio, time
from posttrain.environments.browser import browser
environment = browser(processes=2, episodes_per_process=2)
async def begin():
    return await asyncio.gather(*(environment.reset("", {"task": "click-test", "seed": i}, 0) for i in range(3)))
episodes = asyncio.run(begin())
print("playing", flush=True)
time.sleep(100)
"""


def test_nothing_is_left_of_a_killed_program() -> None:
    program = subprocess.Popen([sys.executable, "-c", _HOLDER], stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "playing\n"
    started = descendants(program.pid)
    assert sum("chrom" in command(one) for one in started) > 4
    program.kill()
    program.wait()
    assert not left(started)


def test_without_chromium_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingDependencyError, match="'/none' is no program; install the Debian package chromium"):
        browser(chromium="/none")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("POSTTRAIN_CHROMIUM", raising=False)
    with pytest.raises(MissingDependencyError, match="apt-get install chromium"):
        browser()


def test_what_is_remembered_is_what_a_page_answers(pages: Environment) -> None:
    observation, plain = asyncio.run(start(pages, task="enter-text", seed=3))
    assert isinstance(plain, Guided)
    fill = asyncio.run(plain.expert())
    asyncio.run(plain.close())
    assert fill is not None
    ways = [[fill, "click('nothing')", "click('15')"], [fill, "click('14')", "click('15')"]]  # one leaves the other
    expected = [play(pages, *actions, task="enter-text", seed=3) for actions in ways]
    remembering = browser(view="compact", reload_pages=False, remember=100, processes=1, episodes_per_process=2)
    try:
        assert asyncio.run(start(remembering, task="enter-text", seed=3))[0] == observation
        for actions, steps in [*zip(ways, expected, strict=True)] * 2:
            assert play(remembering, *actions, task="enter-text", seed=3) == steps
        assert all(steps[-1].solved for steps in expected)
        begun, again = asyncio.run(start(remembering, task="enter-text", seed=3))
        assert isinstance(again, Guided)
        assert (begun, asyncio.run(again.expert())) == (observation, fill)
    finally:
        remembering.close()


def test_what_a_group_does_alike_is_played_once(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []

    class Page:
        def __init__(self, **settings: Any) -> None:
            self.seen: list[str] = []

        def begin(self, columns: Mapping[str, Any], seed: int) -> None:
            begun.append(columns["seed"])

        def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
            self.begin(columns, seed)
            return Observation(state=str(columns["seed"]))

        def again(self, actions: Sequence[str]) -> None:
            self.seen += actions

        def step(self, action: str) -> Step:
            self.seen.append(action)
            return Step(Observation(state="/".join(self.seen)), terminated=len(self.seen) == 2)

        def lend(self) -> None:
            pass

        def close(self) -> None:
            pass

        def reclaim(self) -> bool:
            return True

    monkeypatch.setattr(browser_memory, "BrowserEpisode", Page)

    def states(seed: int, *actions: str) -> list[str]:
        episode = browser_memory.RememberedBrowserEpisode(remember=6, page="fake")
        first = episode.reset({"task": "click", "seed": seed}, 0)
        found = [first.state, *(episode.step(action).observation.state for action in actions)]
        episode.close()
        return found

    assert states(1, "a", "b") == states(1, "a", "b") == ["1", "a", "a/b"] and begun == [1]
    assert states(1, "a", "c") == ["1", "a", "a/c"] and begun == [1, 1]
    assert states(2, "a") == ["2", "a"] and begun == [1, 1, 2]
    assert states(3, "a", "b") == ["3", "a", "a/b"]  # the oldest answers are forgotten
    assert states(1, "a", "b") == ["1", "a", "a/b"] and begun == [1, 1, 2, 3, 1]


def test_a_page_that_others_took_is_found_again(pages: Environment) -> None:
    fill, wrong, send = "fill('14', 'nobody')", "click('14')", "click('15')"
    expected = play(pages, fill, wrong, send, task="enter-text", seed=3)
    remembering = browser(view="compact", reload_pages=False, remember=100, processes=1, episodes_per_process=12)

    async def side_by_side() -> list[Step]:
        _, first = await start(remembering, task="enter-text", seed=3)
        steps = [await first.step(fill)]
        for seed in range(10):  # one page shows the task: each of these takes it
            _, other = await start(remembering, task="enter-text", seed=seed + 20)
            await other.step(wrong)
            await other.close()
            steps += [await first.step((wrong, send)[seed - 8])] if seed >= 8 else []
        await first.close()
        return steps

    try:
        assert asyncio.run(side_by_side()) == expected
    finally:
        remembering.close()


def test_remember_is_a_number(pages: Environment) -> None:
    with pytest.raises(RecipeError, match="remember is -1"):
        browser(remember=-1)
