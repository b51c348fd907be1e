"""Free-form mathematics: is the final expression equal to the gold one (math-verify)?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from posttrain.errors import RecipeError
from posttrain.reward import Graded
from posttrain.reward.mathematics import (
    MAX_CHARACTERS,
    equal_expressions,
    equal_numbers,
    misread,
    other_base,
    parse,
    parse_answer,
    places_of,
    plain_number,
    same_text,
    too_large,
)

_TAIL_CHARACTERS = 2_000
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)  # one behind a backslash is a sign
_UNIT = re.compile(
    r"(?:[0-9}\s)]|\\,)\s*(?P<unit>(?:\\(?:text|mbox|mathrm)\s*\{[^{}]*\}|[A-Za-z]+)(?:\^\{?[0-9]\}?)?)\s*$"
)

_FORMS = (
    r"-\frac{\sqrt{3}}{2} + 2\pi",
    r"\left( 3, \frac{\pi}{2} \right)",
    r"\left[ -\frac{1}{3}, \sqrt{2} \right)",
    r"(-\infty, 2) \cup [3, \infty)",
    r"x^5 - 2x^{4} + (x+1)(x-2)",
    r"\begin{pmatrix} -1/3 & 0 \\ 2 & x \end{pmatrix}",
    r"y = 2x + 3",
    r"1 \pm \sqrt{19}, -2",
    r"\{1, 2\}",
    r"3 + 4i",
    r"x \in [-2,7]",
    r"2516_8",
    r"90^\circ",
    r"\text{east}",
    r"\frac{11+9a}{20} \cdot \sin x",
    r"15\mbox{ cm}^2",
)
"""Answers of the forms that competitions ask for."""


def math_answer(
    completion: str,
    answer: str | Sequence[str],
    *,
    boxed: bool = False,
    mode: Literal["strict", "usual", "tolerant"] = "usual",
    tolerance: float = 0.0,
    units: Literal["ignore", "match"] = "ignore",
) -> float | None:
    """1.0 where the completion's final answer equals `answer` as mathematics (1/2, 0.5, \\frac{1}{2}), else 0.0.

    answer: LaTeX or plain text, with or without delimiters, or the list of all answers that are asked for. The
    completion's answer is its last \\boxed{}, else (unless `boxed`) what math-verify takes for the final expression at
    its end; a thought up to "</think>" is not looked at, nor are digits other than 0 to 9. None where `answer` itself
    cannot be parsed. It runs without a time limit of its own: the worker's deadline holds.

    mode: usual: a number with decimals may stand for any that rounds to it at the sixth place (0.333333 for 1/3).
    strict: boxed, and without that rounding. tolerant: variables may have other names, tuples are sets, inequalities
    their intervals. tolerance: how far a number may be off, as a share of the gold one. units: match asks for the unit
    of `answer`, where it has one. RecipeError for a tolerance below 0 or of 1 and more.
    """
    if not 0 <= tolerance < 1:
        raise RecipeError(f"math_answer: tolerance is {tolerance}; allowed: 0 to below 1, a share of the gold number")
    gold = ", ".join(answer) if isinstance(answer, list | tuple) else str(answer)
    gold = _last_boxed(gold) or gold
    text = completion.rpartition("</think>")[2]
    final = _last_boxed(text)
    if not (plain_number(gold) or same_text(gold, final or "") or parse_answer(gold)):
        return None
    if final is None and (boxed or mode == "strict"):
        return Graded(0.0, None)
    if final is None:
        return _from_text(gold, _ascii_digits(text[-_TAIL_CHARACTERS:]), mode, tolerance)
    if len(final) > MAX_CHARACTERS or final != _ascii_digits(final):
        return Graded(0.0, final[:MAX_CHARACTERS])
    if units == "match" and _unit(gold) not in ("", _unit(final)):
        return Graded(0.0, final)
    return _compared(gold, final, mode, tolerance)


def warm_up() -> None:
    """Import math-verify and read answers of many forms, so that no deadline pays for it: the parser learns its tables.

    That is what most of the time goes into while the first hundreds of answers are graded.
    """
    for form in _FORMS:
        math_answer(f"\\boxed{{{form}}}", "x + 1")


@lru_cache(maxsize=4096)
def _compared(gold: str, final: str, mode: Literal["strict", "usual", "tolerant"], tolerance: float) -> Graded:
    """The grade of what stood in the box; completions of one prompt often end alike."""
    ours, theirs = plain_number(final), plain_number(gold)
    places = places_of(gold)
    if ours is not None and theirs is not None:
        return Graded(equal_numbers(theirs, ours, mode, tolerance, places), str(ours.value))
    if same_text(final, gold):
        return Graded(1.0, final)
    if misread(final) or other_base(gold, final) or too_large(final):
        return Graded(0.0, final)
    found = parse(f"\\boxed{{{final}}}")
    said = str(ours.value) if ours is not None else str(found[-1]) if found else None
    return Graded(equal_expressions(parse_answer(gold), found, mode, tolerance, places), said)


def _from_text(gold: str, text: str, mode: Literal["strict", "usual", "tolerant"], tolerance: float) -> Graded:
    """The grade of a completion without a box."""
    found = parse(text)
    right = equal_expressions(parse_answer(gold), found, mode, tolerance, places_of(gold))
    return Graded(right, str(found[-1]) if found else None)


def _ascii_digits(text: str) -> str:
    """The text with "?" for every other alphabet's digits, which int() would take."""
    if text.isascii():
        return text
    return "".join("?" if one.isdecimal() and not one.isascii() else one for one in text)


def _unit(text: str) -> str:
    """The unit at the end of an answer, without its LaTeX; "" where there is none."""
    inner = text.strip().strip("$").strip()
    for sign in ("\\circ", "\\%", "%"):
        if sign in inner:
            return sign.strip("\\")
    found = _UNIT.search(inner)
    unit = re.sub(r"\\(?:text|mbox|mathrm)|[\s{}]", "", found["unit"]) if found else ""
    word, power, exponent = unit.partition("^")
    return (word.removesuffix("s") if len(word) > 2 else word) + power + exponent


def _last_boxed(text: str) -> str | None:
    """What stands in the last \\boxed{...}, where its braces close: math-verify would join neighbouring boxes."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    first = text.index("{", start)
    for brace in _BRACE.finditer(text, first):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return text[first + 1 : brace.start()].strip().removesuffix(".")
    return None
