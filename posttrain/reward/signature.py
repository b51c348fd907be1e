"""What a reward reads: its positional parameters, by name, from the trajectory or from the columns of its data row."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.errors import DataError, RecipeError, did_you_mean
from posttrain.trajectory import Trajectory


def said(trajectory: Trajectory) -> list[dict[str, str]]:
    """The policy's messages."""
    return [{"role": "assistant", "content": turn.text} for turn in trajectory.turns]


_BATCHES: dict[str, Callable[[Trajectory], Any]] = {
    "prompts": lambda trajectory: trajectory.prompt,
    "completions": lambda trajectory: trajectory.completion if isinstance(trajectory.prompt, str) else said(trajectory),
    "completion_ids": lambda trajectory: [token for turn in trajectory.turns for token in turn.completion_ids],
}
"""What TRL's rewards read, there for a batch."""

_FROM_TRAJECTORY: dict[str, Callable[[Trajectory], Any]] = {
    "completion": lambda trajectory: trajectory.completion,
    "completion_messages": said,
    "prompt": lambda trajectory: trajectory.prompt,
    "stop_reason": lambda trajectory: str(trajectory.stop_reason),
    "num_tokens": lambda trajectory: trajectory.num_completion_tokens,
    "episode_outcome": lambda trajectory: trajectory.outcome,
    "episode_end": lambda trajectory: None if trajectory.end is None else str(trajectory.end),
    "environment_rewards": lambda trajectory: [turn.reward for turn in trajectory.turns],
    "invalid_actions": lambda trajectory: [turn.invalid is not None for turn in trajectory.turns],
    "states": lambda trajectory: [turn.state for turn in trajectory.turns],
    "off_path": lambda trajectory: [turn.off_path for turn in trajectory.turns],
}


@dataclass(frozen=True)
class RewardInputs:
    """The inputs of one reward. required: without default. optional: passed where the row has the column.

    batched: it has TRL's signature, `def name(prompts, completions, <columns>, **kwargs) -> list[float]`: every input
    is a list, and kwargs, where it has them (`everything`), take all columns of the row. grouped: these lists hold all
    trajectories of one prompt, where its file says WHOLE_GROUPS = True, else one.
    """

    reward: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    batched: bool = False
    everything: bool = False
    grouped: bool = False

    @classmethod
    def of(cls, reward: str, function: Callable[..., Any]) -> RewardInputs:
        """Read them from the function's signature and file; RecipeError where it has *args or **kwargs."""
        required: list[str] = []
        optional: list[str] = []
        parameters = inspect.signature(function).parameters
        batched = is_batched(function)
        everything = False
        for parameter in parameters.values():
            if batched and parameter.kind is parameter.VAR_KEYWORD:
                everything = "Unpack" not in str(parameter.annotation)  # of settings that several parts share
                continue
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                raise RecipeError(
                    f"reward '{reward}': parameter '{parameter}' has no name to be filled by; allowed: completion, "
                    "prompt, ... or a column's name before '*', settings with defaults after it"
                )
            if parameter.kind is parameter.KEYWORD_ONLY:
                continue
            (required if parameter.default is parameter.empty else optional).append(parameter.name)
        grouped = is_grouped(function)
        if grouped and not batched:
            raise RecipeError(
                f"reward '{reward}': WHOLE_GROUPS without lists; allowed: with TRL's signature, completions"
            )
        return cls(reward, tuple(required), tuple(optional), batched, everything, grouped)

    def check_columns(self, columns: Iterable[str]) -> None:
        """DataError where an input is neither of the trajectory's nor among `columns`."""
        present = sorted(set(columns))
        for name in self.required:
            if name not in self._provided and name not in present:
                raise DataError(
                    f"reward '{self.reward}' reads the column '{name}', which the prompts do not have; columns "
                    f"present: {', '.join(present) or 'none'}; {did_you_mean(name, [*present, *self._provided])}"
                )

    def missing(self, trajectory: Trajectory) -> str | None:
        """The first required column that this trajectory's row lacks."""
        return next((n for n in self.required if n not in self._provided and n not in trajectory.columns), None)

    def read(self, trajectories: Sequence[Trajectory]) -> dict[str, Any]:
        """Keyword arguments for the call; what a trajectory provides goes before a column of the same name.

        trajectories: one, or where it is `grouped` those of one prompt, whose rows have the same columns.
        """
        provided, first = self._provided, trajectories[0]
        wanted = {*self.optional, *first.columns, *provided} if self.everything else set(self.optional)
        names = [*self.required, *sorted(n for n in wanted if n in provided or n in first.columns)]
        values = {n: [provided[n](t) if n in provided else t.columns[n] for t in trajectories] for n in names}
        return dict(values) if self.batched else {name: value for name, (value,) in values.items()}

    @property
    def _provided(self) -> Mapping[str, Callable[[Trajectory], Any]]:
        """What a trajectory provides, whatever the columns."""
        return _BATCHES if self.batched else _FROM_TRAJECTORY


def is_batched(function: Callable[..., Any]) -> bool:
    """Whether it has TRL's signature, over lists."""
    return not _BATCHES.keys().isdisjoint(inspect.signature(function).parameters)


def is_grouped(function: Callable[..., Any]) -> bool:
    """Whether its lists hold whole groups."""
    return bool(file_says(function, "WHOLE_GROUPS", False))


def file_says(function: Callable[..., Any], name: str, otherwise: Any) -> Any:
    """What the file that holds the reward says under `name`, a constant of the module."""
    return getattr(sys.modules.get(function.__module__), name, otherwise)
