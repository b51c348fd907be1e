"""An endless, shuffled, resumable mixture of examples.

Every draw is a function of (seed, counters) alone, by the counter-based generator Philox: draw number d picks a source
from u(seed, d), and source s runs through a permutation keyed by (seed, s, its epoch). So the state is three numbers a
source at most, whatever the length of the data, and resuming costs one permutation.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from posttrain.data.examples import Example
from posttrain.errors import CheckpointError, DataError

_PICK, _SHUFFLE = 0, 1

Place = tuple[int, int]
"""A source's number and a row's."""


class Stream:
    """Draws from several sources in proportion to their weights; each source runs through its own epochs.

    Within an epoch of a source every example comes exactly once. Raises DataError for no sources, an empty source, or
    weights that are not positive and finite.
    """

    def __init__(self, sources: Sequence[Sequence[Example]], weights: Sequence[float], seed: int) -> None:
        if not sources or len(sources) != len(weights):
            raise DataError(f"a mixture needs a weight for each source: {len(sources)} sources, {len(weights)} weights")
        if min(map(len, sources)) == 0:
            raise DataError(f"source {[len(source) for source in sources].index(0)} of the mixture is empty")
        if not all(math.isfinite(weight) and weight > 0 for weight in weights):
            raise DataError(f"weights of a mixture must be positive and finite, got {list(weights)}")
        self._sources = list(sources)
        self._cumulative = list(accumulate(weights))
        self._seed = seed
        self._draws = 0
        self._epochs = [0] * len(sources)
        self._positions = [0] * len(sources)
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}

    @property
    def epoch(self) -> float:
        """Passes over the data so far: draws divided by the number of examples of all sources."""
        return self._draws / self.size

    @property
    def epochs(self) -> list[float]:
        """Passes over each source so far."""
        return [
            epoch + position / len(source)
            for epoch, position, source in zip(self._epochs, self._positions, self._sources, strict=True)
        ]

    def take(self, n: int) -> list[Example]:
        """The next n examples."""
        return [self.example(self.next_place()) for _ in range(n)]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as small JSON; the seed and the sizes are there to be checked at resume."""
        return {
            "seed": self._seed,
            "sizes": [len(source) for source in self._sources],
            "draws": self._draws,
            "epochs": list(self._epochs),
            "positions": list(self._positions),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken. Raises CheckpointError where it belongs to other data or another seed."""
        here = self.state_dict()
        for name in ("seed", "sizes"):
            if state[name] != here[name]:
                raise CheckpointError(f"the data changed since the checkpoint: {name} {state[name]}, now {here[name]}")
        self._draws = int(state["draws"])
        self._epochs = [int(epoch) for epoch in state["epochs"]]
        self._positions = [int(position) for position in state["positions"]]

    @property
    def size(self) -> int:
        """Number of examples of all sources."""
        return sum(map(len, self._sources))

    def share(self, place: Place) -> float:
        """How often this example is drawn, up to a factor that all share: its source's weight over its size."""
        before = self._cumulative[place[0] - 1] if place[0] else 0.0
        return (self._cumulative[place[0]] - before) / len(self._sources[place[0]])

    def example(self, place: Place) -> Example:
        """The example at a place; reads its row."""
        return self._sources[place[0]][place[1]]

    def next_place(self) -> Place:
        """Where the next example is."""
        source = self._pick()
        place = source, int(self._order(source)[self._positions[source]])
        self._draws += 1
        self._positions[source] += 1
        if self._positions[source] == len(self._sources[source]):
            self._epochs[source] += 1
            self._positions[source] = 0
        return place

    def _pick(self) -> int:
        """The source of this draw: a number uniform in [0, sum of weights), looked up in the cumulative weights."""
        uniform = float(uniforms(random_words(1, self._seed, _PICK, self._draws))[0])
        return min(bisect_right(self._cumulative, uniform * self._cumulative[-1]), len(self._sources) - 1)

    def _order(self, source: int) -> NDArray[np.int64]:
        """The permutation of a source's current epoch."""
        epoch, order = self._orders.get(source, (-1, None))
        if order is None or epoch != self._epochs[source]:
            words = random_words(len(self._sources[source]), self._seed, _SHUFFLE, source, self._epochs[source])
            order = np.argsort(words, kind="stable")
            self._orders[source] = (self._epochs[source], order)
        return order


def random_words(n: int, seed: int, *counter: int) -> NDArray[np.uint64]:
    """n random 64-bit words. The generator counts in the lowest word of its counter; ours are the upper three."""
    upper = (*counter, 0, 0)[:3]
    return np.random.Philox(key=seed, counter=[0, *upper]).random_raw(n)


def uniforms(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Numbers uniform in [0, 1)."""
    return np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)
