"""What a reward reads: its positional parameters, by name, from the trajectory or from the columns of its data row."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from posttrain.errors import DataError, RecipeError, did_you_mean
from posttrain.trajectory import Trajectory

_FROM_TRAJECTORY: dict[str, Callable[[Trajectory], Any]] = {
    "completion": lambda trajectory: trajectory.completion,
    "completion_messages": lambda trajectory: [
        {"role": "assistant", "content": turn.text} for turn in trajectory.turns
    ],
    "prompt": lambda trajectory: trajectory.prompt,
    "stop_reason": lambda trajectory: str(trajectory.stop_reason),
    "num_tokens": lambda trajectory: trajectory.num_completion_tokens,
}


@dataclass(frozen=True)
class RewardInputs:
    """The inputs of one reward. required: without default. optional: passed where the row has the column."""

    reward: str
    required: tuple[str, ...]
    optional: tuple[str, ...]

    @classmethod
    def of(cls, reward: str, function: Callable[..., Any]) -> RewardInputs:
        """Read them from the function's signature; RecipeError where it has *args or **kwargs."""
        required: list[str] = []
        optional: list[str] = []
        for parameter in inspect.signature(function).parameters.values():
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise RecipeError(
                    f"reward '{reward}': parameter '{parameter}' has no name to be filled by; allowed: completion, "
                    "prompt, ... or a column's name before '*', settings with defaults after it"
                )
            if parameter.kind is parameter.KEYWORD_ONLY:
                continue
            (required if parameter.default is parameter.empty else optional).append(parameter.name)
        return cls(reward, tuple(required), tuple(optional))

    def check_columns(self, columns: Iterable[str]) -> None:
        """DataError where an input is neither of the trajectory's nor among `columns`."""
        present = sorted(set(columns))
        for name in self.required:
            if name not in _FROM_TRAJECTORY and name not in present:
                raise DataError(
                    f"reward '{self.reward}' reads the column '{name}', which the prompts do not have; columns "
                    f"present: {', '.join(present) or 'none'}; {did_you_mean(name, [*present, *_FROM_TRAJECTORY])}"
                )

    def missing(self, trajectory: Trajectory) -> str | None:
        """The first required column that this trajectory's row lacks."""
        return next((n for n in self.required if n not in _FROM_TRAJECTORY and n not in trajectory.columns), None)

    def read(self, trajectory: Trajectory) -> dict[str, Any]:
        """Keyword arguments for the call; what a trajectory provides goes before a column of the same name."""
        present = [n for n in self.optional if n in _FROM_TRAJECTORY or n in trajectory.columns]
        return {
            name: _FROM_TRAJECTORY[name](trajectory) if name in _FROM_TRAJECTORY else trajectory.columns[name]
            for name in (*self.required, *present)
        }
