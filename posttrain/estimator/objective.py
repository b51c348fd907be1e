"""The resolved objective of an algorithm, for people (text), programs (a dict) and papers (LaTeX)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from posttrain.estimator.algorithm import Algorithm
from posttrain.estimator.parts import Part, part_name

_PART_WIDTH = 46

Constant = tuple[str, str, str]
"""A constant's term, role and name."""


def constants(algorithm: Algorithm) -> dict[Constant, Any]:
    """Every constant of every part, in the order of the terms."""
    return {
        (term.name, role, name): value
        for term in algorithm.terms
        for role, part in term.describe().items()
        for name, value in _constants(part).items()
    }


def as_dict(algorithm: Algorithm, origins: Mapping[Constant, str] | None = None) -> dict[str, Any]:
    """Name, needs, and for each term its source, its normaliser and its parts with formula and constants.

    origins: where each constant's value comes from.
    """
    terms = []
    for term in algorithm.terms:
        parts: dict[str, dict[str, Any]] = {
            role: {"name": part_name(part), "formula": part.formula, "constants": _constants(part)}
            for role, part in term.describe().items()
        }
        for role, part in parts.items():
            if origins is not None and part["constants"]:
                part["origins"] = {name: origins[term.name, role, name] for name in part["constants"]}
        normaliser = getattr(term.describe().get("aggregation"), "formula", "1")
        terms.append({"name": term.name, "source": str(term.source), "normaliser": normaliser, "parts": parts})
    return {"algorithm": algorithm.name, "needs": sorted(algorithm.needs), "terms": terms}


def as_text(algorithm: Algorithm, origins: Mapping[Constant, str] | None = None) -> str:
    """The formula of each term, then a table of its parts; with `origins`, a table of where the constants come from."""
    lines = [f"algorithm   {algorithm.name}", "gradient    " + " + ".join(f"grad_{t.name}" for t in algorithm.terms)]
    for term in algorithm.terms:
        parts = term.describe()
        lines += ["", f"grad_{term.name} = {_gradient(parts)}", f"  over        {algorithm.plan.drawn(term.source)}"]
        for role, part in parts.items():
            constants = ", ".join(f"{name}={value}" for name, value in _constants(part).items())
            shown = part_name(part) + (f"({constants})" if constants else "")
            formula = part.formula if len(shown) <= _PART_WIDTH else f"\n{'':<{14 + _PART_WIDTH}} {part.formula}"
            lines.append(f"  {role:<12}{shown:<{_PART_WIDTH}} {formula}")
    lines += ["", f"needs       {', '.join(sorted(algorithm.needs)) or 'nothing besides the tokens'}"]
    lines.append("normalisers count whole optimiser steps: every micro-batch of every rank")
    if origins:
        rows = list(_rows(algorithm, origins))
        rows.insert(0, ("constant", "value", "from"))
        name_width, value_width = (max(len(row[column]) for row in rows) + 2 for column in (0, 1))
        lines += ["", *(f"{name:<{name_width}}{value:<{value_width}}{origin}" for name, value, origin in rows)]
    return "\n".join(lines)


def as_latex(algorithm: Algorithm, origins: Mapping[Constant, str] | None = None) -> str:
    """An align environment with one line per term; with `origins`, a tabular of the constants."""
    names = [(latex_text(term.name), _latex(_gradient(term.describe()))) for term in algorithm.terms]
    rows = [rf"\nabla_{{\text{{{name}}}}} &= {formula}" for name, formula in names]
    text = "\\begin{align}\n  " + " \\\\\n  ".join(rows) + "\n\\end{align}"
    if origins:
        text += "\n" + latex_table(("constant", "value", "from"), _rows(algorithm, origins))
    return text


def latex_table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A tabular of plain text."""
    lines = [" & ".join(map(latex_text, row)) + r" \\" for row in (header, *rows)]
    lines.insert(1, r"\hline")
    return "\n".join([rf"\begin{{tabular}}{{{'l' * len(header)}}}", *(f"  {line}" for line in lines), r"\end{tabular}"])


def latex_text(text: str) -> str:
    """Plain text for LaTeX."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, "\\" + c if c in "&%$#_{}" else c) for c in text)


def _rows(algorithm: Algorithm, origins: Mapping[Constant, str]) -> Iterator[tuple[str, str, str]]:
    for (term, role, name), value in constants(algorithm).items():
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        yield f"{term}.{role}.{name}", shown, origins[term, role, name]


def _gradient(parts: dict[str, Part]) -> str:
    roles = {role: part.formula for role, part in parts.items()}
    factors = [roles["aggregation"]]
    factors += [f"[{roles[role]}]" for role in ("where", "weight", "mask", "correction") if roles.get(role, "1") != "1"]
    factors += [f"[{roles['advantage']}]"] if roles.get("advantage", "1") != "1" else []
    factors.append(f"grad {roles['likelihood']}" + (f" / {roles['denominator']}" if "denominator" in roles else ""))
    return " ".join(factors)


def _constants(part: Part) -> dict[str, Any]:
    """Its fields; those of a part it holds as `part.field`."""
    found: dict[str, Any] = {}
    if not is_dataclass(part):
        return found
    for entry in fields(part):
        value = getattr(part, entry.name)
        inner = {f"{part_name(value)}.{name}": constant for name, constant in _constants(value).items()}
        found |= inner if is_dataclass(value) else {entry.name: value}
    return found


_LATEX = [
    (r"\b1\[", r"\\mathbb{1}["),
    (r"\bnum_(\w+)", r"n_\1"),
    (r"\bsolved_i\b", r"\\text{solved}_i"),
    (r"\b(sum|prod)_(\w)\b", r"\1_{\2}"),
    (r"\bgrad\b", r"\\nabla"),
    (r"(?<![\\\w])(pi|sigma|delta|gamma|lambda|theta|mu|tau|rho|log|exp|min|max|sum|prod)(?![A-Za-z])", r"\\\1"),
    (r"(?<![\\\w])(mean|std|var|sqrt|sg|cos|clip|sign|odds|KL)(?=[_( ])", r"\\operatorname{\1}"),
    (r"(?<=[\w}'])_([A-Za-z]{2,})\b", r"_{\\text{\1}}"),
    (r"\^\(([^()]*)\)", r"^{\1}"),
    (r"<=", r"\\le "),
    (r">=", r"\\ge "),
    (r"!=", r"\\ne "),
    (r"-\+", r"\\mp "),
    (r"->", r"\\to "),
    (r"\|\|", r"\\| "),
    (r"(?<![\\{\w'])([a-z]{2,}(?:'s)?(?: (?:[a-z]{2,}(?:'s)?|a)(?![\w(_}]))*)(?![\w(_}])", r"\\text{ \1 }"),
]


def _latex(formula: str) -> str:
    for pattern, replacement in _LATEX:
        formula = re.sub(pattern, replacement, formula)
    return formula
