"""The training loop: draw, play, update, sync, record; the same for every algorithm."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from posttrain.config import Recipe
from posttrain.errors import NonFiniteGradientError
from posttrain.models.action_values import ActionValues, save_values
from posttrain.models.export import save_model
from posttrain.models.weights import named_weights
from posttrain.rollout.collector import Collector, check_failure_rate
from posttrain.trainer.ahead import Ahead
from posttrain.trainer.anchor import Anchor
from posttrain.trainer.checkpoint import load_checkpoint, save_checkpoint
from posttrain.trainer.console import Console
from posttrain.trainer.distributed import add_over_ranks, largest_over_ranks, of_all_ranks
from posttrain.trainer.evaluations import FINAL, Selection
from posttrain.trainer.memory_meter import MemoryMeter
from posttrain.trainer.rollout_metrics import engine_metrics, rollout_metrics
from posttrain.trainer.sampler import Sampler, Weights
from posttrain.trainer.scoring import judge_of, scored
from posttrain.trainer.signals import StopRequest
from posttrain.trainer.step import Updater
from posttrain.trainer.step_data import StepData
from posttrain.trainer.tracker import Tracker
from posttrain.trainer.watch import WeightWatch
from posttrain.trainer.window import Replay, Window, WindowBuilder


@dataclass
class Loop:
    """Everything a run needs while it runs; `setup` builds it.

    evaluate: plays the recipe's benchmark with the policy as the sampler has it and returns its figures; None where
    the recipe has none. selection: keeps the best of the steps at which it was played. reference: the model that
    rollouts are measured against, where the algorithm needs one; anchor: the same, where it follows the policy or
    plays rollouts itself. window_index: the window that is trained next; next_to_play: the first that nobody was
    asked to play, beyond it where `rollout.max_staleness` lets windows be played ahead.
    """

    recipe: Recipe
    output: Path
    accelerator: Any
    tokenizer: Any
    updater: Updater
    builder: WindowBuilder
    sampler: Sampler | None
    collector: Collector | None
    evaluate: Callable[[], dict[str, Any]] | None
    selection: Selection | None = None
    reference: Any = None
    anchor: Anchor | None = None
    meter: MemoryMeter = field(default_factory=MemoryMeter)
    watch: WeightWatch = field(default_factory=WeightWatch)
    step: int = 0
    window_index: int = 0
    next_to_play: int = 0
    num_redrawn_groups: int = 0
    num_skipped_steps: int = 0
    num_skipped_in_a_row: int = 0
    elapsed_seconds: float = 0.0
    pending: list[StepData] = field(default_factory=list)
    ahead: Ahead = field(init=False)

    def __post_init__(self) -> None:
        """The queue of windows."""
        self.ahead = Ahead(self._play, threaded=self.recipe.rollout.max_staleness > 0)

    def run(self) -> signal.Signals | None:
        """Train to the last step and export `final/`; or, on a signal, stop after a step and return the signal."""
        total = self.recipe.training.steps
        tracker = Tracker(self.output, self.accelerator, self.recipe.tracking, self.tokenizer)
        with StopRequest() as stop, Console(self.step, total) as console, closing(self.ahead):
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
        self._report(tracker, console)
        writes = self.accelerator.is_main_process
        save_model(self._model, self.tokenizer, self.output / "final", writes=writes)
        critic = getattr(self.accelerator.unwrap_model(self.updater.policy), "critic", None)
        if writes and isinstance(critic, ActionValues):
            save_values(critic, self.output / "final")
        if self.accelerator.num_processes > 1:
            self.accelerator.end_training()
        else:  # a process group here is the sampler's
            for one in self.accelerator.trackers:
                one.finish()
        return None

    def save(self) -> Path:
        """Write a checkpoint of this moment, with every window that is being played: it is waited for."""
        ahead = self.ahead.settle()
        state = {
            "num_ranks": self.accelerator.num_processes,
            "schedule": self.updater.schedule.state_dict(),
            "data": self.builder.state_dict(),
            "epoch": self.builder.epoch,
            "window_index": self.window_index,
            "next_to_play": self.next_to_play,
            "num_cut_sequences": self.builder.maker.num_cut,
            "num_redrawn_groups": self.num_redrawn_groups,
            "num_skipped_steps": self.num_skipped_steps,
            "num_skipped_in_a_row": self.num_skipped_in_a_row,
            "elapsed_seconds": self.elapsed_seconds,
            "memory": self.updater.memory,
        }
        directory, keep = self.output / "checkpoints", self.recipe.checkpoint.keep
        return save_checkpoint(directory, self.step, keep, self.accelerator, state, self.pending, ahead, self.anchor)

    def restore(self, checkpoint: Path) -> None:
        """Go on from a checkpoint."""
        state, self.pending, ahead = load_checkpoint(checkpoint, self.accelerator)
        self.ahead.hold(ahead)
        self.updater.schedule.load_state_dict(state["schedule"])
        self.builder.load_state_dict(state["data"])
        self.step = state["step"]
        if self.anchor is not None:
            self.anchor.load(checkpoint, self.step)
        self.window_index = state["window_index"]
        self.next_to_play = state["next_to_play"]
        self.builder.epoch = state["epoch"]
        self.builder.maker.num_cut = state["num_cut_sequences"]
        self.num_redrawn_groups = state["num_redrawn_groups"]
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
        self.ahead.check()
        start = time.monotonic()
        of_window: dict[str, float] = {} if self.pending else self._begin_window(tracker)
        data = self.pending.pop(0)
        played = time.monotonic()
        self.watch.before(self.updater.policy)
        metrics = self.updater(data.sequences, self.step)
        metrics |= self.watch.after(self.updater.policy, self.accelerator, metrics)
        if self.builder.prompts is not None:
            graded = self.updater.algorithm.grades_rollouts
            metrics |= rollout_metrics(
                data,
                self.step,
                graded=graded,
                accelerator=self.accelerator,
                rewards=[one.name for one in self.recipe.rewards] if graded and len(self.recipe.rewards) > 1 else (),
                reference="reference_logprobs" in self.updater.algorithm.needs,
            )
        if self.builder.prompts is not None and self.recipe.rollout.max_draws > 1:
            metrics["num_redrawn_groups"] = self.num_redrawn_groups
        self.step += 1
        if self.anchor is not None:
            self.anchor.follow(named_weights(self._model), self.step, skipped=bool(metrics["skipped"]))
        end = time.monotonic()
        self.elapsed_seconds += end - start
        self._count_skipped(metrics.pop("skipped"))
        num_tokens = metrics.pop("update_tokens") + metrics.pop("rollout_tokens", 0.0)
        return {
            "step": self.step,
            "time_seconds": self.elapsed_seconds,
            "step_seconds": end - start,
            "update_seconds": end - played,
            "tokens_per_second": num_tokens / (end - start),
            "epoch": self.builder.epoch,
            "skipped_steps": self.num_skipped_steps,
            "num_cut_sequences": self.builder.maker.num_cut,
        } | (metrics | of_window)

    def _begin_window(self, tracker: Tracker) -> dict[str, float]:
        """Fill `pending` with the next window's steps; its figures."""
        start = time.monotonic()
        self._ask_ahead()
        window = self.ahead.take()
        waited = time.monotonic() - start
        assert window.index == self.window_index
        if window.played:
            graded = self.updater.algorithm.grades_rollouts
            check_failure_rate(window.played, self.recipe.rollout.max_failure_rate, graded=graded)
        replaced = torch.tensor([len(window.replaced)], device=self.accelerator.device)
        self.num_redrawn_groups += int(add_over_ranks(self.accelerator, replaced))
        old = self.recipe.rollout.old_logprobs
        steps = self.builder.steps(window, judge_of(self.updater, self.tokenizer))
        self.pending = [
            replace(data, sequences=scored(data.sequences, self.updater, self.reference, len(steps), old))
            for data in steps
        ]
        written = self.step + 1, window.index, self.pending, window.played
        tracker.window(*written, self.updater.algorithm, self.updater.memory)
        self.window_index += 1
        self.builder.record(window, partial(of_all_ranks, self.accelerator))
        figures = engine_metrics(window.counters, self.accelerator) | dict(window.curriculum)
        figures |= {"rollout_seconds": window.seconds, "rollout_wait_seconds": waited}
        if self.recipe.rollout.max_staleness and window.seconds:
            figures["rollout_overlap"] = max(0.0, 1 - waited / window.seconds)
        return figures | ({} if window.mismatch is None else {"canary_mismatch": window.mismatch})

    def _ask_ahead(self) -> None:
        """Have all windows played that today's policy is to sample: the next, or those up to max_staleness ahead."""
        staleness = self.recipe.rollout.max_staleness
        last = math.ceil(self.recipe.training.steps / self.builder.num_steps) - 1
        indices = range(self.next_to_play, min(self.window_index + staleness, last) + 1)
        weights = None
        if self.sampler is not None and any(map(self.builder.samples, indices)):
            weights = self.sampler.take(self.step, copied=staleness > 0)
        for index in indices:
            self.ahead.put(index, weights)
            self.next_to_play = index + 1

    def _play(self, index: int, weights: Weights | None) -> Window:
        """Window `index`, played with `weights`: in the thread of `ahead`, where it has one."""
        start = time.monotonic()
        replay: Replay | None = self.anchor.play if self.anchor is not None and self.anchor.samples else None
        window = self.builder.play(index, partial(self._loaded, weights), replay)
        if not self.recipe.rollout.max_staleness:
            self._release()
        if self.sampler is None:
            return replace(window, seconds=time.monotonic() - start)
        canary, counters = self.sampler.canary, getattr(self.sampler.engine, "counters", {})
        mismatch = None if canary is None else canary.mismatch
        return replace(window, seconds=time.monotonic() - start, mismatch=mismatch, counters=dict(counters))

    def _loaded(self, weights: Weights | None) -> Collector:
        """The collector, its engine with `weights`."""
        assert self.collector is not None and self.sampler is not None and weights is not None
        if self.recipe.rollout.max_staleness:  # a rank may be behind another, and they may share the engine
            self.sampler.load(weights, together=partial(self.builder.gather, []))
        else:
            self.sampler.load(weights)
        return self.collector

    def _release(self) -> None:
        """Let the samplers free the device for the update, as far as the recipe asks them to."""
        first = None if self.sampler is None else self.sampler.engine
        second = None if self.anchor is None or self.anchor.collector is None else self.anchor.collector.engine
        for engine in (first, second):
            if engine is not None:
                engine.release()

    def _evaluate(self, tracker: Tracker, console: Console) -> None:
        """Play the benchmark with the policy of this moment, once everything in flight is there."""
        if self.evaluate is None or self.sampler is None:
            return
        self.ahead.settle()
        self.sampler.load(self.sampler.take(self.step, copied=False))
        result = None
        if self.accelerator.is_main_process:
            result = {"step": self.step} | self.evaluate()
            tracker.evaluation(result)
            console.say(_line(result))
        if self.selection is not None:
            better = result is not None and self.selection.improves(result)
            if largest_over_ranks(self.accelerator, better):
                self.selection.keep(result, self._model, self.tokenizer)
        self._release()
        self.accelerator.wait_for_everyone()

    def _report(self, tracker: Tracker, console: Console) -> None:
        """Play the final evaluation with the weights that are kept as the best."""
        if self.selection is None or self.selection.report is None or self.sampler is None:
            return
        self.accelerator.wait_for_everyone()
        self.sampler.engine.sync(self.selection.weights(), self.step + 1)
        if self.accelerator.is_main_process:
            best = self.selection.best
            assert best is not None, "the recipe's evaluation was played"
            found = self.selection.report()
            result = {"step": best["step"]} | found | {"benchmark": f"{found['benchmark']} ({FINAL})"}
            tracker.evaluation(result)
            console.say(f"best by {best['benchmark']}: step {best['step']}, pass rate {best['pass_rate']:.1%}")
            console.say(_line(result))
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


def _line(result: Mapping[str, Any]) -> str:
    """An evaluation in a line."""
    low, high = result["interval"]
    return (
        f"step {result['step']}: {result['benchmark']} pass rate {result['pass_rate']:.1%} [{low:.1%}, {high:.1%}], "
        f"n = {result['n']}, {result['num_ungraded']} ungraded, {result['num_truncated']} truncated"
    )
