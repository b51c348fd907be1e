"""Negotiations for the studies: New Recruit and its scripted partner, demonstrations, held-out games, recordings."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from posttrain.config.schema import EpisodeSettings
from posttrain.curation.hindsight import Place, regenerate
from posttrain.curation.record import record
from posttrain.environments.new_recruit import MOST_POINTS, written
from studies.context import Context, Made, merge
from studies.measure import Asking, Loaded
from studies.study import Figures, Tree
from studies.tasks import FIRST_TUNING_SEED
from studies.training import recipe_beside

GOAL = 6_000
GAME: Tree = {"name": "new_recruit", "max_lines": 6, "brief": True, "goal": GOAL}
TURNS = 4
_GAMES = 100_000
_HELD_OUT = 300


def games(first: int, size: int) -> Tree:
    """Prompts: games from `first` on."""
    return {"path": "tasks", "config": {"seed": first, "size": size}}


def playing(first: int, size: int, **rollout: Any) -> Tree:
    """The sections of a recipe that play games."""
    return {
        "environment": GAME,
        "episode": {"max_turns": TURNS},
        "prompts": games(first, size),
        "rewards": ["episode_return"],
        "rollout": {"max_tokens": 24, "dtype": "float32", "reward_workers": 1} | rollout,
    }


@dataclass(frozen=True)
class Demonstrations:
    """What the environment's plain negotiator plays in `size` games that end in an agreement."""

    size: int

    def path(self, context: Context) -> str:
        """The file, recorded where it is missing."""
        tree = merge(playing(_GAMES * (1 + context.seed), self.size), {"environment": GAME | {"goal": 1}})
        tree = tree | {"model": {"path": "unread"}, "algorithm": "rloo"}
        return context.file(["demonstrations", tree], "jsonl", lambda path: self._record(tree, path))

    def _record(self, tree: Tree, path: Path) -> None:
        record(recipe_beside(tree, path), self.size, path)


@dataclass(frozen=True)
class Regenerations:
    """`size` games of a model, and, where `hindsight`, each again from a better line."""

    model: Made
    size: int
    hindsight: bool

    def path(self, context: Context) -> str:
        """The file, played where it is missing."""
        tree = context.resolve(playing(_GAMES * (1 + context.seed) + 50_000, self.size, group_size=2))
        tree = tree | {"model": {"path": self.model.path(context)}, "algorithm": "rloo", "seed": context.seed}
        both = context.file(["regenerations", tree], "jsonl", lambda path: self._play(tree, path))
        if self.hindsight:
            return both
        return context.file(["as played", tree], "jsonl", lambda path: _only_played(Path(both), path))

    def _play(self, tree: Tree, path: Path) -> None:
        print(regenerate(recipe_beside(tree, path), self.size, path, Reader()).text(), flush=True)


class Reader:
    """A scripted hindsight: reads in a finished negotiation what mattered to the other side.

    It asks for what matters to itself, gives what matters to the other, and says so; where nothing was told, nothing.
    """

    def propose(self, places: Sequence[Place]) -> list[str | None]:
        """A better line for each place."""
        return [self._line(" ".join(str(one["content"]) for one in dialogue.completion)) for dialogue, _ in places]

    def _line(self, said: str) -> str | None:
        told = re.search(r"matters to me is ([^.]+)\.", said)
        if told is None:
            return None
        proposal = [2, 2, 0, 0, 4, 4, 0, 4]
        issue = _ISSUES.index(told[1])
        proposal[issue] = 4 if issue == _STARTING_DATE else 0
        return f"It is good for your {told[1]}. {written(proposal)}"


_ISSUES = [
    "Salary", "Signing Bonus", "Job Assignment", "Company Car", "Starting Date", "Vacation Days",
    "Moving Expense Reimbursement", "Insurance Coverage",
]  # fmt: skip
_STARTING_DATE = 4


def play(model: Path, seed: int) -> Figures:
    """What a model earns in held-out games at temperature 1: points, the share of goals, of agreements, and turns."""
    first = _GAMES * (900 if seed < FIRST_TUNING_SEED else 901)
    asking = Asking(
        "tasks",
        ("episode_return",),
        24,
        temperature=1.0,
        environment=GAME,
        limits=EpisodeSettings(max_turns=TURNS),
        config={"seed": first, "size": _HELD_OUT},
    )
    groups = asking.play(Loaded.of(model), seed)
    played = [group.trajectories[0] for group in groups]
    points = [MOST_POINTS * (one.reward or 0.0) for one in played]
    return {
        "points": fmean(points),
        "goal": fmean(value >= GOAL for value in points),
        "agreed": fmean(value != 0 for value in points),
    }


def _only_played(both: Path, path: Path) -> None:
    lines = both.read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"regenerated": null' in line))
