"""The table of algorithms: family, data, and the parts of each term, at default settings; and how peers compare."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path

from posttrain import catalog
from posttrain.batch import Source
from posttrain.errors import UnknownNameError
from posttrain.estimator import Algorithm
from posttrain.estimator.parts import Part, part_name

HEADER = ("name", "family", "data", "needs", "denominator", "advantage", "mask", "likelihood", "paper")
PARITY_HEADER = ("algorithm", "peer", "version", "what", "largest difference")
PARITY = Path(__file__).with_name("parity.json")

_PAPER = re.compile(r"arXiv \d{4}\.\d{4,5}|Williams 1992")
_MODELS = {"reference_logprobs": "reference", "divergence": "teacher"}


@dataclass(frozen=True)
class Overview:
    """One row; where terms differ, one entry a term, in their order. needs: further models, and rewards."""

    name: str
    family: str
    data: str
    needs: str
    denominator: str
    advantage: str
    mask: str
    likelihood: str
    paper: str


def rows() -> list[Overview]:
    """A row for each algorithm of the catalogue that needs no settings."""
    found = []
    for member in catalog.members("algorithms"):
        build = catalog.find("algorithms", member.name)
        if any(p.default is inspect.Parameter.empty for p in inspect.signature(build).parameters.values()):
            continue
        found.append(_row(member.name, catalog.build("algorithms", member.name, {})))
    return found


def _row(name: str, algorithm: Algorithm) -> Overview:
    parts = [term.describe() for term in algorithm.terms]
    columns = {
        role: _joined([_named(part[role]) if role in part else "-" for part in parts])
        for role in ("denominator", "advantage", "mask", "likelihood")
    }
    needs = ["rewards"] if algorithm.grades_rollouts else []
    needs += [model for word, model in _MODELS.items() if word in algorithm.needs]
    needs += ["critic"] if algorithm.plan.critic is not None else []
    data = _joined([algorithm.plan.drawn(term.source) for term in algorithm.terms])
    return Overview(name, family(algorithm), data, ", ".join(needs) or "-", paper=paper_of(name), **columns)


def _named(part: Part) -> str:
    """The part's name, with that of the advantage it wraps."""
    inner = getattr(part, "advantage", None)
    return part_name(part) if inner is None else f"{part_name(part)}({part_name(inner)})"


def family(algorithm: Algorithm) -> str:
    """What kind of algorithm it is, by what it reads and asks for: one of `FAMILIES`."""
    return next(name for name, belongs in FAMILIES.items() if belongs(algorithm))


def _sources(algorithm: Algorithm) -> set[Source]:
    return {term.source for term in algorithm.terms}


def _advantages(algorithm: Algorithm) -> set[str]:
    return {part_name(term.describe()["advantage"]) for term in algorithm.terms if "advantage" in term.describe()}


FAMILIES: dict[str, Callable[[Algorithm], bool]] = {
    "reward model": lambda a: bool(a.plan.scores),
    "distillation": lambda a: "divergence" in a.needs,
    "preferences, online": lambda a: a.plan.pairing is not None or _paired_rollouts(a),
    "preferences": lambda a: Source.PREFERENCES in _sources(a),
    "target distribution": lambda a: a.plan.reference_samples > 0 or "target_divergence" in _advantages(a),
    "hybrid": lambda a: _sources(a) >= {Source.ROLLOUTS, Source.DEMONSTRATIONS},
    "resets": lambda a: a.plan.reset_probability > 0,
    "offline RL": lambda a: a.plan.critic == "actions",
    "imitation": lambda a: Source.ROLLOUTS not in _sources(a) or _advantages(a) == {"constant"},
    "policy gradient": lambda a: True,
}
"""Family -> whether an algorithm belongs to it, in the order in which they are asked."""


def _paired_rollouts(algorithm: Algorithm) -> bool:
    return any(term.source is Source.ROLLOUTS and term.couples == "pair" for term in algorithm.terms)


def paper_of(name: str) -> str:
    """The first paper that the algorithm's docstring cites; empty where it cites none."""
    papers = _PAPER.findall(inspect.getdoc(catalog.find("algorithms", name)) or "")
    return papers[0] if papers else ""


def parity() -> list[tuple[str, ...]]:
    """`PARITY_HEADER`'s columns: an algorithm, a peer that has it, and the largest relative difference of gradients.

    UnknownNameError where the figures are not there; `scripts/parity` makes them.
    """
    if not PARITY.is_file():
        raise UnknownNameError(f"{PARITY}: no such file; run scripts/parity to compare with the peers")
    measured = json.loads(PARITY.read_text(encoding="utf-8"))
    return [
        (row["algorithm"], row["peer"], row.get("version", ""), row["what"], f"{row['largest_difference']:.1e}")
        for row in measured
    ]


def markdown() -> str:
    """The same as a Markdown table."""
    lines = [HEADER, ("---",) * len(HEADER)]
    lines += [(f"`{row.name}`", *astuple(row)[1:]) for row in rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _joined(entries: list[str]) -> str:
    return entries[0] if len(set(entries)) == 1 else "; ".join(entries)
