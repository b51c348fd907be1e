"""The rewards of a few lines each: what they accept, and what they must not fall for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from posttrain import catalog
from posttrain.errors import UserError


def score(name: str, *inputs: Any, **settings: Any) -> float:
    return float(catalog.find("rewards", name)(*inputs, **settings))


@pytest.mark.parametrize(
    ("completion", "chosen"),
    [
        ("The answer is (C).", "C"),
        ("I first thought the answer is A, but the answer is C", "C"),
        ("So $\\boxed{C}$", "C"),
        ("\\boxed{\\text{C}} and not B", "C"),
        ("C", "C"),
        ("c", None),
        ("C. Paris", "C"),
        ("A: wrong\nB: wrong\nC: right", "C"),
        ("<think>The answer is A</think>**Answer:** C", "C"),
        ("Option C is the best choice", "C"),
        ("A cat sat on the mat.", None),
        ("I think so.", None),
        ("\\boxed{A, C}", None),
        ("Can it be Z?", None),
        ("", None),
    ],
)
def test_multiple_choice_reads_the_chosen_letter(completion: str, chosen: str | None) -> None:
    grades = {letter: catalog.find("rewards", "multiple_choice")(completion, letter) for letter in "ABCD"}
    assert {letter for letter, grade in grades.items() if grade == 1.0} == ({chosen} if chosen else set())
    assert grades["A"].answer == chosen


def test_multiple_choice_names_a_gold_that_is_no_letter() -> None:
    with pytest.raises(UserError, match="'answer' is 'Paris'; allowed: one letter"):
        score("multiple_choice", "C", "Paris")


def test_repetition_is_the_share_of_n_grams_seen_before() -> None:
    assert score("repetition", "a b c a b c", ngram=3) == pytest.approx(-(1 - 3 / 4))
    assert score("repetition", "a b c d", ngram=3) == 0.0
    assert score("repetition", "a b", ngram=3) == 0.0
    assert score("repetition", "no " * 1000, ngram=2, max_penalty=0.5) == pytest.approx(-0.5 * (1 - 1 / 999))
    with pytest.raises(UserError, match="max_penalty 2"):
        score("repetition", "a", max_penalty=2)


def test_length_budget_is_l1_s_terms() -> None:
    assert score("length_budget", 1500, 1000, exact=True) == pytest.approx(-0.15)
    assert score("length_budget", 500, 1000, exact=True) == pytest.approx(-0.15)
    assert score("length_budget", 1500, 1000) == pytest.approx(-0.0003 * 500 + 0.5 - 1)
    assert score("length_budget", 9000, 1000) == -1.0
    assert score("length_budget", 10, budget_tokens=5000) == 0.0


def test_language_consistency_counts_letters_by_script() -> None:
    assert score("language_consistency", "x = 4, done") == 0.0
    assert score("language_consistency", "abc где") == -0.5
    assert score("language_consistency", "где", script="cyrillic") == 0.0
    assert score("language_consistency", "123 !?") == 0.0


def test_regex_match_takes_the_row_s_pattern_first() -> None:
    assert score("regex_match", " ab12\n", r"[a-z]+\d+") == 1.0
    assert score("regex_match", "ab12!", r"[a-z]+\d+") == 0.0
    assert score("regex_match", "so ab12!", expression=r"\d+", whole=False) == 1.0
    with pytest.raises(UserError, match="not a regular expression"):
        score("regex_match", "x", "(")


CALLS = [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]


def _said(*calls: Any) -> str:
    return "".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


@pytest.mark.parametrize(
    ("completion", "settings", "expected"),
    [
        (_said(*CALLS), {}, 1.0),
        (_said(*reversed(CALLS)), {}, 1.0),
        (_said(*reversed(CALLS)), {"ordered": True}, 0.0),
        (_said(CALLS[0]), {}, 0.0),
        (_said(CALLS[0]), {"partial": True}, 0.5),
        (_said(*CALLS, *CALLS), {"partial": True}, 0.5),  # a second time is one too many
        (_said({"name": "f", "arguments": '{"x": 1}'}, {"name": "g"}), {}, 1.0),
        (_said({"name": "f", "arguments": {"x": "1"}}, CALLS[1]), {"partial": True}, 0.5),
        ("<tool_call>not json</tool_call>" + _said(CALLS[0]), {"partial": True}, 0.5),
        ("f(x=1)", {}, 0.0),
    ],
)
def test_tool_calls_are_compared_as_values(completion: str, settings: dict[str, Any], expected: float) -> None:
    assert score("tool_calls", completion, CALLS, **settings) == expected


def test_no_call_is_right_where_none_is_expected() -> None:
    assert score("tool_calls", "No need.", []) == 1.0
    assert score("tool_calls", _said(CALLS[0]), []) == 0.0


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ('{"n": 4}', 1.0),
        ('{"n": "4"}', 0.0),
        ('Here:\n```json\n{"n": 4}\n```\ndone', 1.0),
        ('<think>{"n": 4}</think>{}', 0.0),
        ('{"n": 4} and more', 0.0),
        ("[" * 100_000, 0.0),
    ],
)
def test_json_schema_wants_one_valid_value(completion: str, expected: float) -> None:
    assert score("json_schema", completion, SCHEMA) == expected
    assert score("json_schema", completion, json.dumps(SCHEMA)) == expected


def test_json_schema_names_a_bad_schema_and_fetches_nothing() -> None:
    with pytest.raises(UserError, match="the schema is not valid"):
        score("json_schema", "{}", {"type": "objct"})
    with pytest.raises(UserError, match="refers to another document"):
        score("json_schema", "{}", {"$ref": "http://127.0.0.1:9/schema.json"})
