"""Grades trajectories: the weighted sum of named rewards, with a failed call left ungraded and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from posttrain import catalog
from posttrain.errors import RecipeError
from posttrain.reward.graded import Graded
from posttrain.reward.pool import WorkerPool
from posttrain.reward.signature import RewardInputs
from posttrain.reward.worker import Call, Failure, Outcome, Setup
from posttrain.trajectory import Trajectory


@dataclass(frozen=True)
class RewardSpec:
    """One reward of a recipe. weight: its factor in the sum. outcome: its full mark is what "solved" means."""

    name: str
    weight: float = 1.0
    outcome: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)


class Grader:
    """Fills in `rewards`, `reward`, `solved` and `error` of trajectories.

    reward = sum_i weight_i * rewards[name_i]; solved = (the outcome reward >= 1). The outcome is the reward that says
    so, else the first. Where a reward fails, its value, the sum and `solved` are None and `error` says why.
    workers: processes. deadline_seconds, memory_bytes: what one call of one reward may use. failures: counts of
    "<reward>: <cause>" since the start, the cause an exception's name, "deadline", "memory", "worker died",
    "returned None", "not a number", "not finite" or "missing column <name>".
    """

    def __init__(
        self,
        rewards: Sequence[RewardSpec],
        *,
        workers: int = 2,
        deadline_seconds: float = 10.0,
        memory_bytes: int = 2 << 30,
    ) -> None:
        _check_specs(rewards)
        self.rewards = tuple(rewards)
        self.failures: Counter[str] = Counter()
        self._outcome = next((reward.name for reward in rewards if reward.outcome), rewards[0].name)
        settings = [catalog.check("rewards", reward.name, dict(reward.settings)) for reward in rewards]
        self._inputs = [RewardInputs.of(reward.name, catalog.find("rewards", reward.name)) for reward in rewards]
        names = [reward.name for reward in rewards]
        self._pool = WorkerPool(
            Setup(tuple(zip(names, settings, strict=True)), deadline_seconds, memory_bytes), workers
        )

    def check_columns(self, columns: Iterable[str]) -> None:
        """DataError where a reward reads a column that is not among `columns`, those of the prompts' rows."""
        present = list(columns)
        for inputs in self._inputs:
            inputs.check_columns(present)

    def grade(self, trajectories: Sequence[Trajectory]) -> None:
        """Grade in place; a trajectory that has an error already stays ungraded and costs no call.

        Raises UserError where a reward raised one (the recipe or the data is wrong, not the rollout).
        """
        outcomes: dict[tuple[int, int], Outcome] = {}
        calls: list[Call] = []
        keys: list[tuple[int, int]] = []
        for row, trajectory in enumerate(trajectories):
            if trajectory.error is not None:
                continue
            for column, inputs in enumerate(self._inputs):
                missing = inputs.missing(trajectory)
                if missing is None:
                    keys.append((row, column))
                    calls.append((column, inputs.read(trajectory)))
                else:
                    outcomes[row, column] = Failure(f"missing column {missing}", "its row lacks it")
        outcomes.update(zip(keys, self._pool.run(calls), strict=True))
        for row, trajectory in enumerate(trajectories):
            if trajectory.error is None:
                self._record(trajectory, [outcomes[row, column] for column in range(len(self.rewards))])
            else:
                trajectory.rewards = {reward.name: None for reward in self.rewards}
                trajectory.reward = trajectory.turn_rewards = trajectory.solved = None

    def _record(self, trajectory: Trajectory, outcomes: Sequence[Outcome]) -> None:
        values: dict[str, float] = {}
        errors = []
        for reward, outcome in zip(self.rewards, outcomes, strict=True):
            if isinstance(outcome, Failure):
                self.failures[f"{reward.name}: {outcome.kind}"] += 1
                errors.append(f"reward {reward.name}: {_text(outcome)}")
            else:
                values[reward.name] = outcome
        trajectory.rewards = {reward.name: values.get(reward.name) for reward in self.rewards}
        trajectory.reward = trajectory.turn_rewards = trajectory.solved = None
        if errors:
            trajectory.error = "; ".join(errors)
        else:
            trajectory.reward = sum(reward.weight * values[reward.name] for reward in self.rewards)
            trajectory.turn_rewards = self._spread(values, len(trajectory.turns))
            trajectory.solved = values[self._outcome] >= 1.0

    def _spread(self, values: Mapping[str, float], num_turns: int) -> tuple[float, ...] | None:
        """What each turn earned, where a reward says so; the others' lie at the last turn."""
        turns = [0.0] * num_turns
        spread = False
        for reward in self.rewards:
            value = values[reward.name]
            own = value.turns if isinstance(value, Graded) else None
            if own is None or len(own) != num_turns:
                turns[-1:] = [turns[-1] + reward.weight * value] if turns else []
                continue
            spread = True
            turns = [earned + reward.weight * one for earned, one in zip(turns, own, strict=True)]
        return tuple(turns) if spread else None

    def close(self) -> None:
        """Kill the workers."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _text(failure: Failure) -> str:
    """Kind and message without saying the kind twice."""
    return failure.message if failure.message.startswith(failure.kind) else f"{failure.kind}: {failure.message}"


def _check_specs(rewards: Sequence[RewardSpec]) -> None:
    if not rewards:
        raise RecipeError("rewards: rollouts are graded by at least one reward, and none is given")
    repeated = [name for name, count in Counter(reward.name for reward in rewards).items() if count > 1]
    if repeated:
        raise RecipeError(f"rewards: '{repeated[0]}' is given twice; each reward once")
    outcomes = [reward.name for reward in rewards if reward.outcome]
    if len(outcomes) > 1:
        raise RecipeError(f"rewards: {' and '.join(outcomes)} both say outcome: true; at most one may")
