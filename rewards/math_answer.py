"""Free-form mathematics: is the final expression equal to the gold one (math-verify)?"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from posttrain.reward import Graded

_DELIMITED = re.compile(r"\\boxed|\\\(|\\\[|(?<!\\)\$.*(?<!\\)\$", re.DOTALL)


def math_answer(completion: str, answer: str | Sequence[str], *, boxed: bool = False) -> float | None:
    """1.0 where the completion's final answer equals `answer` as mathematics (1/2, 0.5, 50%, \\frac{1}{2}), else 0.0.

    answer: LaTeX or plain text, with or without delimiters, or the list of all answers that are asked for. The
    completion's answer is its last \\boxed{}, else (unless `boxed`) what math-verify takes for the final expression; a
    thought up to "</think>" is not looked at. None where `answer` itself cannot be parsed. It runs without a time limit
    of its own: the worker's deadline holds.
    """
    from math_verify import verify

    gold = _parse_gold(", ".join(answer) if isinstance(answer, list | tuple) else str(answer))
    if not gold:
        return None
    text = completion.rpartition("</think>")[2]
    final = _last_boxed(text)
    if final is None and boxed:
        return Graded(0.0, None)
    parsed = _parse(final or text)
    return Graded(verify(gold, parsed, timeout_seconds=None), str(parsed[-1]) if parsed else None)


def warm_up() -> None:
    """Import math-verify and parse once, so that the first call's deadline does not pay for it."""
    math_answer("\\boxed{\\frac{1}{2}}", "0.5")


@lru_cache(maxsize=1024)
def _parse_gold(answer: str) -> Any:
    """All completions of a group share it."""
    return _parse(answer if _DELIMITED.search(answer) else f"\\boxed{{{answer}}}")


def _parse(text: str) -> Any:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    return parse(text, extraction_config=kinds, parsing_timeout=None)


def _last_boxed(text: str) -> str | None:
    """The last \\boxed{...} alone, where its braces close: math-verify would join neighbouring boxes to a set."""
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth = 0
    for end in range(text.index("{", start), len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if depth == 0:
            return text[start : end + 1]
    return None
