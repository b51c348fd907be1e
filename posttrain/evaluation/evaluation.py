"""The outcome of a benchmark: every completion, and the figures made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from posttrain.evaluation.statistics import Interval, avg_at_k, bootstrap_mean, mean_pass_at_k, wilson
from posttrain.trajectory import Prompt, StopReason


@dataclass(frozen=True)
class Completed:
    """One completion of one item. solved None: ungraded, for the cause in `error`.

    answer: what the outcome reward read out of the completion (`posttrain.reward.Graded`); extracted: whether it found
    any, None where it reads no answers. counts: what the outcome reward counted (`posttrain.reward.Measured`).
    part: of the benchmark's items, where they come in several (`Benchmark.by`).
    """

    id: str
    completion: str
    num_tokens: int
    reward: float | None
    solved: bool | None
    stop_reason: StopReason
    error: str | None = None
    prompt: Prompt = ""
    answer: str | None = None
    extracted: bool | None = None
    counts: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    part: str = ""


@dataclass(frozen=True)
class Evaluation:
    """What a model did on a benchmark.

    samples: completions per item. completions: all of them, those of one item together. seconds: wall time of sampling
    and grading. Ungraded completions count in no rate; their number stands beside it. num_unanswered: items that a file
    of responses left out; they count in no rate either.
    """

    benchmark: str
    samples: int
    completions: tuple[Completed, ...]
    seconds: float
    num_unanswered: int = 0

    @cached_property
    def by_item(self) -> dict[str, list[Completed]]:
        """The completions of each item, in order."""
        found: dict[str, list[Completed]] = {}
        for one in self.completions:
            found.setdefault(one.id, []).append(one)
        return found

    @cached_property
    def counts(self) -> list[tuple[int, int]]:
        """(graded, solved) completions of each item, in order."""
        return [
            (sum(one.solved is not None for one in own), sum(one.solved is True for one in own))
            for own in self.by_item.values()
        ]

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
    def num_unextracted(self) -> int | None:
        """Number of graded completions in which no answer was found; None where the reward reads no answers."""
        known = [one.extracted for one in self.completions if one.extracted is not None]
        return len(known) - sum(known) if known else None

    @property
    def majority(self) -> float | None:
        """maj@samples: the share of items whose most frequent answer is solved; None without several answers an item.

        Of equally frequent answers the one that came first counts. Completions without an answer have no vote, and an
        item without votes is not solved (self-consistency, arXiv 2203.11171).
        """
        if self.samples == 1 or self.num_unextracted is None:
            return None
        graded = [[one for one in own if one.solved is not None] for own in self.by_item.values()]
        return sum(map(_voted, filter(None, graded))) / max(1, sum(map(bool, graded)))

    @property
    def measures(self) -> dict[str, float]:
        """The share of each thing that the outcome reward counted, over all completions."""
        sums: dict[str, tuple[int, int]] = {}
        for one in self.completions:
            for name, (holding, of) in one.counts.items():
                before = sums.get(name, (0, 0))
                sums[name] = before[0] + holding, before[1] + of
        return {name: holding / of for name, (holding, of) in sums.items() if of}

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

    @cached_property
    def parts(self) -> dict[str, Evaluation]:
        """The same of each part of the items alone, by name; none where they come in one part."""
        names = dict.fromkeys(one.part for one in self.completions if one.part)
        return {
            name: replace(self, completions=tuple(one for one in self.completions if one.part == name))
            for name in names
        }

    @property
    def first_error(self) -> str | None:
        """Why the first ungraded completion is ungraded."""
        return next((one.error for one in self.completions if one.solved is None), None)

    def rate(self) -> dict[str, Any]:
        """How many items there are and what share is solved: None where none was graded."""
        graded = self.num_ungraded < len(self.completions)
        return {
            "n": self.n,
            "num_solved": self.num_solved,
            "num_ungraded": self.num_ungraded,
            "pass_rate": self.pass_rate if graded else None,
            "interval": list(self.interval) if graded else None,
        }

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
            "num_unextracted": self.num_unextracted,
            "num_unanswered": self.num_unanswered,
            "num_tokens": self.num_tokens,
            **({"measures": self.measures} if self.measures else {}),
            **({"parts": {name: own.rate() for name, own in self.parts.items()}} if self.parts else {}),
            "seconds": round(self.seconds, 3),
        }

    def to_json(self) -> dict[str, Any]:
        """The figures without the seconds, avg@k and pass@k where there are several samples, and every completion."""
        beside = {f"pass@{k}": value for k, value in self.pass_at.items()} if self.samples > 1 else {}
        if self.samples > 1:
            beside[f"avg@{self.samples}"] = self.pass_rate
        if self.majority is not None:
            beside[f"maj@{self.samples}"] = self.majority
        figures = {name: value for name, value in self.summary().items() if name != "seconds"}
        return figures | beside | {"completions": [asdict(one) for one in self.completions]}


def _voted(completions: list[Completed]) -> bool:
    """Whether the answer that most of an item's completions give is solved."""
    votes = Counter(one.answer for one in completions if one.answer is not None)
    if not votes:
        return False
    winner = votes.most_common(1)[0][0]  # of equals, the first counted
    return any(one.solved is True for one in completions if one.answer == winner)
