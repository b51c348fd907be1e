"""Progress for a person: a live bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console as RichConsole
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_SECONDS = 5.0


class Console:
    """Shows the steps of a run; a context manager."""

    def __init__(self, done_steps: int, total_steps: int) -> None:
        self._rich = RichConsole(highlight=False)
        self._done, self._total = done_steps, total_steps
        self._first = True
        self._start = self._last = time.monotonic()
        self._progress = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[status]}"),
            console=self._rich,
            disable=not self._rich.is_terminal,
        )
        self._task = self._progress.add_task("", total=total_steps, completed=done_steps, status="")

    def __enter__(self) -> Console:
        self._progress.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        """A line that stays."""
        self._rich.print(text, markup=False, soft_wrap=True)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """The figures of one finished step."""
        status = " | ".join(_figures(metrics))
        self._progress.update(self._task, completed=step, status=status)
        now = time.monotonic()
        due = self._first or step == self._total or now - self._last >= _PLAIN_SECONDS
        if self._rich.is_terminal or not due:
            return
        self._first, self._last = False, now
        left = int((self._total - step) * (now - self._start) / max(1, step - self._done))
        self.say(f"step {step}/{self._total} | {status} | {left // 60}:{left % 60:02d} left")


def _figures(metrics: Mapping[str, float]) -> list[str]:
    forms = {"pass_rate": "pass rate {:.1%}", "reward_mean": "reward {:.3f}"}
    if "pass_rate" not in metrics:
        losses = [name for name in metrics if name.endswith("/nll")]
        forms |= {name: "nll {:.3f}" if len(losses) == 1 else f"{_term(name)} nll {{:.3f}}" for name in losses}
    forms |= {"grad_norm": "grad norm {:.3g}", "tokens_per_second": "{:,.0f} tokens/s", "step_seconds": "{:.2f} s/step"}
    return [form.format(metrics[name]) for name, form in forms.items() if name in metrics]


def _term(name: str) -> str:
    """The term of a figure "term/figure", for a format string."""
    return name.rpartition("/")[0].replace("{", "{{").replace("}", "}}")
