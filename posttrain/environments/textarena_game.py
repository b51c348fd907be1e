"""Two-player games of TextArena as an environment, the policy on one side.

Games are played in processes of their own (they draw from the global `random`, and print). What differs between them is
in `Rules`; an observation holds what the other side said since, and what the game says to this one.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from posttrain.catalog import install_command
from posttrain.environments import Environment, Observation, Step, told
from posttrain.environments.two_sided import PARTNER, TwoSidedProcesses
from posttrain.errors import MissingDependencyError

_GAMES_PER_PROCESS = 1024
_POLICY = "policy"


class Script(Protocol):
    """A player without a model."""

    def line(self, game: Any) -> str:
        """What it says now in TextArena's game."""
        ...


class Rules(Protocol):
    """What a game says of itself, given TextArena's environment of it."""

    def make(self) -> Any:
        """A new `textarena.Env`."""
        ...

    def opening(self, game: Any, player: int) -> str | None:
        """The first message to a player; None: TextArena's own."""
        ...

    def points(self, game: Any, player: int) -> float:
        """What the player has earned in a game that is over; 1 is the most."""
        ...

    def achieved(self, game: Any, player: int) -> bool:
        """Whether the player has reached its goal, once the game is over."""
        ...

    def partner(self, player: int, seed: int) -> Script:
        """A scripted other side, whose character follows from the seed."""
        ...

    def expert(self, player: int, seed: int) -> Script:
        """A scripted policy, to demonstrate the game."""
        ...


def in_processes(make: str, settings: Mapping[str, Any], processes: int, deadline_seconds: float) -> Environment:
    """The environment of the games that "module:function" `make` makes of `settings` and `scripted`.

    A process starts with its first game. MissingDependencyError where TextArena is not installed.
    """
    if importlib.util.find_spec("textarena") is None:
        raise MissingDependencyError(f"TextArena's games need it: {install_command('textarena')}")
    return TwoSidedProcesses.of(make, settings, processes, deadline_seconds, _GAMES_PER_PROCESS)


class TextArenaGame:
    """One game. player: the policy's number, 0 or 1. scripted: the other side is played here, by the rules' script."""

    def __init__(self, rules: Rules, player: int, scripted: bool) -> None:
        self.rules, self.player, self.scripted = rules, player, scripted
        self._game: Any = None

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """The game of the row's column `seed`, or of `seed`."""
        task = int(columns.get("seed", seed))
        self._game = self.rules.make()
        self._partner = self.rules.partner(1 - self.player, task)
        self._expert = self.rules.expert(self.player, seed)
        with _silent():
            self._game.reset(num_players=2, seed=task)
        openings = [self.rules.opening(self._game, player) or self._heard(player) for player in (0, 1)]
        for player in (0, 1):
            self._heard(player)
        answer = self._answered(self._speaks())
        messages = told("\n\n".join(filter(None, [openings[self.player], _text(answer)])))
        return Observation(messages, info={**answer.info, PARTNER: told(openings[1 - self.player])})

    def step(self, action: str) -> Step:
        """Play a line of whoever speaks; where the other side is scripted, its lines follow."""
        state = self._game.state
        speaker = state.current_player_id
        with _silent():
            self._game.step(action)
        refused = not state.done and state.current_player_id == speaker
        invalid = self._heard(speaker) if refused and speaker == self.player else None
        observation = Observation(info=self._speaks()) if invalid else self._answered(self._speaks())
        if not state.done:
            return Step(observation, 0.0, invalid=invalid)
        points = self.rules.points(self._game, self.player)
        achieved = self.rules.achieved(self._game, self.player)
        return Step(observation, points, terminated=True, solved=achieved, info={"reason": self._reason()})

    def expert(self) -> str:
        """What the rules' script says for the policy."""
        return self._expert.line(self._game)

    def close(self) -> None:
        """Forget the game."""
        self._game = None

    def _answered(self, info: Mapping[str, Any]) -> Observation:
        """What the next speaker hears, after the lines of a scripted partner."""
        state = self._game.state
        while self.scripted and not state.done and state.current_player_id != self.player:
            line = self._partner.line(self._game)
            with _silent():
                self._game.step(line)
            info = self._speaks()
        heard = "" if state.done else self._heard(state.current_player_id)
        return Observation(told(heard) if heard else (), info=info)

    def _heard(self, player: int) -> str:
        """What the other side and the game have said to a player since it was last asked; its own lines left out."""
        import textarena  # type: ignore[import-untyped]

        kept = {textarena.ObservationType.PROMPT, textarena.ObservationType.GAME_MESSAGE}
        kept |= {textarena.ObservationType.GAME_ADMIN, textarena.ObservationType.PLAYER_ACTION}
        said, self._game.state.observations[player] = self._game.state.observations[player], []
        return "\n".join(text.strip() for by, text, kind in said if by != player and kind in kept)

    def _speaks(self) -> dict[str, Any]:
        if self.scripted:
            return {}
        return {"speaks": _POLICY if self._game.state.current_player_id == self.player else PARTNER}

    def _reason(self) -> str:
        return str(self._game.state.game_info[self.player].get("reason", ""))


def _text(observation: Observation) -> str:
    assert not isinstance(observation.messages, str)
    return "\n".join(message["content"] for message in observation.messages)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    with contextlib.redirect_stdout(io.StringIO()):
        yield
