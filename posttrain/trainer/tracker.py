"""What a run writes down: metrics.jsonl, evaluations.jsonl, its rollouts, and what goes to other trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from posttrain.batch import TokenBatch
from posttrain.config.schema import TrackingSettings
from posttrain.estimator import Algorithm
from posttrain.trainer.distributed import add_over_ranks
from posttrain.trainer.step_data import Played, StepData
from posttrain.trainer.store import TrajectoryStore, forget_shards
from posttrain.trainer.traces import trace
from posttrain.trajectory import Group, Trajectory


class Tracker:
    """Writes under `output`: each rank its shards of the trajectory store, the main process everything else."""

    def __init__(self, output: Path, accelerator: Any, settings: TrackingSettings, tokenizer: Any) -> None:
        self.output = output
        self.accelerator = accelerator
        self.settings = settings
        self.tokenizer = tokenizer
        self.store = None
        if settings.trajectories == "all":
            self.store = TrajectoryStore(output, accelerator.process_index, tokenizer)
            accelerator.wait_for_everyone()  # until the main process has dropped what a killed run wrote

    def step(self, metrics: Mapping[str, float]) -> None:
        """Append one step to metrics.jsonl and hand it to the trackers."""
        clean = {name: value for name, value in metrics.items() if math.isfinite(value)}
        self._append("metrics.jsonl", clean)
        self.accelerator.log(
            {name: value for name, value in clean.items() if name != "step"}, step=int(metrics["step"])
        )

    def evaluation(self, result: Mapping[str, Any]) -> None:
        """Append to evaluations.jsonl and hand the pass rate to the trackers."""
        self._append("evaluations.jsonl", result)
        name = f"evaluation/{result['benchmark']}"
        self.accelerator.log({name: result["pass_rate"]}, step=result["step"])

    def window(
        self,
        step: int,
        index: int,
        steps: Sequence[StepData],
        groups: Sequence[Group],
        algorithm: Algorithm,
        memory: Mapping[str, float],
    ) -> None:
        """Record what was played for window `index`, whose first step is number `step` (from 1); on every rank.

        groups: all that were played, those that no step trains on with them.
        """
        pulls = [
            advantages(algorithm, data, number, memory, self.accelerator)
            for number, data in enumerate(steps, start=step - 1)
        ]
        if self.store is not None:
            self.store.write(step, index, steps, groups, pulls)
        if self.accelerator.is_main_process:
            for number, (data, own) in enumerate(zip(steps, pulls, strict=True), start=step):
                self._rollouts(number, data, own)

    def _rollouts(self, step: int, data: StepData, pulls: Sequence[Tensor]) -> None:
        """A step's first groups to rollouts/step_N.jsonl, one trajectory a line, and to trackio as traces."""
        played = [one for one in data.played if one.group < self.settings.groups_per_step]
        if not played:
            return
        path = self.output / "rollouts" / f"step_{step}.jsonl"
        path.parent.mkdir(exist_ok=True)
        rows = [{"step": step} | _readable(one, pulls, self.tokenizer) for one in played]
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        if "trackio" in self.settings.trackers:
            traces = [trace(one, step, self.tokenizer) for one in played]
            self.accelerator.get_tracker("trackio").log({"rollouts": traces}, step=step)

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.output / name).open("a") as file:
            file.write(json.dumps(row) + "\n")


def advantages(
    algorithm: Algorithm, data: StepData, step: int, memory: Mapping[str, float], accelerator: Any
) -> Sequence[Tensor]:
    """Of each sequence, how much each of its action tokens is pulled at (`Algorithm.pulls`); on every rank."""
    own = TokenBatch.from_sequences(data.sequences, step=step, memory=memory)
    prepared = algorithm.prepare(own, partial(add_over_ranks, accelerator))
    return torch.split(algorithm.pulls(prepared), own.piece_lengths.tolist())


def given_ids(trajectory: Trajectory) -> list[int]:
    """The tokens of a demonstration that the first completion continued (`rollout.resets`); its text holds theirs."""
    if not trajectory.turns or not trajectory.turns[0].num_given:
        return []
    turn = trajectory.turns[0]
    return list(turn.prompt_ids[-turn.num_given :])


def forget_after(output: Path, step: int, num_pending: int = 0) -> None:
    """Drop what a killed run wrote beyond `step`, and a last line that was cut off, before it is written again.

    num_pending: steps after it whose rollouts the checkpoint holds; what is there of them to read stays.
    """
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        path = output / name
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            path.write_text("".join(line + "\n" for line in kept))
    for path in (output / "rollouts").glob("step_*.jsonl"):
        if int(path.stem.removeprefix("step_")) > step + num_pending:
            path.unlink()
    forget_shards(output, step)


def _readable(played: Played, pulls: Sequence[Tensor], tokenizer: Any) -> dict[str, Any]:
    """A trajectory with its tokens as text."""
    trajectory = played.trajectory
    ids = [token for turn in trajectory.turns for token in turn.completion_ids]
    return {
        "group": played.group,
        "prompt_id": trajectory.prompt_id,
        "attempt": trajectory.attempt,
        "by": "reference" if played.by_reference else "policy",
        "num_turns": len(trajectory.turns),
        "prompt": trajectory.prompt,
        "given": tokenizer.decode(given_ids(trajectory)),
        "completion": trajectory.completion,
        "tokens": [tokenizer.decode([token]) for token in ids],
        "logprobs": [value for turn in trajectory.turns for value in turn.logprobs],
        "advantage": [value for row in played.rows for value in pulls[row].tolist()],
        "reward": trajectory.reward,
        "rewards": trajectory.rewards,
        "solved": trajectory.solved,
        "stop_reason": trajectory.stop_reason,
        "error": trajectory.error,
        "policy_version": trajectory.turns[-1].policy_version if trajectory.turns else None,
    }


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except json.JSONDecodeError:
        return math.inf
