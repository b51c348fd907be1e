"""Environments registered with Gymnasium, where observations and actions can be said in words.

Actions: text as it is; of a discrete space, names. Observations: text, numbers, names of discrete values, and
dictionaries or tuples of these; or what the environment draws in characters (`render`), or a function makes of them
(`describe`). Images are not covered.
"""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from posttrain.catalog.lookup import install_command
from posttrain.environments import Environment, Observation, Step, told
from posttrain.environments.processes import InProcesses
from posttrain.errors import MissingDependencyError, RecipeError
from posttrain.trajectory import Message

_MOST_NUMBERS = 32


def gymnasium(
    *,
    id: str,
    settings: dict[str, Any] | None = None,
    register: str | None = None,
    actions: list[str] | None = None,
    observations: list[str] | None = None,
    render: bool = False,
    describe: str | None = None,
    expert: str | None = None,
    fully_observed: bool = False,
    instructions: str | None = None,
    solved_above: float = 0.0,
    processes: int = 2,
    episodes_per_process: int = 64,
    deadline_seconds: float = 60.0,
) -> Environment:
    """Episodes of `gymnasium.make(id, **settings)`; the row's column seed, where it has one, is that of its reset.

    register: a module whose import registers the id. actions, observations: names of a discrete space's values, from 0
    on (default: the environment's own `actions` where it has such an enumeration, else numbers). render: observations
    are what it draws in mode "ansi". describe: "module:function" that puts an observation into words. expert:
    "module:Class", made of the environment when it is first asked, then called at every turn with the action taken at
    the last (None: none yet): the next action, or None. fully_observed: an observation is a state (`Turn.state`).
    instructions: the system message. solved_above: an episode whose rewards sum to more is solved. The rest:
    `processes.InProcesses`. MissingDependencyError without Gymnasium.
    """
    if find_spec("gymnasium") is None:
        raise MissingDependencyError(f"environment 'gymnasium' needs that package: {install_command('gymnasium')}")
    return InProcesses(
        make="posttrain.environments.gymnasium:SpokenEpisode",
        settings={
            "id": id,
            "settings": settings or {},
            "register": register,
            "actions": actions,
            "observations": observations,
            "render": render,
            "describe": describe,
            "expert": expert,
            "fully_observed": fully_observed,
            "instructions": instructions,
            "solved_above": solved_above,
        },
        processes=processes,
        episodes_per_process=episodes_per_process,
        deadline_seconds=deadline_seconds,
    )


