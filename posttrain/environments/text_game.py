"""Text adventures of TextWorld (arXiv 1806.11532), made by seed, in its own words.

A turn is one command. A command that the game's interpreter does not carry out is invalid, and its answer says why.
The reward of a turn is what it adds to the game's score, as a share of the most that can be scored: an episode's sum is
at most 1. Games of other interpreters (Jericho) are not covered.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from posttrain.catalog.lookup import install_command
from posttrain.environments import Environment, Observation, Step, told
from posttrain.environments.processes import InProcesses
from posttrain.environments.text_game_files import default_cache, game_file, game_spec
from posttrain.errors import MissingDependencyError
from posttrain.trajectory import Message

INSTRUCTIONS = "You are playing a text adventure. Answer with one command, such as 'go north' or 'take the key'."
_BANNER = re.compile(r"\A.*\$\$\$[^\n]*\n", re.DOTALL)
_STATUS = re.compile(r"\n>[ ]+-=[^\n]*\Z|\n>\s*\Z")
_GAPS = re.compile(r"\s*\n\s*")
_SUCCEEDED = re.compile(r"\[(?!\()[^\]\n]* - succeeded\]")
_META = frozenset({
    "quit", "q", "restart", "save", "restore", "undo", "script", "noscript", "unscript", "transcript", "verify",
    "version", "notify", "brief", "superbrief", "verbose", "normal", "pronouns", "nouns", "restrict", "enable",
    "disable", "print_state", "oops",
})  # fmt: skip
"""Commands to the interpreter rather than to the game."""


def text_game(
    *,
    family: Literal["simple", "cooking", "coin_collector", "treasure_hunter", "custom"] = "simple",
    game: dict[str, Any] | None = None,
    grammar: dict[str, Any] | None = None,
    show_actions: bool = False,
    instructions: str | None = INSTRUCTIONS,
    cache: str | None = None,
    processes: int = 2,
    episodes_per_process: int = 64,
    deadline_seconds: float = 60.0,
) -> Environment:
    """Games of one family; a row's columns family, seed and those named as one of the family's settings go before.

    game: the family's settings, as tw-make's (`text_game_files.FAMILIES`). grammar: of the texts (`GRAMMAR`).
    show_actions: each observation ends with the commands that the game would carry out. instructions: the system
    message, if any. cache: where games are kept (default: in the user's cache directory). RecipeError for settings that
    TextWorld does not have, MissingDependencyError without TextWorld.
    """
    game_spec(family, game or {}, grammar or {}, {}, 0)
    if find_spec("textworld") is None:
        raise MissingDependencyError(f"text_game needs the package 'textworld': {install_command('textworld')}")
    settings = {
        "family": family,
        "game": game or {},
        "grammar": grammar or {},
        "show_actions": show_actions,
        "instructions": instructions,
        "cache": cache,
    }
    return InProcesses(
        make="posttrain.environments.text_game:TextGame",
        settings=settings,
        processes=processes,
        episodes_per_process=episodes_per_process,
        deadline_seconds=deadline_seconds,
    )


class TextGame:
    """One episode (`processes.Playable`)."""

    def __init__(
        self,
        *,
        family: str,
        game: Mapping[str, Any],
        grammar: Mapping[str, Any],
        show_actions: bool,
        instructions: str | None,
        cache: str | None,
    ) -> None:
        self._game = family, game, grammar
        self._show_actions, self._instructions = show_actions, instructions
        self._cache = default_cache() if cache is None else Path(cache).expanduser()
        self._env: Any = None
        self._now: Any = None
        self._walk: list[str] = []
        self._planner: Planner | None = None

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """Make the row's game, where it is not there yet, and start it."""
        import textworld  # type: ignore[import-untyped]

        spec = game_spec(*self._game, columns, seed)
        path = str(game_file(spec, self._cache))
        infos = textworld.EnvInfos(admissible_commands=True, score=True, max_score=True, extras=["walkthrough"])
        self._env = textworld.start(path, infos)
        self._now = self._env.reset()
        self._planner = Planner(lambda infos: textworld.start(path, infos))
        self._name = spec.key
        self._walk = list(self._now["extra.walkthrough"] or ())
        opening: tuple[Message, ...] = told(self._text(_BANNER.sub("", self._now.feedback)))
        if self._instructions:
            opening = ({"role": "system", "content": self._instructions}, *opening)
        return Observation(opening, actions=self._actions, state=self._anchor)

    def step(self, action: str) -> Step:
        """Give the game one command."""
        command, problem = read_command(action)
        if problem is not None:
            return self._invalid(problem)
        before, score = self._anchor, self._now.score or 0
        self._now, _, done = self._env.step(command)
        if self._planner is not None:
            self._planner.missed.append(command)
        carried_out = _SUCCEEDED.search(self._now.raw) is not None
        if not carried_out and not done:
            return self._invalid(_clean(self._now.feedback) or "Nothing happens.")
        if self._walk and self._walk[0] == command:
            del self._walk[0]
        elif self._anchor != before:  # off the way: from here on, what TextWorld plans
            self._walk = []
        said = _clean(self._now.feedback) if done else self._text(self._now.feedback)
        return Step(
            Observation(told(said), actions=self._actions, state=self._anchor),
            reward=(self._now.score - score) / max(self._now.max_score, 1),
            terminated=bool(done),
            solved=bool(self._now.won) if done else None,
        )

    def expert(self) -> str | None:
        """The next command of the game's walkthrough; off it, of TextWorld's own plan; None where it has none."""
        if self._walk or self._planner is None:
            return self._walk[0] if self._walk else None
        return self._planner.next()

    def close(self) -> None:
        """End the interpreters."""
        if self._planner is not None:
            self._planner.close()
        if self._env is not None:
            self._env.close()
            self._env = None

    def _invalid(self, why: str) -> Step:
        """What was said is not carried out."""
        return Step(Observation(told(self._text(why)), actions=self._actions, state=self._anchor), invalid=why)

    @property
    def _actions(self) -> tuple[str, ...]:
        return tuple(self._now.admissible_commands)

    @property
    def _anchor(self) -> str:
        """The game, its score and all facts that hold: where the player is, what is where, what is open."""
        facts = sorted(str(fact) for fact in self._now["_facts"])
        text = "\n".join([self._name, str(self._now.score or 0), *facts])
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

    def _text(self, feedback: str) -> str:
        shown = _clean(feedback)
        return f"{shown}\nYou can: {'; '.join(self._actions)}" if self._show_actions else shown


@dataclass
class Planner:
    """TextWorld's own plan, from a second interpreter that is started when it is asked: planning slows every step.

    start: an interpreter of the game, with what it is to tell. missed: commands that were given to the game since.
    """

    start: Callable[[Any], Any]
    missed: list[str] = field(default_factory=list)
    env: Any = None
    plan: list[str] = field(default_factory=list)

    def next(self) -> str | None:
        """The first command of the plan from here."""
        if self.env is None:
            import textworld

            self.env = self.start(textworld.EnvInfos(policy_commands=True))
            self.plan = self.env.reset().policy_commands
        for command in self.missed:
            self.plan = self.env.step(command)[0].policy_commands
        self.missed.clear()
        return self.plan[0] if self.plan else None

    def close(self) -> None:
        """End it."""
        if self.env is not None:
            self.env.close()


def read_command(action: str) -> tuple[str, str | None]:
    """The command in a policy's text, what follows "</think>"; or why it is none, in words for the policy."""
    command = " ".join(action.rpartition("</think>")[2].split(" ")).strip()
    words = command.lower().split()
    if not words:
        return "", "Say a command."
    if not command.isascii() or not command.isprintable() or "\\" in command:  # which escapes to the interpreter
        return "", "A command is one line of plain English letters."
    if "." in command or ";" in command or "then" in words:
        return "", "One command at a time."
    if words[0] in _META or words[0].startswith("tw-"):
        return "", f"{words[0]!r} is not part of the game."
    return command, None


def _clean(feedback: str) -> str:
    """What the game says, without its status line and empty lines."""
    return _GAPS.sub("\n", _STATUS.sub("", feedback.rstrip(" "))).strip()
