"""Web pages in a real Chromium: MiniWoB++ by BrowserGym's accessibility tree or a picture, and its action grammar."""

from __future__ import annotations

from posttrain.environments import Environment
from posttrain.environments.browser_episode import task_names
from posttrain.environments.browser_view import View
from posttrain.environments.chromium import find_chromium
from posttrain.environments.processes import InProcesses
from posttrain.errors import RecipeError


def browser(
    *,
    view: View = "tree",
    screenshots: bool = False,
    reload_pages: bool = True,
    remember: int = 0,
    chromium: str | None = None,
    processes: int = 2,
    episodes_per_process: int = 16,
    deadline_seconds: float = 60.0,
) -> Environment:
    """Tasks of MiniWoB++ (rows with the columns `task` and `seed`; prompts: {path: tasks, config: {task: [...]}}).

    The policy reads the goal and the page, and answers with one action of BrowserGym's
    `miniwob_all`: click('13'), fill('14', 'text'), keyboard_press('Enter'), mouse_click(60, 100) and so on. What
    cannot be done (no such action or element, an element that another covers) is told as an invalid action. Reward 1.0
    where the page's own raw reward is above 0 at the end, else 0.0; the page's clock is off.

    view: tree, the accessibility tree with the ids of elements as BrowserGym prints it, after the grammar as a system
    message; compact, a few short lines for small models, which learn the grammar from demonstrations; screenshot, a
    picture of the page for a model that reads images, after the grammar and the page's size in pixels: actions are by
    coordinates; tree+screenshot, compact+screenshot: both. screenshots: where the policy sees none, keep a picture of
    each page for people (`Turn.screenshot`, the report). reload_pages: load the page for each episode; False: begin
    again in a page that shows the task already, at half the cost, which plays the same where a task leaves nothing
    behind (all of eval/miniwob.py). remember: how many answers of pages a process keeps, so that what several episodes
    of a task and seed do alike is played once; for tasks that do not depend on time. chromium: the program (default:
    the variable POSTTRAIN_CHROMIUM, or what is on the path). processes, each with one Chromium, and
    episodes_per_process, a page each: together, how many episodes run at once. deadline_seconds: of one reset or step.

    MissingDependencyError where Chromium or BrowserGym is missing, RecipeError for a negative `remember`.
    """
    program = find_chromium(chromium)
    task_names()
    settings = {"chromium": program, "view": view, "screenshots": screenshots, "reload_pages": reload_pages}
    if remember < 0:
        raise RecipeError(f"environment browser: remember is {remember}; allowed: 0 or more")
    make = "posttrain.environments.browser_episode:BrowserEpisode"
    if remember:
        make = "posttrain.environments.browser_memory:RememberedBrowserEpisode"
        settings["remember"] = remember
    return InProcesses(
        make=make,
        settings=settings,
        processes=processes,
        episodes_per_process=episodes_per_process,
        deadline_seconds=deadline_seconds,
    )
