"""Grades trajectories: the weighted sum of named rewards, with a failed call left ungraded and counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from types import TracebackType
from typing import Self

from posttrain import catalog
from posttrain.reward.graded import Graded
from posttrain.reward.pool import WorkerPool
from posttrain.reward.signature import RewardInputs, file_says
from posttrain.reward.worker import Call, Failure, Outcome, Setup
from posttrain.reward_specs import RewardSpec, check_specs, outcome_of, stages
from posttrain.trajectory import Trajectory

Outcomes = dict[tuple[int, int], Outcome]
"""(place of the trajectory, place of the reward) -> what came of it."""


class Grader:
    """Fills in `rewards`, `reward`, `shaping`, `solved` and `error` of trajectories.

    reward = sum_i weight_i * rewards[name_i], of which shaping is the part of the rewards that are only that; solved =
    (the outcome reward >= 1, or what it says itself). The outcome is the reward that says so, else the first that is no
    shaping. A reward whose gate has not its full mark is 0, and is not called. Where a reward fails, its value, the sum
    and `solved` are None and `error` says why.
    workers: processes. deadline_seconds, memory_bytes: what one call of one reward may use. failures: counts of
    "<reward>: <cause>" since the start, the cause an exception's name, "deadline", "memory", "worker died",
    "returned None", "not a number", "not finite", "gate" or "missing column <name>".
    """

    def __init__(
        self,
        rewards: Sequence[RewardSpec],
        *,
        workers: int = 2,
        deadline_seconds: float = 10.0,
        memory_bytes: int = 2 << 30,
    ) -> None:
        check_specs(rewards)
        self.rewards = tuple(rewards)
        self.failures: Counter[str] = Counter()
        self._outcome = outcome_of(rewards)
        self._stages = stages(rewards)
        settings = [catalog.check("rewards", reward.name, dict(reward.settings)) for reward in rewards]
        functions = [catalog.find("rewards", reward.name) for reward in rewards]
        self._inputs = [RewardInputs.of(reward.name, one) for reward, one in zip(rewards, functions, strict=True)]
        deadlines = [
            reward.deadline_seconds or file_says(function, "DEADLINE_SECONDS", deadline_seconds)
            for reward, function in zip(rewards, functions, strict=True)
        ]
        names = [reward.name for reward in rewards]
        self._pool = WorkerPool(
            Setup(tuple(zip(names, settings, strict=True)), tuple(deadlines), memory_bytes), workers
        )

    def check_columns(self, columns: Iterable[str]) -> None:
        """DataError where a reward reads a column that is not among `columns`, those of the prompts' rows."""
        present = list(columns)
        for inputs in self._inputs:
            inputs.check_columns(present)

    def grade(self, trajectories: Sequence[Trajectory], group_size: int | None = None) -> None:
        """Grade in place; a trajectory that has an error already stays ungraded and costs no call.

        group_size: how many in a row are one prompt's, for rewards that compare them; None: those with the same prompt
        id. Raises UserError where a reward raised one (the recipe or the data is wrong, not the rollout).
        """
        groups = list(_groups(trajectories, group_size))
        outcomes: Outcomes = {}
        for stage in self._stages:
            calls: list[Call] = []
            asked: list[tuple[list[int], int]] = []
            for column in stage:
                for rows in self._to_call(column, trajectories, groups, outcomes):
                    asked.append((rows, column))
                    calls.append((column, self._inputs[column].read([trajectories[row] for row in rows])))
            for (rows, column), answer in zip(asked, self._pool.run(calls), strict=True):
                each = answer if isinstance(answer, list) else [answer] * len(rows)
                outcomes.update(((row, column), one) for row, one in zip(rows, each, strict=True))
        for row, trajectory in enumerate(trajectories):
            if trajectory.error is None:
                self._record(trajectory, [outcomes[row, column] for column in range(len(self.rewards))])
            else:
                trajectory.rewards = {reward.name: None for reward in self.rewards}
                trajectory.reward = trajectory.shaping = trajectory.turn_rewards = trajectory.solved = None

    def _to_call(
        self, column: int, trajectories: Sequence[Trajectory], groups: Sequence[list[int]], outcomes: Outcomes
    ) -> Iterator[list[int]]:
        """The trajectories of each call of one reward; what needs no call is put into `outcomes`."""
        inputs, gate = self._inputs[column], self.rewards[column].gate
        gated_by = next((place for place, one in enumerate(self.rewards) if one.name == gate), None)
        for group in groups:
            rows = []
            for row in group:
                missing = inputs.missing(trajectories[row])
                before = 1.0 if gated_by is None else outcomes[row, gated_by]
                if isinstance(before, Failure):
                    outcomes[row, column] = Failure("gate", f"{gate} is ungraded")
                elif before < 1.0:
                    outcomes[row, column] = 0.0
                elif missing is not None:
                    outcomes[row, column] = Failure(f"missing column {missing}", "its row lacks it")
                else:
                    rows.append(row)
            yield from ([rows] if inputs.grouped else [[row] for row in rows]) if rows else ()

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
        trajectory.reward = trajectory.shaping = trajectory.turn_rewards = trajectory.solved = None
        if errors:
            trajectory.error = "; ".join(errors)
        else:
            trajectory.reward = sum(reward.weight * values[reward.name] for reward in self.rewards)
            trajectory.shaping = sum(reward.weight * values[reward.name] for reward in self.rewards if reward.shaping)
            trajectory.turn_rewards = self._spread(values, len(trajectory.turns))
            outcome = values[self._outcome]
            said = outcome.solved if isinstance(outcome, Graded) else None
            trajectory.solved = outcome >= 1.0 if said is None else said

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


def _groups(trajectories: Sequence[Trajectory], group_size: int | None) -> Iterator[list[int]]:
    """The places of each prompt's trajectories, without those that failed."""
    rows = list(range(len(trajectories)))
    if group_size is None:
        together = [list(group) for _, group in groupby(rows, lambda row: trajectories[row].prompt_id)]
    else:
        together = [rows[start : start + group_size] for start in range(0, len(rows), group_size)]
    for group in together:
        yield [row for row in group if trajectories[row].error is None]
