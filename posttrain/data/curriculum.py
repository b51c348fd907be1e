"""Prompts drawn by how often the policy solves them: a stream that learns from the rollouts of what it has drawn.

Of each prompt the pass rate is estimated from decayed counts of its graded and its solved rollouts. A draw takes, with
probability `exploration`, the next prompt without an estimate, in the order of the plain stream; else one of those with
an estimate, in proportion to its source's share and to a preference for its rate. A prompt is not drawn again before
its rollouts are counted, as long as there are others.

What a window draws depends on the counts of earlier windows alone, and which these are is told by `begin`: so windows
may be drawn ahead, in another thread, and a run that is resumed, or has another number of ranks, draws the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from posttrain.data.examples import Example
from posttrain.data.stream import Place, Stream, random_words, uniforms

_EXPLORE, _RACE = 2, 3

Rates = NDArray[np.float64]


class Preference(Protocol):
    """How much a prompt is wanted by its estimated pass rate."""

    def __call__(self, rates: Rates) -> Rates:
        """Weights of at least 0, from rates in [0, 1]."""
        ...


@dataclass(frozen=True)
class Buckets:
    """A weight for each bucket of pass rates, cut at `bounds`; a rate on a bound is in the bucket above it.

    OREAL's resampling has 6, 4, 4, 2 and 0 for rates below 0.2, 0.4, 0.6, 0.8 and above (arXiv 2502.06781, sec. 3.2).
    """

    bounds: Sequence[float]
    weights: Sequence[float]

    def __call__(self, rates: Rates) -> Rates:
        """The weight of each rate's bucket."""
        return np.asarray(self.weights, dtype=np.float64)[np.searchsorted(self.bounds, rates, side="right")]


@dataclass(frozen=True)
class Target:
    """exp(-((rate - target) / width)^2 / 2): prompts near a target rate (the idea of AdaRFT, arXiv 2504.05520).

    At 1/2 the rewards of a group vary most, and with them a group-relative gradient: p (1 - p) is largest.
    """

    target: float
    width: float

    def __call__(self, rates: Rates) -> Rates:
        """The bell curve."""
        return np.asarray(np.exp(-(((rates - self.target) / self.width) ** 2) / 2))


@dataclass(frozen=True)
class Count:
    """Rollouts of one prompt: graded, and solved among them."""

    graded: float
    solved: float

    @property
    def rate(self) -> float:
        """The pass rate."""
        return self.solved / self.graded


