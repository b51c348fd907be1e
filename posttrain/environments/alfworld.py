"""ALFWorld's households in words (arXiv 2010.03768): the text half of ALFRED's tasks, on TextWorld's PDDL engine.

The games are ALFWorld's own, which `alfworld-download` puts below $ALFWORLD_DATA; none comes with the package. A turn
is one command, such as `go to desk 1`, `take mug 2 from desk 1`, `heat mug 2 with microwave 1`. Done pays 1, all else
0; a game ends only when it is done, so set `episode.max_turns` (30 and 50 are usual).
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from posttrain.catalog.lookup import install_command
from posttrain.environments import Environment, Observation, Step, told
from posttrain.environments.processes import InProcesses
from posttrain.environments.text_game import Planner, read_command
from posttrain.errors import MissingDependencyError, RecipeError, did_you_mean
from posttrain.trajectory import Message

INSTRUCTIONS = "You are in a house. Answer with one command, such as 'go to desk 1' or 'take mug 2 from desk 1'."
TASKS = (
    "pick_and_place_simple",
    "look_at_obj_in_light",
    "pick_clean_then_place_in_recep",
    "pick_heat_then_place_in_recep",
    "pick_cool_then_place_in_recep",
    "pick_two_obj_and_place",
)
_LEFT_OUT = ("movable", "Sliced")  # as ALFWorld leaves them out


def alfworld(
    *,
    split: Literal["train", "valid_seen", "valid_unseen"] = "train",
    tasks: list[str] | None = None,
    data: str | None = None,
    show_actions: bool = False,
    instructions: str | None = INSTRUCTIONS,
    processes: int = 2,
    episodes_per_process: int = 16,
    deadline_seconds: float = 60.0,
) -> Environment:
    """Games of one split, in the order of their names; a row's column seed is a game's number, counted round and round.

    tasks: kinds of them (default: all of `TASKS`). data: in place of $ALFWORLD_DATA. show_actions: each observation
    ends with the commands that the game would carry out. instructions: the system message, if any. RecipeError where
    there are no games, MissingDependencyError without ALFWorld.
    """
    for name in tasks or ():
        if name not in TASKS:
            raise RecipeError(f"environment alfworld: tasks has {name!r}; {did_you_mean(name, TASKS)}")
    if find_spec("alfworld") is None:
        raise MissingDependencyError(f"environment 'alfworld' needs that package: {install_command('alfworld')}")
    games = find_games(data, split, tasks or TASKS)
    return InProcesses(
        make="posttrain.environments.alfworld:HouseGame",
        settings={"games": games, "show_actions": show_actions, "instructions": instructions},
        processes=processes,
        episodes_per_process=episodes_per_process,
        deadline_seconds=deadline_seconds,
    )


def find_games(data: str | None, split: str, tasks: Sequence[str]) -> tuple[str, ...]:
    """The files of a split's games, sorted. RecipeError where there are none."""
    given = data or os.environ.get("ALFWORLD_DATA")
    if not given:
        raise RecipeError(
            "environment alfworld: $ALFWORLD_DATA is not set; allowed: where `alfworld-download` put games"
        )
    folder = Path(given).expanduser() / "json_2.1.1" / split
    found = (path for path in folder.glob("*/*/game.tw-pddl") if path.parts[-3].startswith(tuple(tasks)))
    games = sorted(str(path) for path in found if not any(word in path.parts[-3] for word in _LEFT_OUT))
    if not games:
        raise RecipeError(
            f"environment alfworld: no games in {folder}; allowed: */*/game.tw-pddl there, as `alfworld-download` "
            "puts them below $ALFWORLD_DATA"
        )
    return tuple(games)


class HouseGame:
    """One episode (`processes.Playable`)."""

    def __init__(self, *, games: Sequence[str], show_actions: bool, instructions: str | None) -> None:
        self._games, self._show_actions, self._instructions = games, show_actions, instructions
        self._path = ""
        self._env: Any = None
        self._now: Any = None
        self._planner: Planner | None = None

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """Start the game of the row's number, or the next that can be solved."""
        import textworld  # type: ignore[import-untyped]

        first = int(columns.get("seed", seed))
        number = len(self._games)
        self._path = next(
            (path for offset in range(number) if _solvable(path := self._games[(first + offset) % number])), ""
        )
        if not self._path:
            raise RecipeError("environment alfworld: none of the games can be solved")
        self._env = self._start(textworld.EnvInfos(admissible_commands=True))
        self._planner = Planner(self._start)
        self._now = self._env.reset()
        _, _, opening = self._now.feedback.partition("=-\n\n")
        messages: tuple[Message, ...] = told(self._text(opening or self._now.feedback))
        if self._instructions:
            messages = ({"role": "system", "content": self._instructions}, *messages)
        return Observation(messages, actions=self._actions, state=self._state)

    def step(self, action: str) -> Step:
        """Give the game one command."""
        command, problem = read_command(action)
        if problem is None and command not in self._actions:
            problem = "Nothing happens."
        if problem is not None:
            return Step(
                Observation(told(self._text(problem)), actions=self._actions, state=self._state), invalid=problem
            )
        self._now, _, done = self._env.step(command)
        assert self._planner is not None
        self._planner.missed.append(command)
        return Step(
            Observation(told(self._text(self._now.feedback)), actions=self._actions, state=self._state),
            reward=float(self._now["won"]),
            terminated=bool(done),
            solved=bool(self._now["won"]) if done else None,
        )

    def expert(self) -> str | None:
        """The next command of the planner's way from here; None where there is none."""
        return None if self._planner is None else self._planner.next()

    def close(self) -> None:
        """End the interpreters."""
        if self._planner is not None:
            self._planner.close()
        if self._env is not None:
            self._env.close()
            self._env = None

    def _start(self, infos: Any) -> Any:
        import textworld
        from alfworld.agents.environment.alfred_tw_env import AlfredDemangler

        return textworld.start(self._path, infos, wrappers=[AlfredDemangler(shuffle=False)])

    @property
    def _actions(self) -> tuple[str, ...]:
        return tuple(command for command in self._now.admissible_commands if command != "help")

    @property
    def _state(self) -> str:
        """The game and all facts that hold."""
        facts = sorted(str(fact) for fact in self._now["_facts"])
        return hashlib.blake2b("\n".join([self._path, *facts]).encode(), digest_size=12).hexdigest()

    def _text(self, feedback: str) -> str:
        shown = "\n".join(line.strip() for line in feedback.splitlines() if line.strip())
        return f"{shown}\nYou can: {'; '.join(self._actions)}" if self._show_actions else shown


def _solvable(path: str) -> bool:
    return bool(json.loads(Path(path).read_text(encoding="utf-8")).get("solvable"))
