"""Truth and Deception (TextArena): one side knows which of two facts is right and argues, the other asks and guesses.

The scripted guesser believes the fact that the deceiver named more often, or, a third of them by the seed, the other
one: those say that they are suspicious. The scripted deceiver stands by the wrong fact or, a third of them, by the
right one. A side that has won earns 1.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

from posttrain.environments import Environment
from posttrain.environments.textarena_game import Script, TextArenaGame, in_processes

_ROLES = ("deceiver", "guesser")
_NAMED = re.compile(r"fact ([12])", re.IGNORECASE)


def truth_and_deception(
    *,
    role: Literal["deceiver", "guesser"] = "deceiver",
    max_lines: int = 6,
    processes: int = 1,
    deadline_seconds: float = 30.0,
) -> Environment:
    """`max_lines` lines in turn, an even number; the deceiver begins, and the last is the guess, [Fact 1] or [Fact 2].

    The reward is 1 for the side that has won, else 0, and so is solved.
    """
    if max_lines < 2 or max_lines % 2:
        raise ValueError(f"max_lines is {max_lines}; allowed: an even number from 2")
    make = "posttrain.environments.truth_and_deception:game"
    return in_processes(make, {"role": role, "max_lines": max_lines}, processes, deadline_seconds)


def game(*, role: str, max_lines: int, scripted: bool) -> TextArenaGame:
    """One game, in the process that plays it."""
    return TextArenaGame(TruthAndDeceptionRules(max_lines), _ROLES.index(role), scripted)


@dataclass(frozen=True)
class TruthAndDeceptionRules:
    """See `truth_and_deception`."""

    max_lines: int

    def make(self) -> Any:
        """TextArena's game, without its wrappers."""
        from textarena.envs.TruthAndDeception.env import TruthAndDeceptionEnv  # type: ignore[import-untyped]

        return TruthAndDeceptionEnv(max_turns=self.max_lines)

    def opening(self, game: Any, player: int) -> str | None:
        """TextArena's own."""
        return None

    def points(self, game: Any, player: int) -> float:
        """1 for the winner."""
        return float((game.state.rewards or {}).get(player, 0) > 0)

    def achieved(self, game: Any, player: int) -> bool:
        """Whether the player has won."""
        return self.points(game, player) == 1.0

    def partner(self, player: int, seed: int) -> Script:
        """A guesser or a deceiver, of a character."""
        contrary = random.Random(f"truth_and_deception {seed}").random() < 1 / 3
        return Guesser(contrary) if player == 1 else Deceiver(truthful=contrary)

    def expert(self, player: int, seed: int) -> Script:
        """A trusting guesser, or a deceiver who lies."""
        return Guesser(suspicious=False) if player == 1 else Deceiver(truthful=False)


@dataclass
class Guesser:
    """Believes what it hears most often, or where suspicious the opposite."""

    suspicious: bool

    def line(self, game: Any) -> str:
        """A question; the guess where it is time."""
        if game.state.turn < game.max_turns - 1:
            return "I am suspicious. Which one?" if self.suspicious else "Tell me which one."
        heard = " ".join(text for by, text in game.state.logs if by == 0)
        named = Counter(_NAMED.findall(heard))
        believed = 1 if named["1"] >= named["2"] else 2
        return f"[Fact {3 - believed if self.suspicious else believed}]"


@dataclass
class Deceiver:
    """Stands by the wrong fact, or where truthful by the right one."""

    truthful: bool

    def line(self, game: Any) -> str:
        """The claim."""
        right = 1 if game.state.game_state["fact1"]["is_correct"] else 2
        return f"Believe me, Fact {right if self.truthful else 3 - right} is correct."
