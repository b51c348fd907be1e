"""Tags once each, in order, around text."""

from __future__ import annotations

import pytest

from posttrain.catalog import find

format_tags = find("rewards", "format_tags")


@pytest.mark.parametrize(
    ("completion", "value"),
    [
        ("<think>a\nb</think><answer>c</answer>", 1.0),
        ("\n<think> a < b </think>\n\n<answer>c</answer> ", 1.0),
        ("<answer>c</answer><think>a</think>", 0.0),
        ("<think>a</think><answer>c</answer> and more", 0.0),
        ("Well, <think>a</think><answer>c</answer>", 0.0),
        ("<think>a</think>b<answer>c</answer>", 0.0),
        ("<think>a</think><answer> </answer>", 0.0),
        ("<think>a</think><answer>c</answer><answer>d</answer>", 0.0),
        ("<think>a<think>b</think><answer>c</answer>", 0.0),
        ("<think>a</think><answer>c", 0.0),
    ],
)
def test_default_tags(completion: str, value: float) -> None:
    assert format_tags(completion) == value


def test_other_tags() -> None:
    assert format_tags("<a.b>x</a.b>", tags=["a.b"]) == 1.0
    assert format_tags("<aXb>x</aXb>", tags=["a.b"]) == 0.0
