"""Free-form mathematics: is the final expression equal to the gold one (math-verify)?"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

_DELIMITED = re.compile(r"\\boxed|\\\(|\\\[|(?<!\\)\$.*(?<!\\)\$", re.DOTALL)


def math_answer(completion: str, answer: str, *, boxed: bool = False) -> float | None:
    """1.0 where the completion's final answer equals `answer` as mathematics (1/2, 0.5, 50%, \\frac{1}{2}), else 0.0.

    answer: LaTeX or plain text, with or without delimiters. The completion's answer is its last \\boxed{}, else (unless
    `boxed`) what math-verify takes for the final expression; a thought up to "</think>" is not looked at. None where
    `answer` itself cannot be parsed. It runs without a time limit of its own: the worker's deadline holds.
    """
    from math_verify import verify

    gold = _parse_gold(answer)
    if not gold:
        return None
    final = completion.rpartition("</think>")[2]
    if boxed:
        _, mark, tail = final.rpartition("\\boxed")
        final = mark + tail
    return float(verify(gold, _parse(final, plain=not boxed), timeout_seconds=None))


def warm_up() -> None:
    """Import math-verify and parse once, so that the first call's deadline does not pay for it."""
    math_answer("\\boxed{\\frac{1}{2}}", "0.5")


@lru_cache(maxsize=1024)
def _parse_gold(answer: str) -> Any:
    """All completions of a group share it."""
    return _parse(answer if _DELIMITED.search(answer) else f"\\boxed{{{answer}}}", plain=True)


def _parse(text: str, *, plain: bool) -> Any:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse

    kinds = [LatexExtractionConfig(boxed_match_priority=0)] + ([ExprExtractionConfig()] if plain else [])
    return parse(text, extraction_config=kinds, parsing_timeout=None)
