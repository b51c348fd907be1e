"""One episode in a real Chromium: a task of BrowserGym's MiniWoB++, played in the process that holds the browser.

BrowserGym's own tasks, action grammar, marking of elements and accessibility tree; not its `BrowserEnv`, which starts a
browser and a chat window for each episode, waits half a second for each action, and reads the page in four ways.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.environments import Observation, Step, shown, told
from posttrain.environments.browser_experts import expert_action
from posttrain.environments.browser_view import Element, View, compact_text, elements, tree_text
from posttrain.environments.chromium import pages
from posttrain.errors import DataError, MissingDependencyError, UnknownNameError, did_you_mean

if TYPE_CHECKING:
    from playwright.sync_api import Page

_NEVER_MS = 2**31 - 1
"""A page would end its episode after ten seconds; the longest time that a browser's timer takes."""
_MAX_WORDS = 160
_BEGIN_AGAIN = """([seed, longest]) => {
    for (const marked of document.querySelectorAll("[bid]")) marked.removeAttribute("bid");
    delete window.browsergym_elem_counter;  // ids of elements count from 0 again
    delete window.browsergym_frame_id_generator;
    if (document.activeElement) document.activeElement.blur();
    Math.seedrandom(seed);
    core.EPISODE_MAX_TIME = longest;
    core.startEpisodeReal();
}"""
"""As BrowserGym's `AbstractMiniwobTask.setup` begins an episode, in a page that it has set up already."""


