"""Actions on a screen: does the completion do what the demonstration did (UI-S1, arXiv 2509.11543)?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from posttrain.errors import DataError
from posttrain.reward import Graded
from posttrain.reward.gui import NO_MATCH, SCREEN, eq8, has_form, match_action, read_action


def gui_action(
    completion: str,
    expected_action: Mapping[str, Any],
    screen_size: Sequence[int] | None = None,
    *,
    variant: Literal["paper", "code", "exact"] = "paper",
) -> float:
    """r = 0.1 r_format + 0.4 1[r_format = 1] r_type + 0.5 1[r_format r_type = 1] r_acc (Eq. 8), the variant `paper`.

    The completion is <think>...</think><action>{"action": "click", "coordinate": [x, y]}</action>; r_format: it is
    that, and both parts say something; r_type, r_acc: `reward.gui.match_action`. expected_action: a row's
    check_options. screen_size: width and height in pixels, 1080 by 2400 where the row has none.

    variant: code pays, as UI-S1's code, 0.1 r_format + 0.9 times 1 (exact), 0.5 (its type), 0.1 (another action that
    can be read) or 0. exact pays 1.0 where r_acc is 1, whatever the format, else 0.0: a plain outcome. DataError where
    expected_action names no action.
    """
    if not isinstance(expected_action.get("action"), str):
        raise DataError(f"gui_action: the column 'expected_action' is {expected_action!r:.100}; it names no 'action'")
    action = read_action(completion)
    screen = SCREEN if screen_size is None else (screen_size[0], screen_size[1])
    found = NO_MATCH if action is None else match_action(action, expected_action, screen)
    form = action is not None and has_form(completion)
    value = float(found.exact) if variant == "exact" else eq8(form, action is not None, found, variant)
    return Graded(value, None if action is None else str(action["action"]))
