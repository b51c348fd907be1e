"""Does an action on a screen do what the demonstration's action does? UI-S1's rules (arXiv 2509.11543, and its code).

Actions are those of AndroidControl as UI-S1 writes them: {"action": "click", "coordinate": [x, y]}, long_press, swipe
(coordinate, coordinate2), type, open, answer and key (text), system_button (button), wait, terminate. Coordinates are
pixels of the screen.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

ENLARGED = 1.2
NEAR = 0.04
SCREEN = (1080, 2400)
"""Pixels of most screens of AndroidControl, whose rows do not say theirs."""

_TAGS = ("<think>", "</think>", "<action>", "</action>")
_FORMAT = re.compile(r"\s*<think>(.*?)</think>\s*<action>(.*?)</action>\s*", re.DOTALL)
_ACTION = re.compile(r"<action>(.*?)</action>", re.DOTALL)
_SCRIPT = re.compile(r"(?:java|vb)script:|(?<![a-z0-9])data:[a-z0-9!#$&^_.+/=-]*[;,]")
_UNSEEN = re.compile(r"[\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202f\u2060\ufeff]+")


@dataclass(frozen=True)
class Match:
    """kind: the action is of the expected type. exact: it also does the expected thing."""

    kind: bool
    exact: bool


NO_MATCH = Match(False, False)


def eq8(form: bool, read: bool, match: Match, variant: Literal["paper", "code"]) -> float:
    """0.1 r_format + 0.4 1[r_format = 1] r_type + 0.5 1[r_format r_type = 1] r_acc (arXiv 2509.11543, eq. 8).

    form: the completion has the form; read: it holds an action. "code", as UI-S1's code: 0.1 r_format + 0.9 times 1
    (exact), 0.5 (its type), 0.1 (another action that can be read) or 0.
    """
    if variant == "code":
        return 0.1 * form + 0.9 * (0.0 if not read else 1.0 if match.exact else 0.5 if match.kind else 0.1)
    return 0.1 * form + 0.4 * (form and match.kind) + 0.5 * (form and match.exact)


def has_form(completion: str) -> bool:
    """Whether it is <think>...</think><action>...</action>, once, both with something in them."""
    parts = _FORMAT.fullmatch(completion) if all(completion.count(tag) == 1 for tag in _TAGS) else None
    return parts is not None and parts[1].strip() != ""


def read_action(completion: str) -> dict[str, Any] | None:
    """The JSON object of the completion's one <action>...</action>, else, without such tags, the whole text's.

    A thought up to "</think>" is not looked at. None where it is none, names no action, or holds a script in place of
    an address (javascript:, data:), which no demonstration does.
    """
    text = completion.rpartition("</think>")[2]
    tagged = _ACTION.findall(text)
    if len(tagged) > 1 or (not tagged and "<action>" in text):
        return None
    try:
        action = json.loads(tagged[0] if tagged else text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(action, dict) or not isinstance(action.get("action"), str) or holds_script(action):
        return None
    return action


def holds_script(action: Any) -> bool:
    """Whether any text of the action has an address that runs what it says; white space in it hides nothing."""
    return any(_SCRIPT.search(_UNSEEN.sub("", text).lower()) for text in _texts(action))


def match_action(action: Mapping[str, Any], expected: Mapping[str, Any], screen: tuple[float, float] = SCREEN) -> Match:
    """How `action` fits `expected` (a row's check_options: an action, with candidate_bbox or direction).

    click, long_press: in a box of candidate_bbox [[x1, y1, x2, y2], ...] enlarged by 1.2 around its centre, or at most
    0.04 from the expected point, in shares of the screen. type, open: one lower-cased text holds the other, neither is
    empty. swipe: the finger goes the expected way, where `direction` up and down are those of the page. system_button:
    the same button. wait, terminate: nothing more.
    """
    wanted = expected["action"]
    if action.get("action") not in ({wanted, "type"} if wanted in ("answer", "key") else {wanted}):
        return NO_MATCH
    if holds_script(action):
        return NO_MATCH
    return Match(True, _exact(wanted, action, expected, screen))


def _exact(wanted: str, action: Mapping[str, Any], expected: Mapping[str, Any], screen: tuple[float, float]) -> bool:
    if wanted in ("wait", "terminate"):
        return True
    if wanted == "system_button":
        said, button = _text(action, "button"), _text(expected, "button")
        return said != "" and said == button
    if wanted in ("type", "open", "answer", "key"):
        said, text = _text(action, "text"), _text(expected, "text")
        return "" not in (said, text) and (said in text or text in said)
    if wanted == "swipe":
        way = expected.get("direction") or _page_way(expected)
        return way is not None and _page_way(action) == way
    if wanted in ("click", "long_press"):
        point = _point(action.get("coordinate"))
        return point is not None and _hits(point, expected, screen)
    return False


def _hits(point: tuple[float, float], expected: Mapping[str, Any], screen: tuple[float, float]) -> bool:
    x, y = point
    for left, top, right, bottom in expected.get("candidate_bbox") or ():
        centre_x, centre_y = (left + right) / 2, (top + bottom) / 2
        wide, high = abs(right - left) / 2 * ENLARGED, abs(bottom - top) / 2 * ENLARGED
        if abs(x - centre_x) <= wide and abs(y - centre_y) <= high:
            return True
    target = _point(expected.get("coordinate"))
    return target is not None and math.hypot((x - target[0]) / screen[0], (y - target[1]) / screen[1]) <= NEAR


def _page_way(action: Mapping[str, Any]) -> str | None:
    """Where the swipe takes the page: left and right as the finger, up and down against it."""
    start, end = _point(action.get("coordinate")), _point(action.get("coordinate2"))
    if start is None or end is None or start == end:
        return None
    across, down = end[0] - start[0], end[1] - start[1]
    if abs(across) > abs(down):
        return "right" if across > 0 else "left"
    return "up" if down > 0 else "down"


def _point(value: Any) -> tuple[float, float] | None:
    """Two finite numbers."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        return None
    if not all(isinstance(one, int | float) and not isinstance(one, bool) for one in value):
        return None
    try:
        x, y = map(float, value)
    except OverflowError:
        return None
    return (x, y) if math.isfinite(x) and math.isfinite(y) else None


def _text(action: Mapping[str, Any], key: str) -> str:
    value = action.get(key)
    return value.strip().lower() if isinstance(value, str) else ""


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, held in value.items():
            yield from _texts(key)
            yield from _texts(held)
    elif isinstance(value, list | tuple):
        for held in value:
            yield from _texts(held)
