"""BabyAI's tasks in a gridworld (arXiv 1810.08272), told in words as BabyAI-Text does (arXiv 2302.02662, sec. 4.1).

    Task: go to the red ball.
    You see a wall 4 steps forward, a red ball 2 steps forward and 1 step left, a closed blue door 3 steps right.

A turn is one action by name. What is seen are the objects in sight and the nearest wall ahead and to either side, from
where the agent stands and looks; the reward is the environment's, 1 less what the steps cost, where the task is done.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from posttrain.catalog.lookup import install_command
from posttrain.environments import Environment
from posttrain.environments.gymnasium import gymnasium
from posttrain.errors import MissingDependencyError

ACTIONS = ["turn left", "turn right", "go forward", "pick up", "drop", "toggle", "done"]
INSTRUCTIONS = f"You move in a grid of rooms. Answer with one action: {', '.join(ACTIONS[:-1])}."
_DOORS = ("open", "closed", "locked")


def babyai(
    *,
    level: str = "GoToLocal",
    settings: dict[str, Any] | None = None,
    instructions: str | None = INSTRUCTIONS,
    processes: int = 2,
    episodes_per_process: int = 64,
    deadline_seconds: float = 60.0,
) -> Environment:
    """Episodes of "BabyAI-<level>-v0" (GoToLocal, PickupLoc, GoTo, BossLevel, ...); a row's column seed makes its task.

    settings: of the level, as {room_size: 6, num_dists: 2}. instructions: the system message, if any. The rest:
    `processes.InProcesses`. Its expert is BabyAI's own bot. MissingDependencyError without minigrid.
    """
    if find_spec("minigrid") is None:
        raise MissingDependencyError(f"environment 'babyai' needs the package minigrid: {install_command('minigrid')}")
    return gymnasium(
        id=f"BabyAI-{level}-v0",
        settings=settings,
        register="minigrid",
        actions=ACTIONS,
        describe="posttrain.environments.babyai:text",
        expert="posttrain.environments.babyai:Bot",
        instructions=instructions,
        processes=processes,
        episodes_per_process=episodes_per_process,
        deadline_seconds=deadline_seconds,
    )


def text(observed: Mapping[str, Any]) -> str:
    """The mission, what is in sight, and what is carried.

    observed["image"] [size, size, 3]: type, colour and state of the cell in column x and row y. The agent stands in the
    middle of the last row and looks up; its own cell is what it carries.
    """
    from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT

    size = len(observed["image"])
    walls: dict[str, tuple[int, str]] = {}
    seen: list[tuple[int, str]] = []
    carried = ""
    for x in range(size):
        for y in range(size):
            number, colour, state = (int(one) for one in observed["image"][x][y])
            kind, ahead, side = IDX_TO_OBJECT[number], size - 1 - y, x - size // 2
            distance = ahead + abs(side), _where(ahead, side)
            if kind == "wall" and 0 in (ahead, side):
                way = "" if side == 0 else distance[1].rpartition(" ")[2]
                walls[way] = min(walls.get(way, distance), distance)
            elif kind not in ("unseen", "empty", "floor", "agent", "wall"):
                name = f"{IDX_TO_COLOR[colour]} {kind}"
                name = f"{_DOORS[state]} {name}" if kind == "door" else name
                if distance[0] == 0:
                    carried = f" You carry {_a(name)}."
                else:
                    seen.append((distance[0], f"{_a(name)} {distance[1]}"))
    told = [f"a wall {where}" for _, where in walls.values()] + [one for _, one in sorted(seen)]
    sight = f"You see {', '.join(told)}." if told else "You see nothing."
    return f"Task: {observed['mission']}.\n{sight}{carried}"


class Bot:
    """BabyAI's bot, which solves all of the paper's levels: the expert of one episode."""

    def __init__(self, environment: Any) -> None:
        from minigrid.utils.baby_ai_bot import BabyAIBot

        self._bot: Any = BabyAIBot(environment)
        self._lost = False

    def __call__(self, last: int | None) -> int | None:
        """The next action, after `last` was taken; None where it knows of none, as once a box was opened."""
        from minigrid.utils.baby_ai_bot import DisappearedBoxError

        try:
            chosen = None if self._lost else self._bot.replan(last)
        except (AssertionError, DisappearedBoxError):
            self._lost, chosen = True, None
        return None if chosen is None or int(chosen) == ACTIONS.index("done") else int(chosen)


def _where(ahead: int, side: int) -> str:
    ways = ((ahead, "forward"), (-side, "left"), (side, "right"))
    return " and ".join(f"{number} step{'s' * (number > 1)} {way}" for number, way in ways if number > 0)


def _a(name: str) -> str:
    return f"an {name}" if name[0] in "aeiou" else f"a {name}"
