"""Environments of TRL's `environment_factory`: a class whose public methods are the tools that the policy calls.

    class Counter:
        def reset(self, **row) -> str | None: ...     # the text is added to the row's last message
        def add(self, number: int) -> str: ...        # a tool; its docstring and type hints are its schema
        def get_reward(self) -> float: ...            # optional; asked once, when the policy is done

The policy calls tools in its text (`environments.tool_calls`), and is done with its first turn that calls none. As in
TRL, nothing is asked of `get_reward` where a limit ended the episode; unlike there, a call that does not fit its
tool's schema is not carried out. Answers of images are not covered.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.environments import Environment, Episode, Observation, Step
from posttrain.environments.processes import InProcesses
from posttrain.environments.tool_calls import Toolbox, parse_tool_calls
from posttrain.errors import RecipeError, did_you_mean
from posttrain.trajectory import Message, Prompt

_NOT_TOOLS = ("reset", "get_reward")


def trl(
    *,
    factory: str,
    show_prompt: bool = True,
    solved_from: float = 1.0,
    processes: int = 2,
    episodes_per_process: int = 32,
    deadline_seconds: float = 60.0,
) -> Environment:
    """Episodes of `factory`, "module:Class", in processes of their own.

    show_prompt: the row's prompt is said before what reset returns; false: that alone. solved_from: the reward from
    which an episode counts as solved. RecipeError where the class cannot be imported or is not of this kind.
    """
    find_factory(factory)
    settings = {"factory": factory, "show_prompt": show_prompt, "solved_from": solved_from}
    inner = InProcesses(
        make="posttrain.environments.trl:ToolEpisode",
        settings=settings,
        processes=processes,
        episodes_per_process=episodes_per_process,
        deadline_seconds=deadline_seconds,
    )
    return _WithPrompt(inner)


@dataclass(frozen=True)
class _WithPrompt:
    """Hands the prompt to the process as a column, as TRL's rows have it."""

    inner: InProcesses

    @property
    def capacity(self) -> int | None:
        """That of the processes."""
        return self.inner.capacity

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Episode]:
        """A new episode."""
        return await self.inner.reset(prompt, {**columns, "prompt": prompt}, seed)

    def close(self) -> None:
        """Kill the processes."""
        self.inner.close()


class ToolEpisode:
    """One episode (`processes.Playable`)."""

    def __init__(self, *, factory: str, show_prompt: bool, solved_from: float) -> None:
        self._environment = find_factory(factory)()
        methods = inspect.getmembers(type(self._environment), predicate=inspect.isfunction)
        names = [name for name, _ in methods if name not in _NOT_TOOLS and not name.startswith("_")]
        self._tools = Toolbox.of(getattr(self._environment, name) for name in names)
        self._show_prompt, self._solved_from = show_prompt, solved_from

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """The row's prompt, and what the environment says to it; it reads seed where the row has none."""
        prompt: Prompt = columns["prompt"] if self._show_prompt else ""
        messages: tuple[Message, ...] = (
            ({"role": "user", "content": prompt},) if isinstance(prompt, str) else tuple(prompt)
        )
        said = self._environment.reset(**{"seed": seed, **columns, "prompt": [dict(one) for one in messages]})
        if said is not None:
            messages = (*messages[:-1], {**messages[-1], "content": f"{messages[-1]['content']}{said}"})
        return Observation(messages, tools=self._tools.schemas)

    def step(self, action: str) -> Step:
        """Answer the calls; without any the episode is over."""
        parsed = parse_tool_calls(action)
        if parsed.mistake is not None:
            return Step(invalid=parsed.mistake)
        if not parsed.calls:
            reward = self._reward()
            return Step(terminated=True, reward=reward, solved=None if reward is None else reward >= self._solved_from)
        answered = self._tools.answer(parsed.calls)
        return Step(Observation(answered.messages), invalid=answered.mistake)

    def close(self) -> None:
        """Nothing is held: TRL's classes have no such method."""

    def _reward(self) -> float | None:
        if not hasattr(self._environment, "get_reward"):
            return None
        reward = self._environment.get_reward()
        return float(asyncio.run(reward) if inspect.iscoroutine(reward) else reward)


def find_factory(name: str) -> Any:
    """The class "module:Class"; RecipeError where it is not there, or has no reset."""
    module, separator, attribute = name.partition(":")
    place = f"trl: factory {name!r}"
    if not separator:
        raise RecipeError(f"{place}: is no class; allowed: module:Class")
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise RecipeError(f"{place}: cannot be imported: {error}") from error
    if not hasattr(found, attribute):
        classes = [one for one, value in vars(found).items() if inspect.isclass(value)]
        raise RecipeError(f"{place}: {module} has no {attribute!r}; {did_you_mean(attribute, classes)}")
    if not callable(getattr(getattr(found, attribute), "reset", None)):
        raise RecipeError(f"{place}: has no method reset; allowed: a class of TRL's environment_factory")
    return getattr(found, attribute)
