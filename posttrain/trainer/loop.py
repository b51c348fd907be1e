"""The training loop: draw, play, update, sync, record; the same for every algorithm."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
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
from posttrain.trainer.anchor import Anchor
from posttrain.trainer.canary import Canary
from posttrain.trainer.checkpoint import load_checkpoint, save_checkpoint
from posttrain.trainer.console import Console
from posttrain.trainer.distributed import add_over_ranks, largest_over_ranks
from posttrain.trainer.judge import judged
from posttrain.trainer.signals import StopRequest
from posttrain.trainer.step import Updater, score
from posttrain.trainer.tracker import Tracker
from posttrain.trainer.watch import WeightWatch
from posttrain.trainer.window import Ask, Replay, StepData, WindowBuilder
from posttrain.trajectory import StopReason


@dataclass
class Loop:
    """Everything a run needs while it runs; `setup` builds it.

    evaluate: plays the recipe's benchmark with the policy as the sampler has it and returns its figures; None where
    the recipe has none. reference: the model that rollouts are measured against, where the algorithm needs one; anchor:
    the same, where it follows the policy or plays rollouts itself.
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
    anchor: Anchor | None = None
    canary: Canary | None = None
    watch: WeightWatch = field(default_factory=WeightWatch)
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
        writes = self.accelerator.is_main_process
        save_model(self._model, self.tokenizer, self.output / "final", writes=writes)
        if self.accelerator.num_processes > 1:
            self.accelerator.end_training()
        else:  # a process group here is the sampler's
            for one in self.accelerator.trackers:
                one.finish()
        return None

    def save(self) -> Path:
        """Write a checkpoint of this moment."""
        state = {
            "num_ranks": self.accelerator.num_processes,
            "schedule": self.updater.schedule.state_dict(),
            "data": self.builder.state_dict(),
            "window_index": self.window_index,
            "num_cut_sequences": self.builder.num_cut,
            "num_redrawn_groups": self.builder.num_redrawn,
            "num_skipped_steps": self.num_skipped_steps,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
            "elapsed_seconds": self.elapsed_seconds,
            "memory": self.updater.memory,
        }
        directory, keep = self.output / "checkpoints", self.recipe.checkpoint.keep
        return save_checkpoint(directory, self.step, keep, self.accelerator, state, self.pending, self.anchor)

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint."""
        state, self.pending = load_checkpoint(checkpoint, self.accelerator)
        self.updater.schedule.load_state_dict(state["schedule"])
        self.builder.load_state_dict(state["data"])
        self.step = state["step"]
        if self.anchor is not None:
            self.anchor.load(checkpoint, self.step)
        self.window_index = state["window_index"]
        self.builder.num_cut = state["num_cut_sequences"]
        self.builder.num_redrawn = state["num_redrawn_groups"]
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
        fresh = not self.pending
        if fresh:
            self._fill_window(tracker)
        data = self.pending.pop(0)
        played = time.monotonic()
        self.watch.before(self.updater.policy)
        metrics = self.updater(data.sequences, self.step)
        metrics |= self.watch.after(self.updater.policy, self.accelerator, metrics)
        if fresh and self.canary is not None and self.canary.mismatch is not None:
            metrics["canary_mismatch"] = self.canary.mismatch
        self.step += 1
        if self.anchor is not None:
            self.anchor.follow(named_weights(self._model), self.step)
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
        steps, groups = self.builder.build(self.window_index, self._synced_collector, self._ask, self._replay)
        self._release()
        if groups:
            graded = self.updater.algorithm.grades_rollouts
            check_failure_rate(groups, self.recipe.rollout.max_failure_rate, graded=graded)
        self.pending = [StepData(self._scored(data.sequences, len(steps)), data.played) for data in steps]
        algorithm = self.updater.algorithm
        if self.accelerator.is_main_process:
            for step, data in enumerate(self.pending, start=self.step):
                own = TokenBatch.from_sequences(data.sequences, step=step, memory=self.updater.memory)
                pulls = torch.split(algorithm.pulls(algorithm.prepare(own)), own.lengths.tolist())
                tracker.rollouts(step + 1, data, pulls, self.tokenizer, self.recipe.tracking.groups_per_step)
        self.window_index += 1

    @property
    def _replay(self) -> Replay | None:
        return self.anchor.play if self.anchor is not None and self.anchor.samples else None

    @property
    def _ask(self) -> Ask | None:
        """Puts the policy's rollouts to the policy, where the algorithm's pairing has a judge."""
        pairing = self.updater.algorithm.plan.pairing
        if pairing is None or pairing.judge is None:
            return None
        scored = partial(
            score,
            self.updater.policy,
            field="old_logprobs",
            tokens_per_microbatch=self.updater.tokens_per_microbatch,
            accelerator=self.accelerator,
        )
        return partial(judged, judge=pairing.judge, tokenizer=self.tokenizer, score=scored)

    def _synced_collector(self) -> Collector:
        assert self.collector is not None
        self._sync()
        return self.collector

    def _sync(self) -> None:
        """Give the sampler this step's weights, if it does not have them, and check that it runs them."""
        assert self.engine is not None
        stale = self.engine.policy_version != self.step
        if stale:
            self.engine.sync(named_weights(self._model), self.step)
        if self.canary is not None and (stale or self.canary.mismatch is None):
            self.canary.check(self.engine, self.updater.policy, self.accelerator)

    def _release(self) -> None:
        """Let the samplers free the device for the update, as far as the recipe asks them to."""
        second = None if self.anchor is None else self.anchor.collector
        for engine in (self.engine, None if second is None else second.engine):
            if engine is not None:
                engine.release()

    def _scored(self, sequences: Sequence[TokenSequence], num_steps: int) -> list[TokenSequence]:
        """Old logprobs where the policy will change within the window or advantages read them; reference logprobs.

        With a critic, its values before the update too.
        """
        algorithm = self.updater.algorithm
        needs = algorithm.needs
        budget = self.updater.tokens_per_microbatch
        scored = list(sequences)
        read = "old_logprobs" in needs and (num_steps > 1 or "old_logprobs" in algorithm.prepare_needs)
        if read or "old_values" in needs:
            name = "old_logprobs" if read else "old_values"
            scored = score(self.updater.policy, scored, name, budget, self.accelerator)
        if "reference_logprobs" in needs:
            scored = score(self.reference, scored, "reference_logprobs", budget, self.accelerator)
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
        self._release()
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
        played = [one for one in data.played if not one.by_reference]
        trajectories = [one.trajectory for one in played]
        graded = [t for t in trajectories if t.reward is not None]
        local = [
            len({one.group for one in played}),
            len(trajectories),
            len(graded),
            sum(t.stop_reason is StopReason.LENGTH for t in trajectories),
            sum(t.reward or 0.0 for t in graded),
            sum(t.solved is True for t in graded),
            sum(t.num_completion_tokens for t in trajectories),
            sum(t.error is not None for t in trajectories),
        ]
        sums = add_over_ranks(self.accelerator, torch.tensor(local, dtype=torch.float64)).tolist()
        groups, num, num_graded, truncated, reward, solved, tokens, failed = sums
        metrics = {"num_groups": groups}
        if self.recipe.rollout.max_draws > 1:
            redrawn = torch.tensor([self.builder.num_redrawn], dtype=torch.float64)
            metrics["num_redrawn_groups"] = float(add_over_ranks(self.accelerator, redrawn))
        if self.updater.algorithm.grades_rollouts:
            metrics |= {"num_graded": num_graded, "num_ungraded": num - num_graded}
        else:
            metrics["num_failed"] = failed
        if num_graded:
            metrics |= {"reward_mean": reward / num_graded, "pass_rate": solved / num_graded}
        if num:
            metrics |= {"num_truncated": truncated, "completion_tokens_mean": tokens / num, "rollout_tokens": tokens}
        return metrics
