"""Environments of TRL's `environment_factory`, and the same class in TRL itself."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.environments.tool_calls import ToolCall, write_call
from posttrain.environments.trl import ToolEpisode, trl
from posttrain.errors import RecipeError, UserError

FACTORY = "trl_counter:Counter"


@pytest.fixture(autouse=True, scope="module")
def _importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        yield
        sys.modules.pop("trl_counter", None)


def begun(**columns: Any) -> tuple[ToolEpisode, Any]:
    episode = ToolEpisode(factory=FACTORY, show_prompt=True, solved_from=1.0)
    row = {"prompt": ({"role": "user", "content": "Please."},), **columns}
    return episode, episode.reset(row, 0)


def call(name: str, **arguments: Any) -> str:
    return write_call(ToolCall(name, arguments))


def test_the_prompt_and_the_tools() -> None:
    _, first = begun(goal=3)
    assert first.messages == ({"role": "user", "content": "Please. Count to 3."},)
    assert [tool["function"]["name"] for tool in first.tools] == ["add", "look"]
    assert first.tools[0]["function"]["parameters"]["required"] == ["number"]
    _, silent = begun(silent=True)
    assert silent.messages == ({"role": "user", "content": "Please."},)


def test_tools_are_called_until_a_turn_calls_none() -> None:
    episode, _ = begun(goal=3)
    step = episode.step(f"I add. {call('add', number=1)}{call('add', number=2)}")
    assert [message["content"] for message in step.observation.messages] == ["Now 1.", "Now 3."]  # type: ignore[index]
    assert not step.terminated and step.invalid is None
    (seen,) = episode.step(call("look")).observation.messages
    assert seen == {"role": "tool", "name": "look", "content": "3"}
    done = episode.step("It is three.")
    assert done.terminated and done.reward == 1.0 and done.solved is True


def test_what_cannot_be_called_is_told() -> None:
    episode, _ = begun()
    for said, why in (
        (call("subtract", number=1), "is no tool"),
        (call("add", number="one"), "not of type 'integer'"),
        (call("add", number=0), "0 is below 1"),
        ("<tool_call>{</tool_call>", "not JSON"),
        (call("reset"), "is no tool"),
    ):
        step = episode.step(said)
        assert step.invalid is not None and why in step.invalid and not step.terminated
    assert episode.step("Nothing.").solved is False


def test_in_processes_and_by_name() -> None:
    environment = trl(factory=FACTORY, processes=1)

    async def play() -> list[Any]:
        first, episode = await environment.reset("Go.", {"goal": 2}, 0)
        steps = [await episode.step(call("add", number=2)), await episode.step("Done.")]
        await episode.close()
        return [first, *steps]

    try:
        first, step, done = asyncio.run(play())
    finally:
        environment.close()
    assert first.messages == ({"role": "user", "content": "Go. Count to 2."},)
    assert step.observation.messages[0]["content"] == "Now 2." and done.solved is True


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("trl_counter", "is no class"),
        ("no_such_module:Counter", "cannot be imported"),
        ("trl_counter:Counte", "did you mean 'Counter'"),
        ("trl_counter:Nothing", "has no method reset"),
    ],
)
def test_a_wrong_factory_is_named(factory: str, why: str) -> None:
    with pytest.raises(RecipeError, match=why):
        trl(factory=factory)


def test_a_tool_without_a_schema_is_named() -> None:
    with pytest.raises(UserError, match="type hints"):
        ToolEpisode(factory="trl_counter:Unrewarded", show_prompt=True, solved_from=1.0)


def test_trl_reads_the_same_tools() -> None:
    """TRL renders the schemas of the same methods: those of transformers."""
    import trl_counter  # type: ignore[import-not-found]
    from transformers.utils import get_json_schema

    _, first = begun()
    counter = trl_counter.Counter()
    assert list(first.tools) == [get_json_schema(counter.add), get_json_schema(counter.look)]
