"""What a run writes down: metrics.jsonl, evaluations.jsonl, rollouts to read, and what goes to other trackers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from posttrain.trainer.window import StepData
from posttrain.trajectory import Trajectory


class Tracker:
    """Writes under `output`; only the main process makes one."""

    def __init__(self, output: Path, accelerator: Any) -> None:
        self.output = output
        self.accelerator = accelerator

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

    def rollouts(self, step: int, data: StepData, pulls: Sequence[Tensor], tokenizer: Any, num_groups: int) -> None:
        """Write the first `num_groups` groups of a step to rollouts/step_N.jsonl, one trajectory a line.

        pulls: of each sequence, the advantages of its action tokens (`Algorithm.pulls`).
        """
        played = [one for one in data.played if one.group < num_groups]
        if not played:
            return
        path = self.output / "rollouts" / f"step_{step}.jsonl"
        path.parent.mkdir(exist_ok=True)
        with path.open("w") as file:
            for one in played:
                trajectory = one.trajectory
                ids = [token for turn in trajectory.turns for token in turn.completion_ids]
                record = {
                    "step": step,
                    "group": one.group,
                    "prompt_id": trajectory.prompt_id,
                    "attempt": trajectory.attempt,
                    "by": "reference" if one.by_reference else "policy",
                    "num_turns": len(trajectory.turns),
                    "prompt": trajectory.prompt,
                    "given": tokenizer.decode(given_ids(trajectory)),
                    "completion": trajectory.completion,
                    "tokens": [tokenizer.decode([token]) for token in ids],
                    "logprobs": [value for turn in trajectory.turns for value in turn.logprobs],
                    "advantage": [value for row in one.rows for value in pulls[row].tolist()],
                    "reward": trajectory.reward,
                    "rewards": trajectory.rewards,
                    "solved": trajectory.solved,
                    "stop_reason": trajectory.stop_reason,
                    "error": trajectory.error,
                    "policy_version": trajectory.turns[-1].policy_version if trajectory.turns else None,
                }
                file.write(json.dumps(record) + "\n")

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        with (self.output / name).open("a") as file:
            file.write(json.dumps(row) + "\n")


def given_ids(trajectory: Trajectory) -> list[int]:
    """The tokens of a demonstration that the first completion continued (`rollout.resets`); its text holds theirs."""
    if not trajectory.turns or not trajectory.turns[0].num_given:
        return []
    turn = trajectory.turns[0]
    return list(turn.prompt_ids[-turn.num_given :])


def forget_after(output: Path, step: int) -> None:
    """Drop what a killed run wrote beyond `step`, and a last line that was cut off, before it is written again."""
    for name in ("metrics.jsonl", "evaluations.jsonl"):
        path = output / name
        if path.exists():
            kept = [line for line in path.read_text().splitlines() if _step_of(line) <= step]
            path.write_text("".join(line + "\n" for line in kept))
    for path in (output / "rollouts").glob("step_*.jsonl"):
        if int(path.stem.removeprefix("step_")) > step:
            path.unlink()


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except json.JSONDecodeError:
        return math.inf
