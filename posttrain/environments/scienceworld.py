"""ScienceWorld's experiments in a text world (arXiv 2203.07540): boil water, grow a plant, find what conducts.

A turn is one command. The reward of a turn is what it adds to the task's score, as a share of the most there is (some
of which a task may have from the start); a mistake that ends the task takes it to -1. The simulator needs Java: each
process holds one, some 500 MB, and plays one episode at a time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any, Literal

from posttrain.catalog.lookup import install_command
from posttrain.environments import Environment, Observation, Step, told
from posttrain.environments.processes import InProcesses
from posttrain.environments.text_game import read_command
from posttrain.errors import MissingDependencyError, RecipeError, did_you_mean
from posttrain.trajectory import Message

INSTRUCTIONS = "You are in a house with a laboratory. Answer with one command, such as 'open door to kitchen'."
_UNKNOWN = "No known action matches that input."
_MOST_MEMORY = "-Xmx512m"


def scienceworld(
    *,
    task: str = "find-living-thing",
    split: Literal["train", "dev", "test"] = "train",
    simplifications: list[str] | None = None,
    show_actions: bool = False,
    instructions: str | None = INSTRUCTIONS,
    processes: int = 2,
    deadline_seconds: float = 120.0,
) -> Environment:
    """Episodes of `task`, or of the row's column task; the column seed counts the split's variations, round and round.

    simplifications: ScienceWorld's (easy, teleportAction, openDoors, ...). show_actions: each observation ends with the
    commands that mean something there, often a thousand. instructions: the system message, if any. An episode ends with
    its task; set `episode.max_turns`. MissingDependencyError without ScienceWorld or Java.
    """
    if find_spec("scienceworld") is None:
        command = install_command("scienceworld")
        raise MissingDependencyError(f"environment 'scienceworld' needs that package: {command}")
    if shutil.which("java") is None:
        raise MissingDependencyError("environment 'scienceworld' needs Java (Debian's package default-jre-headless)")
    return InProcesses(
        make="posttrain.environments.scienceworld:Experiment",
        settings={
            "task": task,
            "split": split,
            "simplifications": simplifications or [],
            "show_actions": show_actions,
            "instructions": instructions,
        },
        processes=processes,
        episodes_per_process=1,
        deadline_seconds=deadline_seconds,
    )


class Experiment:
    """One episode (`processes.Playable`). RecipeError for a task or a simplification that there is not."""

    _simulator: Any = None
    """The process's one, kept for the next episode."""

    def __init__(
        self, *, task: str, split: str, simplifications: Sequence[str], show_actions: bool, instructions: str | None
    ) -> None:
        self._task, self._split, self._simplifications = task, split, ",".join(simplifications)
        self._show_actions, self._instructions = show_actions, instructions
        self._variation, self._score = 0, 0
        self._way: list[str] | None = None
        self._taken: list[str] = []

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """Load the row's variation of its task."""
        world = self._world()
        self._task = str(columns.get("task", self._task))
        try:
            world.load(self._task, 0, self._simplifications)
            variations = getattr(world, f"get_variations_{self._split}")()
            self._variation = variations[int(columns.get("seed", seed)) % len(variations)]
            world.load(self._task, self._variation, self._simplifications)
        except ValueError as error:
            allowed = did_you_mean(self._task, world.get_task_names())
            raise RecipeError(f"environment scienceworld: {error}; {allowed}") from error
        seen, info = world.reset()
        self._score, self._way, self._taken = info["score"], None, []
        opening: tuple[Message, ...] = told(self._text(f"{world.get_task_description()}\n{seen}", info))
        if self._instructions:
            opening = ({"role": "system", "content": self._instructions}, *opening)
        return Observation(opening, actions=tuple(info["valid"]))

    def step(self, action: str) -> Step:
        """Give the simulator one command."""
        command, problem = read_command(action)
        if problem is not None:
            return Step(invalid=problem)
        seen, _, done, info = self._world().step(command)
        if seen.strip() == _UNKNOWN:
            return Step(Observation(actions=tuple(info["valid"])), invalid=_UNKNOWN)
        self._taken.append(command)
        earned, self._score = info["score"] - self._score, info["score"]
        return Step(
            Observation(told(self._text(seen, info)), actions=tuple(info["valid"])),
            reward=earned / 100,
            terminated=bool(done),
            solved=self._score >= 100 if done else None,
        )

    def expert(self) -> str | None:
        """The next command of the task's own way; None off it. It must be asked before the first command."""
        if self._way is None:
            self._way = [] if self._taken else self._gold()
        number = len(self._taken)
        return self._way[number] if self._taken == self._way[:number] and number < len(self._way) else None

    def close(self) -> None:
        """The simulator is kept for the next episode."""

    def _gold(self) -> list[str]:
        world = self._world()
        world.load(self._task, self._variation, self._simplifications, generateGoldPath=True)
        way: list[str] = world.get_gold_action_sequence()
        world.reset()
        return way

    @classmethod
    def _world(cls) -> Any:
        if cls._simulator is None:
            from scienceworld import ScienceWorldEnv

            os.environ.setdefault("JAVA_TOOL_OPTIONS", _MOST_MEMORY)
            cls._simulator = ScienceWorldEnv(envStepLimit=1 << 30)
        return cls._simulator

    def _text(self, seen: str, info: Mapping[str, Any]) -> str:
        shown = "\n".join(line.strip() for line in seen.splitlines() if line.strip())
        return f"{shown}\nYou can: {'; '.join(info['valid'])}" if self._show_actions else shown
