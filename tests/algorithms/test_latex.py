"""The formulas as LaTeX: no word is left to be set as a product of letters."""

from __future__ import annotations

import re

import pytest

from posttrain.algorithms import load
from posttrain.algorithms.overview import rows
from posttrain.estimator.assemble import ROLES, parts_of
from posttrain.estimator.objective import _latex, as_latex


@pytest.mark.parametrize("name", [row.name for row in rows()])
def test_every_word_is_text_or_a_command(name: str) -> None:
    text = as_latex(load(name)).replace(r"\begin{align}", "").replace(r"\end{align}", "")
    left = re.sub(r"\\(text|operatorname)\{[^{}]*\}|\\[A-Za-z]+", "", text)
    assert re.findall(r"[A-Za-z]{3,}", left) == []
    assert text.count("{") == text.count("}")
    assert r"\\sum" not in text


def test_every_part_can_be_set() -> None:
    for role in ROLES:
        for name, part in parts_of(role).items():
            left = re.sub(r"\\(text|operatorname)\{[^{}]*\}|\\[A-Za-z]+", "", _latex(part().formula))
            assert re.findall(r"[A-Za-z]{3,}", left) == [], name


@pytest.mark.parametrize(
    ("formula", "latex"),
    [
        ("(A - mean_batch A)", r"(A - \operatorname{mean}_{\text{batch}} A)"),
        ("sum_{s>=t} 0.95^(s-t) delta_s", r"\sum_{s\ge t} 0.95^{s-t} \delta_s"),
        ("1[not (A>0 and r>2)]", r"\mathbb{1}[\text{ not } (A>0 \text{ and } r>2)]"),
        ("w^3 if solved_i else -1", r"w^3 \text{ if } \text{solved}_i \text{ else } -1"),
        ("-f'_js(pi_old/p)", r"-f'_{\text{js}}(\pi_{\text{old}}/p)"),
    ],
)
def test_a_formula(formula: str, latex: str) -> None:
    assert _latex(formula) == latex
