"""What counts as a demonstration in a model's answer."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from posttrain.curation.demonstration import NoDemonstrationError, messages_of

STEPS: list[dict[str, Any]] = [
    {"observation": "a page with a box", "thought": "It asks for a name.", "action": "type('name', 'Ada')"},
    {"observation": "a page with a button", "action": "click('send')"},
]
GOOD = json.dumps({"task": "Sign up as Ada.", "steps": STEPS})


@pytest.mark.parametrize("around", ["{}", "Here it is:\n```json\n{}\n```\nDone.", "  {} {{"])
def test_steps_become_a_conversation(around: str) -> None:
    messages = messages_of(around.format(GOOD), re.compile(r"\w+\(.*\)"))
    assert [message["role"] for message in messages] == ["user", "assistant"] * 2
    assert messages[0]["content"] == "Sign up as Ada.\n\na page with a box"
    assert messages[1]["content"] == "It asks for a name.\ntype('name', 'Ada')"
    assert messages[2]["content"] == "a page with a button"
    assert messages[3]["content"] == "click('send')"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ("I cannot do that.", "no JSON object"),
        (GOOD[:-3], "not JSON"),
        ("{'task': 1}", "not JSON"),
        ('{"a":' * 100_000, "not JSON"),
        ('{"task": ' + "9" * 5000 + "}", "not"),
        ('{"task": "x"}', "'steps' is a required property"),
        (json.dumps({"task": " ", "steps": STEPS}), r"\$.task"),
        (json.dumps({"task": "x", "steps": []}), r"\$.steps"),
        (json.dumps({"task": "x", "steps": [{"observation": "", "action": "a"}]}), r"\$.steps\[0\].observation"),
        (json.dumps({"task": "x", "steps": [{"observation": "o", "action": "javascript: alert()"}]}), "step 0: action"),
    ],
)
def test_everything_else_is_none(answer: str, why: str) -> None:
    with pytest.raises(NoDemonstrationError, match=why):
        messages_of(answer, re.compile(r"\w+\(.*\)"))
