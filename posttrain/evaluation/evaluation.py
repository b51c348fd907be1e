"""The outcome of a benchmark: every completion, and the figures made of them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from posttrain.evaluation.statistics import Interval, avg_at_k, bootstrap_mean, mean_pass_at_k, wilson
from posttrain.trajectory import StopReason


@dataclass(frozen=True)
class Completed:
    """One completion of one item. solved None: ungraded, for the cause in `error`."""

    id: str
    completion: str
    num_tokens: int
    reward: float | None
    solved: bool | None
    stop_reason: StopReason
    error: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a model did on a benchmark.

    samples: completions per item. completions: all of them, those of one item together. seconds: wall time of sampling
    and grading. Ungraded completions count in no rate; their number stands beside it.
    """

    benchmark: str
    samples: int
    completions: tuple[Completed, ...]
    seconds: float

    @cached_property
    def counts(self) -> list[tuple[int, int]]:
        """(graded, solved) completions of each item, in order."""
        counts: dict[str, tuple[int, int]] = {}
        for one in self.completions:
            graded, solved = counts.get(one.id, (0, 0))
            counts[one.id] = (graded + (one.solved is not None), solved + (one.solved is True))
        return list(counts.values())

    @property
    def n(self) -> int:
        """Number of items."""
        return len(self.counts)

    @property
    def num_solved(self) -> int:
        """Number of solved completions."""
        return sum(solved for _, solved in self.counts)

    @property
    def num_ungraded(self) -> int:
        """Number of completions that the engine or a reward failed on."""
        return sum(one.solved is None for one in self.completions)

    @property
    def num_truncated(self) -> int:
        """Number of completions that were cut off at max_tokens or at the model's window."""
        return sum(one.stop_reason is StopReason.LENGTH for one in self.completions)

    @property
    def num_tokens(self) -> int:
        """Sampled tokens of all completions."""
        return sum(one.num_tokens for one in self.completions)

    @property
    def pass_rate(self) -> float:
        """Mean over items of the solved share of their graded completions (avg@samples); ValueError without any."""
        return avg_at_k(self.counts)

    @cached_property
    def interval(self) -> Interval:
        """95 % interval of the pass rate: Wilson's with one completion an item, else a bootstrap over items.

        Where all completions are solved, or none is, a bootstrap has no width: then it is Wilson's over the items.
        """
        shares = [solved / n for n, solved in self.counts if n]
        if self.samples == 1 or set(shares) in ({0.0}, {1.0}):
            return wilson(round(sum(shares)), len(shares))
        return bootstrap_mean(shares)

    @property
    def pass_at(self) -> dict[int, float]:
        """pass@k for k = 1, 2, 4, ... and k = samples, over the items with k graded completions; without k none has."""
        powers = (2**i for i in range(self.samples.bit_length()))
        most = max((n for n, _ in self.counts), default=0)
        return {k: mean_pass_at_k(self.counts, k) for k in sorted({*powers, self.samples}) if k <= most}

    @property
    def first_error(self) -> str | None:
        """Why the first ungraded completion is ungraded."""
        return next((one.error for one in self.completions if one.solved is None), None)

    def summary(self) -> dict[str, Any]:
        """The figures: a line of evaluations.jsonl without its step."""
        return {
            "benchmark": self.benchmark,
            "n": self.n,
            "samples": self.samples,
            "num_solved": self.num_solved,
            "pass_rate": self.pass_rate,
            "interval": list(self.interval),
            "num_ungraded": self.num_ungraded,
            "num_truncated": self.num_truncated,
            "num_tokens": self.num_tokens,
            "seconds": round(self.seconds, 3),
        }

    def to_json(self) -> dict[str, Any]:
        """The figures, pass@k where there are several samples, and every completion."""
        pass_at = {f"pass@{k}": value for k, value in self.pass_at.items()} if self.samples > 1 else {}
        return self.summary() | pass_at | {"completions": [asdict(one) for one in self.completions]}
