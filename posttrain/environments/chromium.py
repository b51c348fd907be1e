"""Chromium for environments: found on this machine, started once in a process, its pages handed out and taken back."""

from __future__ import annotations

import os
import shutil
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.errors import MissingDependencyError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

VARIABLE = "POSTTRAIN_CHROMIUM"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGUMENTS = ["--disable-features=OverlayScrollbars"]
"""Scrollbars stay visible in pictures."""

_WINDOWS = 8
"""So many pages are opened before one that shows another address is led away from it, which costs more than a play."""


def find_chromium(path: str | None = None) -> str:
    """The program: `path`, else the variable POSTTRAIN_CHROMIUM, else the first of the usual names on the path.

    MissingDependencyError, with the package to install, where there is none.
    """
    given = path or os.environ.get(VARIABLE)
    found = shutil.which(given) if given else next(filter(None, map(shutil.which, _NAMES)), None)
    if found is None:
        where = f"{given!r} is no program" if given else f"none of {', '.join(_NAMES)} is on the path"
        raise MissingDependencyError(
            f"Chromium is missing: {where}; install the Debian package chromium (apt-get install chromium), "
            f"or name the program (setting `chromium`, or the variable {VARIABLE})"
        )
    return str(Path(found).resolve())


class Pages:
    """The pages of one Chromium. A page that comes back is used again, unless it crashed.

    Playwright's synchronous interface belongs to one thread of a process, and so does this object.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._browser: Browser | None = None
        self._idle: list[Page] = []
        self._crashed: set[Page] = set()
        self._lent: dict[Page, object] = {}

    def take(self, url: str, width: int, height: int) -> Page:
        """A page of this size in CSS pixels, one that shows `url` if there is one that nobody uses.

        Chromium is started where it is not, or no longer, running.
        """
        if self._browser is None or not self._browser.is_connected():
            self._browser, self._idle, self._crashed, self._lent = _launch(self._program), [], set(), {}
        self._idle = [page for page in self._idle if self.usable(page)]
        page = next((page for page in self._idle if page.url == url), None)
        if (page is None and len(self._browser.contexts) < _WINDOWS) or not self._idle:
            page = self._browser.new_context(viewport={"width": width, "height": height}).new_page()
            page.on("crash", self._crash)
            return page
        page = page or self._idle[0]
        self._idle.remove(page)
        self._lent.pop(page, None)
        if page.viewport_size != {"width": width, "height": height}:
            page.set_viewport_size({"width": width, "height": height})
        return page

    def give_back(self, page: Page, lender: object = None) -> None:
        """Keep the page for a later episode, where it is usable and not kept yet. lender: who may `reclaim` it."""
        if self.usable(page) and page not in self._idle:
            self._idle.append(page)
            self._lent[page] = lender

    def reclaim(self, page: Page, lender: object) -> bool:
        """Whether the page is the lender's again: nobody took it since."""
        if page not in self._idle or self._lent.get(page) is not lender or not self.usable(page):
            return False
        self._idle.remove(page)
        return True

    def usable(self, page: Page) -> bool:
        """Whether it is open, and Chromium is running."""
        running = self._browser is not None and self._browser.is_connected()
        return running and not page.is_closed() and page not in self._crashed

    def _crash(self, page: Page) -> None:
        self._crashed.add(page)


@cache
def pages(program: str) -> Pages:
    """The pages of this process's one Chromium."""
    return Pages(program)


def _launch(program: str) -> Browser:
    """Start Chromium without a window; it ends with this process, even where that is killed (its pipe closes)."""
    from browsergym.core import _get_global_playwright  # type: ignore[import-untyped]
    from browsergym.core.constants import BROWSERGYM_ID_ATTRIBUTE  # type: ignore[import-untyped]

    playwright = _get_global_playwright()
    playwright.selectors.set_test_id_attribute(BROWSERGYM_ID_ATTRIBUTE)
    browser: Browser = playwright.chromium.launch(executable_path=program, args=_ARGUMENTS)
    return browser
