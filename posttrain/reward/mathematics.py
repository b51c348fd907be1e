"""Are two answers equal as mathematics? math-verify decides; what settles most pairs at next to no cost goes before it.

Three tests stand in front, none of which it would contradict: the same text; two plain numbers, compared as fractions;
two expressions whose values differ clearly at one point, which no simplification can make equal. The last saves most of
the time: to find that two expressions are not equal, sympy simplifies their difference.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any, Literal

Mode = Literal["strict", "usual", "tolerant"]

MAX_CHARACTERS = 1000
"""Of an answer: no gold answer is as long, and parsing takes more than linear time."""

MAX_DEPTH = 50
"""Of brackets in an answer."""

PLACES = 6
"""Decimal places to which a number that is written with decimals is compared; more where the gold answer has more."""

_DELIMITED = re.compile(r"\\boxed|\\\(|\\\[|(?<!\\)\$.*(?<!\\)\$", re.DOTALL)
_INTEGER = r"[0-9]{1,3}(?:(?:,|,\\!|\{,\})[0-9]{3})+|[0-9]{1,30}"
_NUMBER = re.compile(
    rf"(?P<sign>-?)(?:\\d?frac\{{(?P<above>{_INTEGER})\}}\{{(?P<below>{_INTEGER})\}}"
    rf"|(?P<whole>{_INTEGER})?(?P<decimals>\.[0-9]{{1,30}})|(?P<integer>{_INTEGER})(?:/(?P<divisor>{_INTEGER}))?)"
)
_POINTS = (0.7390851332151607, 1.9318516525781366)
_AFTER_UNIT = re.compile(
    r"\\(?:text|mbox)\s*\{(?!\s*(?:or|and)\s*\})[^{}]*\}\s*(?:\^\{?[0-9]\}?|\{\^[0-9]\})?"
    r"(?=\s*(?:\\(?:[cft(\[]|sqrt|pi|div)|[0-9A-Za-z+*/(=-]))"
)
_TOWER = re.compile(r"(?:(?:\^|\*\*)[\s{(]*[^\s{}()^*]+[\s]*){3}|![\s)}\]]*!")
_BASE = re.compile(r"_\{?([0-9]+)\}?\s*$")


@dataclass(frozen=True)
class Number:
    """A plain number; rounded: written with decimals, so that it may stand for what it was rounded from."""

    value: Fraction
    rounded: bool


def plain_number(text: str) -> Number | None:
    """The number that `text` is (12, -1,000, 0.5, 1/2, \\frac{1}{2}), None where it is anything else."""
    found = _NUMBER.fullmatch(text.strip()) if len(text) <= MAX_CHARACTERS else None
    if found is None:
        return None
    above = _integer(found["above"] or found["whole"] or found["integer"] or "0")
    below = _integer(found["below"] or found["divisor"] or "1")
    if below == 0:
        return None
    value = Fraction(above, below) + Fraction(found["decimals"] or 0)
    return Number(-value if found["sign"] else value, found["decimals"] is not None)


def _integer(text: str) -> int:
    return int(re.sub(r"[^0-9]", "", text))


def parse(text: str) -> list[Any]:
    """What math-verify reads out of `text`: nothing, or the expression, where it has one, and its text."""
    return list(_parse_short(text) if len(text) <= MAX_CHARACTERS else _parse(text))


def parse_answer(text: str) -> list[Any]:
    """As `parse`, for an answer without words around it; delimiters may be there."""
    return parse(text if _DELIMITED.search(text) else f"\\boxed{{{text}}}")


@lru_cache(maxsize=4096)
def _parse_short(text: str) -> tuple[Any, ...]:
    """Completions of one prompt share the gold answer, and many share theirs."""
    return _parse(text)


def _parse(text: str) -> tuple[Any, ...]:
    _parse_in_two_stages()
    from math_verify import ExprExtractionConfig, LatexExtractionConfig
    from math_verify import parse as parse_mathematics

    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]
    return tuple(parse_mathematics(text, extraction_config=kinds, parsing_timeout=None))


@cache
def _parse_in_two_stages() -> None:
    """Let the parser of LaTeX that math-verify uses predict without its context first, which is seven times as fast.

    These are the two stages of ANTLR's manual: what SLL(*) prediction parses without an error, LL(*) parses to the same
    tree, and only where it meets an error LL(*) is tried. The package has no setting for it.
    """
    from antlr4.atn.PredictionMode import PredictionMode  # type: ignore[import-untyped]
    from latex2sympy2_extended import latex2sympy2  # type: ignore[import-untyped]

    class TwoStages(latex2sympy2.PSParser):  # type: ignore[misc]
        def math(self) -> Any:
            self._interp.predictionMode = PredictionMode.SLL
            try:
                return super().math()
            except Exception:  # its listener raises Exception itself
                self.reset()
                self._interp.predictionMode = PredictionMode.LL
                return super().math()

    latex2sympy2.PSParser = TwoStages


def equal_numbers(gold: Number, found: Number, mode: Mode, tolerance: float, places: int = PLACES) -> bool:
    """gold = found; to `places` where one is rounded, unless `strict`; or |gold - found| <= tolerance |gold|."""
    if gold.value == found.value or abs(gold.value - found.value) <= Fraction(tolerance) * abs(gold.value):
        return True
    rounds = mode != "strict" and (gold.rounded or found.rounded)
    return rounds and round(gold.value, places) == round(found.value, places)


def equal_expressions(gold: list[Any], found: list[Any], mode: Mode, tolerance: float, places: int = PLACES) -> bool:
    """Whether what `parse` read out of both is equal; modes and tolerance as those of the reward math_answer."""
    from math_verify import verify

    if not gold or not found or _interval_and_number(gold[0], found[0]):
        return False
    values = _values(*_right_sides(gold[0], found[0]))
    if values is not None:
        if tolerance > 0 and len(values) == 1 and all(abs(a - b) <= tolerance * abs(a) for a, b in values):
            return True
        if (len(values) == 1 or mode != "tolerant") and any(
            abs(a - b) > 2 * 10**-places * max(1.0, abs(a)) for a, b in values
        ):
            return False
    return bool(
        verify(
            gold,
            found,
            float_rounding=15 if mode == "strict" else places,
            strict=mode != "tolerant",
            allow_set_relation_comp=mode == "tolerant",
            timeout_seconds=None,
        )
    )


def places_of(gold: str) -> int:
    """To how many decimal places answers are compared with this one."""
    return max([PLACES, *(len(decimals) for decimals in re.findall(r"\.([0-9]+)", gold))])


def same_text(one: str, other: str) -> bool:
    """Whether two answers say the same, but for white space."""
    return "".join(one.split()) == "".join(other.split()) != ""


def misread(answer: str) -> bool:
    """Whether math-verify would leave out a part of the answer that changes it.

    That are what follows a unit ("5 \\text{ cm} \\cdot 2^{5}" is read as 5), what stands outside of inner dollars, and
    what follows a brace that nothing opens.
    """
    inner = answer.strip().removeprefix("$").removesuffix("$").removeprefix("\\(").removesuffix("\\)")
    delimiters = re.search(r"\\[(\[]|(?<!\\)\$", inner) is not None
    return delimiters or inner.count("\\{") != inner.count("\\}") or _AFTER_UNIT.search(inner) is not None


def too_large(answer: str) -> bool:
    """Whether an answer is made to be computed for ever: towers of powers, factorials of factorials, deep brackets."""
    depth = deepest = 0
    for one in answer:
        depth += (one in "([{") - (one in ")]}")
        deepest = max(deepest, depth)
    return deepest > MAX_DEPTH or _TOWER.search(answer) is not None


def other_base(gold: str, answer: str) -> bool:
    """Whether both answers name the base that they are written in, and it is not the same (52_8, 52_9)."""
    bases = [_BASE.search(text) for text in (gold, answer)]
    return None not in bases and len({base[1] for base in bases if base}) == 2


def _interval_and_number(one: Any, other: Any) -> bool:
    """Whether one is an interval and the other a single value; sympy takes long to find that they differ."""
    from sympy import Expr, Interval  # type: ignore[import-untyped]

    return any(isinstance(a, Interval) and isinstance(b, Expr) for a, b in ((one, other), (other, one)))


def _right_sides(one: Any, other: Any) -> tuple[Any, Any]:
    """f(x) and g(x) of y = f(x) and y = g(x), which are equal where these are; others as they are."""
    from sympy import Eq, Symbol

    both = (one, other)
    explicit = all(isinstance(a, Eq) and isinstance(a.lhs, Symbol) and not a.rhs.has(a.lhs) for a in both)
    return (one.rhs, other.rhs) if explicit and one.lhs == other.lhs else both


def _values(gold: Any, found: Any) -> list[tuple[complex, complex]] | None:
    """Both values: of constants once, else where the symbols have one and other numbers.

    None where they cannot be told, or where math-verify compares by other rules than by value: sets, relations,
    matrices, single symbols, percentages, whatever variables are called.
    """
    from sympy import Derivative, Expr, Integral, Limit, Product, Sum, Symbol, UnevaluatedExpr
    from sympy.core.function import AppliedUndef  # type: ignore[import-untyped]

    for one in (gold, found):
        if not isinstance(one, Expr) or isinstance(one, Symbol):
            return None
        if one.has(UnevaluatedExpr, AppliedUndef, Derivative, Integral, Limit, Product, Sum):
            return None
    symbols = sorted(gold.free_symbols | found.free_symbols, key=str)
    values = []
    for point in _POINTS if symbols else _POINTS[:1]:
        at = {symbol: point + 0.1 * number for number, symbol in enumerate(symbols)}
        pair = _value(gold, at), _value(found, at)
        if pair[0] is None or pair[1] is None:
            return None
        values.append((pair[0], pair[1]))
    return values


def _value(expression: Any, at: dict[Any, float]) -> complex | None:
    """The value at a point, None where it is no finite number."""
    try:
        value = complex(expression.evalf(15, subs=at))
    except (TypeError, ValueError, ArithmeticError, AttributeError):
        return None
    return value if abs(value) < 1e300 else None
