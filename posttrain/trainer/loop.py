"""The training loop: draw, play, update, sync, record; the same for every algorithm."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from posttrain.batch import TokenBatch, TokenSequence
from posttrain.config import Recipe
from posttrain.errors import NonFiniteGradientError
from posttrain.models.export import save_model
from posttrain.models.weights import named_weights
from posttrain.rollout.collector import Collector, check_failure_rate
from posttrain.rollout.engine import Engine
from posttrain.trainer.checkpoint import load_checkpoint, save_checkpoint
from posttrain.trainer.console import Console
from posttrain.trainer.distributed import add_over_ranks, largest_over_ranks
from posttrain.trainer.signals import StopRequest
from posttrain.trainer.step import Updater, score
from posttrain.trainer.tracker import Tracker
from posttrain.trainer.window import StepData, WindowBuilder
from posttrain.trajectory import StopReason


@dataclass
class Loop:
    """Everything a run needs while it runs; `setup` builds it.

    evaluate: plays the recipe's benchmark with the policy as the sampler has it and returns its figures; None where
    the recipe has none. reference: the frozen model where the algorithm needs one.
    """

    recipe: Recipe
    output: Path
    accelerator: Any
    tokenizer: Any
    updater: Updater
    builder: WindowBuilder
    engine: Engine | None
    collector: Collector | None
    evaluate: Callable[[], dict[str, Any]] | None
    reference: Any = None
    step: int = 0
    window_index: int = 0
    num_skipped_steps: int = 0
    num_skipped_in_a_row: int = 0
    elapsed_seconds: float = 0.0
    pending: list[StepData] = field(default_factory=list)

    def run(self) -> signal.Signals | None:
        """Train to the last step and export `final/`; or, on a signal, stop after a step and return the signal."""
        total = self.recipe.training.steps
        tracker = Tracker(self.output, self.accelerator)
        with StopRequest() as stop, Console(self.step, total) as console:
            if self.step == 0:
                self._evaluate(tracker, console)
            while self.step < total:
                metrics = self._step(tracker)
                if self.accelerator.is_main_process:
                    tracker.step(metrics)
                    console.step(self.step, metrics)
                if self._due(self.recipe.evaluation.every_steps if self.recipe.evaluation else 0):
                    self._evaluate(tracker, console)
                stopped = largest_over_ranks(self.accelerator, stop.received or 0)
                if stopped or self._due(self.recipe.checkpoint.every_steps):
                    self.save()
                if stopped and self.step < total:
                    return signal.Signals(stopped)
        if self.accelerator.is_main_process:
            save_model(self._model, self.tokenizer, self.output / "final")
        self.accelerator.end_training()
        return None

    def save(self) -> Path:
        """Write a checkpoint of this moment."""
        state = {
            "num_ranks": self.accelerator.num_processes,
            "schedule": self.updater.schedule.state_dict(),
            "data": self.builder.state_dict(),
            "window_index": self.window_index,
            "num_cut_sequences": self.builder.num_cut,
            "num_skipped_steps": self.num_skipped_steps,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
            "elapsed_seconds": self.elapsed_seconds,
            "memory": self.updater.memory,
        }
        directory, keep = self.output / "checkpoints", self.recipe.checkpoint.keep
        return save_checkpoint(directory, self.step, keep, self.accelerator, state, self.pending)

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint."""
        state, self.pending = load_checkpoint(checkpoint, self.accelerator)
        self.updater.schedule.load_state_dict(state["schedule"])
        self.builder.load_state_dict(state["data"])
        self.step = state["step"]
        self.window_index = state["window_index"]
        self.builder.num_cut = state["num_cut_sequences"]
        self.num_skipped_steps = state["num_skipped_steps"]
        self.num_skipped_in_a_row = state["num_skipped_in_a_row"]
        self.elapsed_seconds = state["elapsed_seconds"]
        self.updater.memory = state["memory"]

    @property
    def _model(self) -> Any:
        return self.accelerator.unwrap_model(self.updater.policy).model

    def _due(self, every_steps: int) -> bool:
        return self.step == self.recipe.training.steps or (every_steps > 0 and self.step % every_steps == 0)

    def _step(self, tracker: Tracker) -> dict[str, float]:
        start = time.monotonic()
        if not self.pending:
            self._fill_window(tracker)
        data = self.pending.pop(0)
        played = time.monotonic()
        metrics = self.updater(data.sequences, self.step)
        self.step += 1
        end = time.monotonic()
        self.elapsed_seconds += end - start
        self._count_skipped(metrics.pop("skipped"))
        metrics |= self._rollout_metrics(data)
        num_tokens = metrics.pop("update_tokens") + metrics.pop("rollout_tokens", 0.0)
        return {
            "step": self.step,
            "time_seconds": self.elapsed_seconds,
            "step_seconds": end - start,
            "rollout_seconds": played - start,
            "update_seconds": end - played,
            "tokens_per_second": num_tokens / (end - start),
            "epoch": self.builder.epoch,
            "skipped_steps": self.num_skipped_steps,
            "num_cut_sequences": self.builder.num_cut,
        } | metrics

    def _fill_window(self, tracker: Tracker) -> None:
        steps, groups = self.builder.build(self.window_index, self._synced_collector)
        if groups:
            check_failure_rate(groups, self.recipe.rollout.max_failure_rate)
        self.pending = [StepData(self._scored(data.sequences, len(steps)), data.played) for data in steps]
        if self.accelerator.is_main_process:
            for step, data in enumerate(self.pending, start=self.step):
                own = TokenBatch.from_sequences(data.sequences, step=step, memory=self.updater.memory)
                batch = self.updater.algorithm.prepare(own)
                tracker.rollouts(step + 1, data, batch, self.tokenizer, self.recipe.tracking.groups_per_step)
        self.window_index += 1

    def _synced_collector(self) -> Collector:
        assert self.collector is not None
        self._sync()
        return self.collector

    def _sync(self) -> None:
        """Give the sampler this step's weights, if it does not have them."""
        assert self.engine is not None
        if self.engine.policy_version != self.step:
            self.engine.sync(named_weights(self._model), self.step)

    def _scored(self, sequences: Sequence[TokenSequence], num_steps: int) -> list[TokenSequence]:
        """Old logprobs where the policy will change within the window or advantages read them; reference logprobs."""
        algorithm, device = self.updater.algorithm, self.accelerator.device
        needs = algorithm.needs
        budget = self.updater.tokens_per_microbatch
        scored = list(sequences)
        if "old_logprobs" in needs and (num_steps > 1 or "old_logprobs" in algorithm.prepare_needs):
            scored = score(self.updater.policy, scored, "old_logprobs", budget, device)
        if "reference_logprobs" in needs:
            scored = score(self.reference, scored, "reference_logprobs", budget, device)
        return scored

    def _evaluate(self, tracker: Tracker, console: Console) -> None:
        if self.evaluate is None:
            return
        self._sync()
        if self.accelerator.is_main_process:
            result = {"step": self.step} | self.evaluate()
            tracker.evaluation(result)
            low, high = result["interval"]
            console.say(
                f"step {self.step}: {result['benchmark']} pass rate {result['pass_rate']:.1%} [{low:.1%}, {high:.1%}], "
                f"n = {result['n']}, {result['num_ungraded']} ungraded, {result['num_truncated']} truncated"
            )
        self.accelerator.wait_for_everyone()

    def _count_skipped(self, skipped: float) -> None:
        self.num_skipped_in_a_row = self.num_skipped_in_a_row + 1 if skipped else 0
        self.num_skipped_steps += int(skipped)
        if self.num_skipped_in_a_row >= self.recipe.training.max_skipped_steps:
            raise NonFiniteGradientError(
                f"{self.num_skipped_in_a_row} steps in a row up to step {self.step} had a gradient with inf or nan; "
                "lower training.learning_rate, or look at the rollouts of those steps"
            )

    def _rollout_metrics(self, data: StepData) -> dict[str, float]:
        """Reward statistics over the graded trajectories of this step, over all ranks."""
        if self.builder.prompts is None:
            return {}
        trajectories = [one.trajectory for one in data.played]
        graded = [t for t in trajectories if t.reward is not None]
        local = [
            len({one.group for one in data.played}),
            len(trajectories),
            len(graded),
            sum(t.stop_reason is StopReason.LENGTH for t in trajectories),
            sum(t.reward or 0.0 for t in graded),
            sum(t.solved is True for t in graded),
            sum(t.num_completion_tokens for t in trajectories),
        ]
        sums = add_over_ranks(self.accelerator, torch.tensor(local, dtype=torch.float64)).tolist()
        groups, num, num_graded, truncated, reward, solved, tokens = sums
        metrics = {"num_groups": groups, "num_graded": num_graded, "num_ungraded": num - num_graded}
        if num_graded:
            metrics |= {"reward_mean": reward / num_graded, "pass_rate": solved / num_graded}
        if num:
            metrics |= {"num_truncated": truncated, "completion_tokens_mean": tokens / num, "rollout_tokens": tokens}
        return metrics
