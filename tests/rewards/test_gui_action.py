"""UI-S1's rules of matching actions, and its rewards, against values worked out by hand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain.catalog import find
from posttrain.errors import DataError
from posttrain.reward.gui import Match, match_action, read_action

gui_action = find("rewards", "gui_action")

CLICK = {"action": "click", "coordinate": [540, 1000], "candidate_bbox": [[500, 980, 600, 1020], [0, 2000, 1080, 2100]]}
DOWN = {"action": "swipe", "direction": "down"}
TYPE = {"action": "type", "text": "Sculpture art"}


def swipe(x: float, y: float, to_x: float, to_y: float) -> dict[str, Any]:
    return {"action": "swipe", "coordinate": [x, y], "coordinate2": [to_x, to_y]}


@pytest.mark.parametrize(
    ("action", "expected", "exact"),
    [
        ({"action": "click", "coordinate": [490, 976]}, CLICK, True),  # the first box, enlarged: 490..610 x 976..1024
        ({"action": "click", "coordinate": [500, 2104]}, CLICK, True),  # the second
        ({"action": "click", "coordinate": [582, 1000]}, CLICK | {"candidate_bbox": []}, True),  # 42 / 1080 < 0.04
        ({"action": "click", "coordinate": [584, 1000]}, CLICK | {"candidate_bbox": []}, False),
        ({"action": "click", "coordinate": [540, 1096]}, CLICK | {"candidate_bbox": []}, True),  # 96 / 2400 = 0.04
        ({"action": "click", "coordinate": [540, 1097]}, CLICK | {"candidate_bbox": []}, False),
        ({"action": "click", "coordinate": [540, 1500]}, CLICK, False),
        (swipe(540, 1800, 540, 600), DOWN, True),  # the finger goes up, the page down
        (swipe(540, 600, 540, 1800), DOWN, False),
        (swipe(100, 500, 800, 600), {"action": "swipe", "direction": "right"}, True),
        (swipe(9, 9, 9, 9), DOWN, False),
        (swipe(540, 700, 530, 200), swipe(540, 1800, 540, 600), True),  # the way of an expected gesture
        ({"action": "type", "text": " sculpture ART now"}, TYPE, True),
        ({"action": "type", "text": "sculpture"}, TYPE, True),
        ({"action": "type", "text": ""}, TYPE, False),
        ({"action": "type", "text": "painting"}, TYPE, False),
        ({"action": "open", "text": "pinterest"}, {"action": "open", "text": "Pinterest"}, True),
        ({"action": "type", "text": "42"}, {"action": "answer", "text": "42"}, True),
        ({"action": "system_button", "button": "back"}, {"action": "system_button", "button": "Back"}, True),
        ({"action": "system_button", "button": "Home"}, {"action": "system_button", "button": "Back"}, False),
        ({"action": "wait", "time": 9}, {"action": "wait", "time": 2}, True),
    ],
)
def test_rules(action: dict[str, Any], expected: dict[str, Any], exact: bool) -> None:
    assert match_action(action, expected) == Match(True, exact)


def test_another_type_matches_nothing() -> None:
    assert match_action({"action": "long_press", "coordinate": [540, 1000]}, CLICK) == Match(False, False)
    assert match_action({"action": "open", "text": "Sculpture art"}, TYPE) == Match(False, False)


def test_the_screen_scales_distances() -> None:
    near = {"action": "click", "coordinate": [595, 1000]}
    expected = CLICK | {"candidate_bbox": []}
    assert not match_action(near, expected).exact
    assert match_action(near, expected, (1440, 3120)).exact


@pytest.mark.parametrize(
    "coordinate", [None, [1], "ab", [True, 2], [float("nan"), 1000], [float("inf"), 1000], [10**400, 1], {"x": 1}]
)
def test_coordinates_that_are_none(coordinate: Any) -> None:
    assert match_action({"action": "click", "coordinate": coordinate}, CLICK) == Match(True, False)


def said(action: Any, thought: str = "The tab.") -> str:
    return f"<think>{thought}</think>\n<action>{json.dumps(action)}</action>"


RIGHT, NEXT_TO_IT, OTHER = (
    {"action": "click", "coordinate": [540, 1000]},
    {"action": "click", "coordinate": [10, 10]},
    {"action": "wait", "time": 2},
)


@pytest.mark.parametrize(
    ("completion", "paper", "code", "exact"),
    [
        (said(RIGHT), 1.0, 1.0, 1.0),
        (said(NEXT_TO_IT), 0.5, 0.55, 0.0),
        (said(OTHER), 0.1, 0.19, 0.0),
        (said(RIGHT, " "), 0.0, 0.9, 1.0),  # no thought: no format, and Eq. 8 pays nothing without it
        (json.dumps(RIGHT), 0.0, 0.9, 1.0),
        (said([]), 0.0, 0.0, 0.0),
        ("<think>a</think><action>click</action>", 0.0, 0.0, 0.0),
        (said(RIGHT) * 2, 0.0, 0.9, 1.0),  # the last thought's action; not the format
    ],
)
def test_rewards(completion: str, paper: float, code: float, exact: float) -> None:
    found = [gui_action(completion, CLICK, variant=variant) for variant in ("paper", "code", "exact")]
    assert found == pytest.approx([paper, code, exact])


def test_several_actions_are_none() -> None:
    assert read_action(f"<action>{json.dumps(OTHER)}</action><action>{json.dumps(RIGHT)}</action>") is None


@pytest.mark.parametrize(
    "text",
    [
        "javascript:alert(1)",
        " JaVa\tscript\n:alert('Sculpture art')",
        "Sculpture art javascript:alert(1)",
        "data:text/html;base64,Sculpture art",
        "DATA:,Sculpture art",
        "vbscript:Sculpture art",
        "java\u200bscript:Sculpture art",
    ],
)
def test_scripts_never_match(text: str) -> None:
    action = {"action": "type", "text": text}
    assert match_action(action, TYPE) == match_action(action, {"action": "type", "text": text}) == Match(False, False)
    assert gui_action(said(action), TYPE) == gui_action(said(action), TYPE, variant="code") == 0.0
    assert match_action({"action": "wait", "note": [{"deep": text}]}, {"action": "wait"}) == Match(False, False)


def test_text_about_data_is_text() -> None:
    assert match_action({"action": "type", "text": "my data: 5"}, {"action": "type", "text": "my data: 5"}).exact


def test_an_expectation_without_action() -> None:
    with pytest.raises(DataError, match="names no 'action'"):
        gui_action(said(RIGHT), {"coordinate": [1, 2]})