class BrowserEpisode:
    """A MiniWoB++ task in a page (`environments.processes.Playable`). chromium: the program."""

    def __init__(
        self, *, chromium: str, view: View = "tree", screenshots: bool = False, reload_pages: bool = True
    ) -> None:
        self._pages = pages(chromium)
        self._view, self._screenshots, self._reload = view.split("+"), screenshots, reload_pages
        self._page: Page | None = None
        self._elements: list[Element] = []

    def reset(self, columns: Mapping[str, Any], seed: int) -> Observation:
        """The task `columns["task"]` with the seed `columns["seed"]`, or `seed` where the row has none."""
        self.begin(columns, seed)
        first = self._observe()
        if "compact" in self._view:
            return first
        told_first = _instructions() + (_size(self._task.viewport) if "screenshot" in self._view else "")
        return replace(first, messages=({"role": "system", "content": told_first}, *first.messages))

    def begin(self, columns: Mapping[str, Any], seed: int) -> None:
        """Reset without a look at the page."""
        self.name = _task_name(columns)
        self._task = _tasks()[self.name](seed=int(columns.get("seed", seed)) % 2**32, episode_max_time=_NEVER_MS)
        self._page = self._pages.take(self._task.url, **self._task.viewport)
        self.goal = self._begin(self._page)
        self._page._bgym_scale_factor = 1.0  # type: ignore[attr-defined]  # coordinates are pixels of our pictures

    def again(self, actions: Sequence[str]) -> None:
        """Carry out actions that went on before, and mark the elements as a look at the page does."""
        for action in actions:
            self._mark()
            self._act(self._running, action)
            self._task.validate(self._running, [])
        self._mark()

    def _mark(self) -> None:
        """Give elements their ids."""
        from browsergym.core.observation import _post_extract, _pre_extract  # type: ignore[import-untyped]

        _pre_extract(self._running)
        _post_extract(self._running)

    @property
    def _running(self) -> Page:
        assert self._page is not None
        return self._page

    def _begin(self, page: Page) -> str:
        """Set up the task; its goal."""
        if self._reload or page.url != self._task.url:
            return str(self._task.setup(page)[0])
        self._task.page = page
        page.evaluate(_BEGIN_AGAIN, [self._task.random.randint(0, 1000000), _NEVER_MS])
        return str(self._task._get_goal())

    def step(self, action: str) -> Step:
        """Carry out the one action in the text; reward 1.0 for a task achieved, 0.0 for one that ended otherwise."""
        invalid = self._act(self._running, action)
        reward, done, _, _ = self._task.validate(self._running, [])
        if done:
            return Step(reward=reward, terminated=True, solved=reward > 0)
        return Step(self._observe(invalid), reward=0.0, invalid=invalid)

    def expert(self) -> str | None:
        """The next action of a scripted expert (`environments.browser_experts`)."""
        if not self._elements:
            self._observe()
        return expert_action(self.name, self.goal, self._elements)

    def lend(self) -> None:
        """Let others have the page until `reclaim`."""
        self._pages.give_back(self._running, self)

    def reclaim(self) -> bool:
        """Whether the page is as it was lent; if not, the episode has none."""
        if not self._pages.reclaim(self._running, self):
            self._page = None
        return self._page is not None

    def close(self) -> None:
        """Give the page back."""
        if self._page is not None:
            self._pages.give_back(self._page)
            self._page = None

    def _act(self, page: Page, action: str) -> str | None:
        """Do it; in words for the policy, why it could not be done. An error of a browser that is gone goes on."""
        from browsergym.core.action.base import execute_python_code  # type: ignore[import-untyped]
        from playwright.sync_api import Error

        try:
            code = _actions().to_python_code(action)
            execute_python_code(code, page, _refuse, _refuse)
        except (Error, ValueError, NameError, TypeError) as error:
            if not self._pages.usable(page):
                raise
            return _words(error)
        return None

    def _observe(self, invalid: str | None = None) -> Observation:
        from browsergym.core.observation import _post_extract, _pre_extract, extract_merged_axtree

        _pre_extract(self._running)
        tree = extract_merged_axtree(self._running)
        _post_extract(self._running)
        text = tree_text(tree)
        self._elements = elements(text)
        page = compact_text(self._elements) if "compact" in self._view else text
        lines = [self.goal] if self._view == ["screenshot"] else [self.goal, page]
        said = "\n".join(lines if invalid is None else [*lines, f"not done: {invalid}"])
        state = hashlib.sha256(f"{self.name}\n{self.goal}\n{page}".encode()).hexdigest()[:16]
        if "screenshot" in self._view:
            return Observation(shown(self._picture(), said), state=state)
        return Observation(told(said), state=state, info={"screenshot": self._picture()} if self._screenshots else {})

    def _picture(self) -> str:
        """The page as a PNG, as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self._running.screenshot()).decode()


def task_names() -> list[str]:
    """Every task; MissingDependencyError where BrowserGym is not installed."""
    return sorted(_tasks())


@cache
def _tasks() -> dict[str, Any]:
    spec = find_spec("miniwob")
    if spec is None or spec.origin is None or find_spec("browsergym") is None:
        raise MissingDependencyError(
            "the packages browsergym-miniwob and miniwob are missing; install posttrain[agents]"
        )
    os.environ.setdefault("MINIWOB_URL", (Path(spec.origin).parent / "html" / "miniwob").as_uri() + "/")
    from browsergym.miniwob import ALL_MINIWOB_TASKS  # type: ignore[import-untyped]

    return {task.subdomain: task for task in ALL_MINIWOB_TASKS}


def _task_name(columns: Mapping[str, Any]) -> str:
    """The row's task; DataError without one, UnknownNameError for one that is not there."""
    if "task" not in columns:
        raise DataError(f"environment browser: a row has no column 'task'; it has {', '.join(sorted(columns))}")
    name = str(columns["task"])
    if name not in _tasks():
        raise UnknownNameError(f"task: {name!r} is no MiniWoB++ task; {did_you_mean(name, task_names())}")
    return name


@cache
def _actions() -> Any:
    """The grammar: MiniWoB's own actions, without navigation, which could end an episode by `javascript:` addresses.

    Nor noop, which the policy could wait with for as long as it likes.
    """
    from browsergym.core.action.highlevel import HighLevelActionSet  # type: ignore[import-untyped]

    actions = HighLevelActionSet(subsets=["miniwob_all"], multiaction=False)
    del actions.action_set["noop"]
    return actions


@cache
def _instructions() -> str:
    """What a policy is told of the grammar."""
    described: str = _actions().describe(with_long_description=False, with_examples=True)
    return f"You act on a web page. Answer with one action.\n{described}"


def _size(viewport: Mapping[str, int]) -> str:
    """What a policy is told of a picture of the page."""
    size = f"{viewport['width']} x {viewport['height']}"
    return f"\nYou see a picture of the page, {size} pixels; coordinates count from its top left corner."


def _refuse(text: str) -> None:
    raise ValueError(f"there is nobody to tell {text!r}")


def _words(error: Exception) -> str:
    """An error in short words."""
    first = next(iter(str(error).splitlines()), "") or type(error).__name__
    if "Timeout" in first:
        first = "the element is covered, hidden or not of a kind that takes this action"
    return first[:_MAX_WORDS]
