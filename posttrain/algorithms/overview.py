"""The table of algorithms: what each reads, and the four parts of each of its terms, at its default settings."""

from __future__ import annotations

import inspect
import re
from dataclasses import astuple, dataclass

from posttrain import catalog
from posttrain.estimator.parts import part_name

HEADER = ("name", "data", "denominator", "advantage", "mask", "paper")
_PAPER = re.compile(r"arXiv \d{4}\.\d{4,5}|Williams 1992")


@dataclass(frozen=True)
class Overview:
    """One row; where terms differ, one entry a term, in their order."""

    name: str
    data: str
    denominator: str
    advantage: str
    mask: str
    paper: str


def rows() -> list[Overview]:
    """A row for each algorithm of the catalogue that needs no settings."""
    found = []
    for member in catalog.members("algorithms"):
        build = catalog.find("algorithms", member.name)
        if any(p.default is inspect.Parameter.empty for p in inspect.signature(build).parameters.values()):
            continue
        algorithm = catalog.build("algorithms", member.name, {})
        parts = [term.describe() for term in algorithm.terms]
        columns = [
            _joined([part_name(part[role]) if role in part else "-" for part in parts])
            for role in ("denominator", "advantage", "mask")
        ]
        papers = _PAPER.findall(inspect.getdoc(build) or "")
        data = _joined([str(term.source) for term in algorithm.terms])
        paper = papers[0] if papers else ""
        found.append(Overview(member.name, data, columns[0], columns[1], columns[2], paper))
    return found


def markdown() -> str:
    """The same as a Markdown table."""
    lines = [HEADER, ("---",) * len(HEADER)]
    lines += [(f"`{row.name}`", *astuple(row)[1:]) for row in rows()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _joined(entries: list[str]) -> str:
    return entries[0] if len(set(entries)) == 1 else "; ".join(entries)
