"""New Recruit (TextArena): a recruiter and a candidate talk eight issues over until one accepts the other's proposal.

Points are the game's own: two issues are a tug of war, in two both want the same, in four each cares about another, so
that giving way where it costs little earns more than meeting in the middle (5,000 points each there; 14,800 are the
most a side could get). TextArena rewards the win alone; here the reward is the policy's points.

The scripted partner has a concern, which follows from the seed: the points of one issue count twice for it when it
decides. It says which when it makes a counter-proposal, gives way a little each round, and more where the policy's line
names its concern.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.environments import Environment
from posttrain.environments.textarena_game import Script, TextArenaGame, in_processes

MOST_POINTS = 14_800
_LETTERS = "ABCDE"
_COMPATIBLE = (2, 3)  # Job Assignment, Company Car: both sides want the first choice
_CONCERNS = (0, 1, 4, 5, 6, 7)
_DEMANDS = (5_500, 6_500, 7_500)
_GIVES_WAY = 500
_SWAYED_BY = 1_500
_STRAYS = (-2, -1, -1, 0, 0, 0, 1, 1, 2)
_ROLES = ("recruiter", "candidate")


def new_recruit(
    *,
    role: Literal["recruiter", "candidate"] = "recruiter",
    goal: int = 6_000,
    max_lines: int = 10,
    brief: bool = False,
    processes: int = 1,
    deadline_seconds: float = 30.0,
) -> Environment:
    """A negotiation of at most `max_lines` lines of both sides and one more; the recruiter speaks first.

    The reward is the policy's points over 14,800 (0 without an agreement); solved: at least `goal` points. brief: the
    policy's first message says which role it has and nothing of the rules, for models that have learnt them. A line
    ends with `[Propose]` and eight letters, or is `[Accept]` or `[Reject]`.
    """
    settings = {"role": role, "goal": goal, "max_lines": max_lines, "brief": brief}
    return in_processes("posttrain.environments.new_recruit:game", settings, processes, deadline_seconds)


def game(*, role: str, goal: int, max_lines: int, brief: bool, scripted: bool) -> TextArenaGame:
    """One game, in the process that plays it."""
    return TextArenaGame(NewRecruitRules(goal, max_lines, brief), _ROLES.index(role), scripted)


@dataclass(frozen=True)
class NewRecruitRules:
    """See `new_recruit`."""

    goal: int
    max_lines: int
    brief: bool

    def make(self) -> Any:
        """TextArena's game, without its wrappers."""
        from textarena.envs.NewRecruit.env import NewRecruitEnv  # type: ignore[import-untyped]

        return NewRecruitEnv(max_turns=self.max_lines)

    def opening(self, game: Any, player: int) -> str | None:
        """The role alone where it is to be brief."""
        return f"You are the {_ROLES[player]}." if self.brief else None

    def points(self, game: Any, player: int) -> float:
        """Points of the agreement over the most there are."""
        return self._points(game, player) / MOST_POINTS

    def achieved(self, game: Any, player: int) -> bool:
        """Whether the goal's points were reached."""
        return self._points(game, player) >= self.goal

    def _points(self, game: Any, player: int) -> int:
        agreed = game.state.game_state["accepted_proposal"]
        return 0 if agreed is None else int(game._calculate_score(player, agreed["choices"]))

    def partner(self, player: int, seed: int) -> Script:
        """One with a concern."""
        draws = random.Random(f"new_recruit {seed}")
        return Concerned(player, draws.choice(_CONCERNS), draws.choice(_DEMANDS))

    def expert(self, player: int, seed: int) -> Script:
        """One who meets the other in the middle of every issue."""
        return Compromising(player, random.Random(f"new_recruit expert {seed}"))


@dataclass
class Concerned:
    """The scripted partner: accepts what is worth its demand to it, the points of issue `concern` counted twice."""

    player: int
    concern: int
    demand: float
    num_lines: int = 0

    def line(self, game: Any) -> str:
        """Accept, or say what matters, and propose its own best less one issue more each time."""
        values = _values(game, self.player)
        values[self.concern] = [2 * value for value in values[self.concern]]
        offered = _offered(game)
        demand = self.demand - _GIVES_WAY * self.num_lines
        if game.issues[self.concern] in str(game.state.game_state.get("current_rationale") or ""):
            demand -= _SWAYED_BY
        if offered is not None and sum(own[choice] for own, choice in zip(values, offered, strict=True)) >= demand:
            return "[Accept]"
        self.num_lines += 1
        open_issues = [issue for issue in range(len(values)) if issue not in _COMPATIBLE]
        least = sorted(open_issues, key=lambda issue: max(values[issue]) - min(values[issue]))
        best = [max(range(5), key=own.__getitem__) for own in values]
        proposal = [2 if issue in least[: self.num_lines] else choice for issue, choice in enumerate(best)]
        return f"What matters to me is {game.issues[self.concern]}. {written(proposal)}"


@dataclass
class Compromising:
    """A plain negotiator: near the middle of every issue, naming one of them, and content with 4,000 points.

    It finds agreements, and not the best ones: it gives the same way everywhere, whatever the other says.
    """

    player: int
    draws: random.Random
    content: int = 4_000

    def line(self, game: Any) -> str:
        """Accept, or propose."""
        values = _values(game, self.player)
        offered = _offered(game)
        if offered is not None and sum(own[c] for own, c in zip(values, offered, strict=True)) >= self.content:
            return "[Accept]"
        middle = [0 if issue in _COMPATIBLE else 2 + self.draws.choice(_STRAYS) for issue in range(len(values))]
        return f"It is good for your {self.draws.choice(game.issues)}. {written(middle)}"


def written(choices: Sequence[int]) -> str:
    """A proposal as the game reads it."""
    return "[Propose] " + " ".join(_LETTERS[choice] for choice in choices)


def _values(game: Any, player: int) -> list[list[int]]:
    """Points of each choice of each issue."""
    return [[points[player] for points in game.point_value_dict[issue].values()] for issue in game.issues]


def _offered(game: Any) -> list[int] | None:
    """The choices of the proposal that stands; None where there is none."""
    standing = game.state.game_state["current_proposal"]
    if standing is None:
        return None
    return [_LETTERS.index(game.letter_choices[issue][standing["choices"][issue]]) for issue in game.issues]