@dataclass
class Curriculum:
    """A stream of prompts drawn by their pass rates; `stream` says what there is, and in which order it is explored.

    decay: what is left of a prompt's counts when new ones come. counts: what is known of prompts before training.
    """

    stream: Stream
    preference: Preference
    exploration: float
    decay: float
    seed: int
    counts: dict[Place, Count] = field(default_factory=dict)
    _draws: int = 0
    _window: int = -1
    _drawn: dict[int, dict[str, Place]] = field(default_factory=dict)  # by window, until its rollouts count
    _recorded: dict[int, dict[Place, Count]] = field(default_factory=dict)  # by window, not counted yet
    _race: list[Place] = field(default_factory=list)
    _chosen: list[float] = field(default_factory=list)
    _open: set[Place] = field(default_factory=set)
    _num_unseen: int = 0
    _first: int = 0

    @property
    def epoch(self) -> float:
        """Passes over the data so far: draws divided by the number of examples."""
        return self._draws / self.stream.size

    def begin(self, window: int, last: int) -> None:
        """Before window `window` is drawn: what was recorded of windows up to `last` counts, and nothing later."""
        for index in sorted(one for one in list(self._recorded) if one <= last):  # another thread may record
            self._count(self._recorded.pop(index))
            del self._drawn[index]
        self._window, self._first, self._chosen = window, self._draws, []
        self._open = {place for found in self._drawn.values() for place in found.values()}
        self._num_unseen = self.stream.size - len(self._open | set(self.counts))
        places = sorted(set(self.counts) - self._open)
        rates = np.array([self.counts[place].rate for place in places], dtype=np.float64)
        weights = self.preference(rates) * np.array([self.stream.share(place) for place in places], dtype=np.float64)
        # The first n of such a race are n draws without replacement, each in proportion to its weight.
        chances = uniforms(random_words(len(places), self.seed, _RACE, window))
        with np.errstate(divide="ignore", invalid="ignore"):
            times = np.where(weights > 0, -np.log1p(-chances) / weights, np.inf)
        order = np.argsort(times, kind="stable")[::-1]
        self._race = [places[i] for i in order if times[i] < np.inf]  # the first comes last

    def take(self, n: int) -> list[Example]:
        """The next n prompts."""
        return [self._next() for _ in range(n)]

    def record(self, window: int, results: Iterable[tuple[str, int, int]], gather: Any = list) -> None:
        """Once for each window, in their order: the prompts it has drawn, with their graded and solved rollouts.

        results: (id, graded, solved) of this rank's. gather: the numbers of this rank and of all others, together.
        """
        places = self._drawn[window]
        own = [(*places[name], graded, solved) for name, graded, solved in results]
        numbers = gather([number for row in own for number in row])
        found: dict[Place, Count] = {}
        for source, row, graded, solved in zip(*[iter(numbers)] * 4, strict=True):
            before = found.get((source, row), Count(0, 0))
            found[source, row] = Count(before.graded + graded, before.solved + solved)
        self._recorded[window] = found

    def figures(self) -> dict[str, float]:
        """Of the window that is drawn now: shares of its prompts, and the mean estimate of those drawn by it.

        explored: drawn without regard to their rate. pass_rate: mean estimate of the others. known: of all prompts,
        those with an estimate; known_pass_rate: its mean.
        """
        drawn = self._draws - self._first
        found = {"explored": 1 - len(self._chosen) / drawn if drawn else 0.0}
        found["known"] = len(self.counts) / self.stream.size
        if self._chosen:
            found["pass_rate"] = float(np.mean(self._chosen))
        if self.counts:
            found["known_pass_rate"] = float(np.mean([self.counts[place].rate for place in sorted(self.counts)]))
        return {f"curriculum/{name}": value for name, value in found.items()}

    def state_dict(self) -> dict[str, Any]:
        """Everything that later draws depend on, as JSON; between windows."""
        return {
            "stream": self.stream.state_dict(),
            "draws": self._draws,
            "window": self._window,
            "counts": _rows(self.counts),
            "drawn": [[window, name, *place] for window, found in self._drawn.items() for name, place in found.items()],
            "recorded": [[window, _rows(found)] for window, found in self._recorded.items()],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. CheckpointError where it belongs to other data or another seed."""
        self.stream.load_state_dict(state["stream"])
        self._draws, self._window = state["draws"], state["window"]
        self.counts = _counts(state["counts"])
        self._recorded = {window: _counts(rows) for window, rows in state["recorded"]}
        self._drawn = {}
        for window, name, source, row in state["drawn"]:
            self._drawn.setdefault(window, {})[name] = source, row

    def _count(self, found: Mapping[Place, Count]) -> None:
        for place, new in found.items():
            if new.graded:
                old = self.counts.get(place, Count(0, 0))
                graded, solved = (self.decay * one for one in (old.graded, old.solved))
                self.counts[place] = Count(graded + new.graded, solved + new.solved)

    def _next(self) -> Example:
        explores = float(uniforms(random_words(1, self.seed, _EXPLORE, self._draws))[0]) < self.exploration
        self._draws += 1
        if explores or not self._race:
            place = self._unknown()
        else:
            place = self._race.pop()
            self._chosen.append(self.counts[place].rate)
        self._num_unseen -= place not in self._open and place not in self.counts
        self._open.add(place)
        example = self.stream.example(place)
        self._drawn.setdefault(self._window, {})[example.id] = place
        return example

    def _unknown(self) -> Place:
        """The next prompt without an estimate; where there is none, the next that is not open; else the next."""
        passed: list[Place] = []
        while len(passed) < self.stream.size:
            place = self.stream.next_place()
            if place not in self._open and not (self._num_unseen and place in self.counts):
                return place
            passed.append(place)
        return next((place for place in passed if place not in self._open), passed[0])


def _rows(counts: Mapping[Place, Count]) -> list[list[float]]:
    return [[*place, one.graded, one.solved] for place, one in sorted(counts.items())]


def _counts(rows: Iterable[Sequence[Any]]) -> dict[Place, Count]:
    return {(source, row): Count(graded, solved) for source, row, graded, solved in rows}
