"""What pages answered, so that what several members of a group do alike is played once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from posttrain.environments import Observation, Step
from posttrain.environments.browser_episode import BrowserEpisode

Play = tuple[str, int, tuple[str, ...]]
"""A task, its seed, and the actions so far."""


class Memory:
    """Answers of pages, the latest `size` of them."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._answers: OrderedDict[Play, Observation | Step] = OrderedDict()

    def get(self, play: Play) -> Observation | Step | None:
        """The answer, if it is still there."""
        if play in self._answers:
            self._answers.move_to_end(play)
        return self._answers.get(play)

    def keep(self, play: Play, answer: Observation | Step) -> None:
        """Keep it, and let the oldest go."""
        self._answers[play] = answer
        if len(self._answers) > self._size:
            self._answers.popitem(last=False)


class RememberedBrowserEpisode:
    """A `BrowserEpisode` that takes a page when something is done that was not done before (`processes.Playable`).

    A task, its seed and the actions decide what a page answers. remember: how many answers a process keeps. Between
    calls the page is lent to others of the task, so that few pages serve many episodes; where one took it, the actions
    so far are done again when the episode goes on.
    """

    def __init__(self, *, remember: int, **settings: Any) -> None:
        self._memory = _memory(remember, **settings)
        self._settings = settings
        self._played: BrowserEpisode | None = None

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """As `BrowserEpisode.reset`."""
        self._columns, self._seed = columns, seed
        self._play: Play = (str(columns.get("task")), int(columns.get("seed", seed)), ())
        known = self._memory.get(self._play)
        if isinstance(known, Observation):
            return known
        self._played = BrowserEpisode(**self._settings)
        first = self._played.reset(columns, seed)
        self._played.lend()
        self._memory.keep(self._play, first)
        return first

    def step(self, action: str) -> Step:
        """As `BrowserEpisode.step`."""
        task, seed, done = self._play
        play = (task, seed, (*done, action))
        answer = self._memory.get(play)
        if isinstance(answer, Step):
            self._played = None  # it stays behind
        else:
            with self._page() as page:
                answer = page.step(action)
            self._memory.keep(play, answer)
        self._play = play
        return answer

    def expert(self) -> str | None:
        """As `BrowserEpisode.expert`."""
        with self._page() as page:
            return page.expert()

    def close(self) -> None:
        """Give the page back where a call failed; nothing else is held between calls."""
        if self._played is not None:
            self._played.close()

    @contextmanager
    def _page(self) -> Iterator[BrowserEpisode]:
        """The episode in a page, brought to where this one is."""
        if self._played is None or not self._played.reclaim():
            self._played = BrowserEpisode(**self._settings)
            self._played.begin(self._columns, self._seed)
            self._played.again(self._play[2])
        try:
            yield self._played
        finally:
            self._played.lend()


@cache
def _memory(size: int, **settings: Any) -> Memory:  # noqa: ARG001 (one for each kind of episode in a process)
    return Memory(size)