class SpokenEpisode:
    """One episode (`processes.Playable`). RecipeError for an id, or a space, that cannot be used."""

    def __init__(
        self,
        *,
        id: str,
        settings: Mapping[str, Any],
        register: str | None,
        actions: Sequence[str] | None,
        observations: Sequence[str] | None,
        render: bool,
        fully_observed: bool,
        instructions: str | None,
        solved_above: float,
        describe: str | None = None,
        expert: str | None = None,
    ) -> None:
        import gymnasium as library

        self._place = f"gymnasium: {id}"
        try:
            if register is not None:
                importlib.import_module(register)
            more: dict[str, Any] = {"render_mode": "ansi"} if render else {}
            self._environment: Any = library.make(id, **more, **settings)
        except (ImportError, library.error.Error) as error:
            raise RecipeError(f"{self._place}: cannot be made: {error}") from error
        self._names = self._action_names(actions)
        self._observations, self._render = observations, render
        self._describe, self._make_expert = self._named(describe), self._named(expert)
        self._expert: Callable[[Any], Any] | None = None
        self._last: Any = None
        self._fully_observed, self._instructions = fully_observed, instructions
        self._solved_above, self._return = solved_above, 0.0

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """Reset with the row's seed, and its column options where it has one."""
        own = int(columns.get("seed", seed % 2**31))
        observed, _ = self._environment.reset(seed=own, options=columns.get("options"))
        self._return, self._expert, self._last = 0.0, None, None
        opening: tuple[Message, ...] = ()
        if self._instructions:
            opening = ({"role": "system", "content": self._instructions},)
        return self._seen(observed, opening)

    def step(self, action: str) -> Step:
        """Take the action of that name."""
        said = " ".join(action.rpartition("</think>")[2].split())
        chosen: Any = said
        if self._names is not None:
            if said.lower() not in self._names:
                return Step(Observation(actions=tuple(self._names)), invalid=f"Say one of: {', '.join(self._names)}.")
            chosen = self._names[said.lower()]
        elif not self._environment.action_space.contains(said):
            return Step(invalid=f"Not an action: {self._environment.action_space}.")
        observed, reward, terminated, truncated, info = self._environment.step(chosen)
        self._return, self._last = self._return + float(reward), chosen
        over = bool(terminated or truncated)
        return Step(
            self._seen(observed),
            reward=float(reward),
            terminated=bool(terminated),
            truncated=bool(truncated),
            solved=self._return > self._solved_above if over else None,
            info={key: value for key, value in info.items() if isinstance(value, str | int | float | bool)},
        )

    def expert(self) -> str | None:
        """What the expert would do, where there is one."""
        if self._make_expert is None:
            return None
        if self._expert is None:
            self._expert = self._make_expert(self._environment)
        chosen = self._expert(self._last)
        if chosen is None or self._names is None:
            return None if chosen is None else str(chosen)
        return next(name for name, value in self._names.items() if value == int(chosen))

    def close(self) -> None:
        """Close the environment."""
        self._environment.close()

    def _named(self, name: str | None) -> Callable[..., Any] | None:
        """What "module:object" names."""
        if name is None:
            return None
        module, _, attribute = name.partition(":")
        try:
            found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise RecipeError(f"{self._place}: {name!r} cannot be imported: {error}; allowed: module:name") from error
        return found

    def _seen(self, observed: Any, opening: tuple[Message, ...] = ()) -> Observation:
        if self._describe is not None:
            text = str(self._describe(observed))
        else:
            text = str(self._environment.render()).strip() if self._render else self._words(observed)
        state = hashlib.blake2b(text.encode(), digest_size=12).hexdigest() if self._fully_observed else ""
        return Observation((*opening, *told(text)), actions=tuple(self._names or ()), state=state)

    def _words(self, observed: Any) -> str:
        """An observation in words."""
        import numpy as np

        if isinstance(observed, str):
            return observed
        if isinstance(observed, Mapping):
            return "\n".join(f"{key}: {self._words(value)}" for key, value in observed.items())
        if isinstance(observed, tuple):
            return "\n".join(self._words(value) for value in observed)
        if isinstance(observed, int | float | np.integer | np.floating) or np.ndim(observed) == 0:
            named = self._observations is not None and float(observed).is_integer()
            return self._observations[int(observed)] if self._observations and named else f"{float(observed):g}"
        if isinstance(observed, np.ndarray) and observed.ndim == 1 and observed.size <= _MOST_NUMBERS:
            return " ".join(f"{number:g}" for number in observed.tolist())
        raise RecipeError(
            f"{self._place}: an observation of shape {np.shape(observed)} has no words; allowed: text, names, at most "
            f"{_MOST_NUMBERS} numbers, and dictionaries and tuples of these; or render: true, or describe"
        )

    def _action_names(self, given: Sequence[str] | None) -> dict[str, int] | None:
        """The value of each name; None where actions are text."""
        from gymnasium import spaces

        space = self._environment.action_space
        if isinstance(space, spaces.Text):
            return None
        if not isinstance(space, spaces.Discrete):
            raise RecipeError(f"{self._place}: actions of {space} have no words; allowed: spaces Text and Discrete")
        own = getattr(self._environment.unwrapped, "actions", None)
        if given is None and isinstance(own, type):
            given = [member.name for member in own][: int(space.n)]  # type: ignore[attr-defined]
        names = [name.lower() for name in given or map(str, range(int(space.n)))]
        if len({*names}) != space.n:
            raise RecipeError(f"{self._place}: actions: {len({*names})} names; allowed: {space.n}, one for each")
        return {name: int(space.start) + index for index, name in enumerate(names)}
