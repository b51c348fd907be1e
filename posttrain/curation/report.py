"""What curation removed, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from posttrain import table
from posttrain.curation.rows import Row
from posttrain.data.readers import excerpt

_EXAMPLES = 5


@dataclass(frozen=True)
class Removed:
    """A row that was left out."""

    id: str
    why: str
    text: str


@dataclass(frozen=True)
class Step:
    """One filter: the rows before it, those removed with the first examples, and figures of its own."""

    name: str
    rows: int
    removed: int
    examples: tuple[Removed, ...]
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Report:
    """Everything that became of a source. unchecked: benchmarks that could not be read, and why."""

    source: str
    kind: str
    settings: Mapping[str, Any]
    rows_read: int
    bad_rows: int
    first_bad_row: str
    steps: list[Step] = field(default_factory=list)
    unchecked: dict[str, str] = field(default_factory=dict)
    rows_written: int = 0

    def to_json(self) -> dict[str, Any]:
        """As a plain object."""
        return asdict(self)

    def text(self) -> str:
        """A table of the filters, then the first examples of each, then what was not checked."""
        rows = [[one.name, f"{one.rows:,}", f"{one.removed:,}", _figures(one.figures)] for one in self.steps]
        lines = [f"{self.source}: {self.rows_read:,} {self.kind} read, {self.rows_written:,} written"]
        if self.bad_rows:
            lines.append(f"{self.bad_rows:,} bad rows skipped, the first: {self.first_bad_row}")
        lines += ["", table.render(("filter", "rows", "removed", "figures"), rows), ""] if rows else []
        for step in self.steps:
            lines += [f"{step.name}: {one.id}: {one.why}: {one.text}" for one in step.examples[:2]]
        lines += [f"not checked: {name}: {why}" for name, why in self.unchecked.items()]
        return "\n".join(lines)


def step(name: str, rows: list[Row], removed: Mapping[int, str], figures: Mapping[str, Any]) -> tuple[Step, list[Row]]:
    """A filter's step and the rows that it leaves; `removed` says why, by place."""
    examples = tuple(
        Removed(rows[place].id, why, excerpt(rows[place].text, 160)) for place, why in list(removed.items())[:_EXAMPLES]
    )
    kept = [row for place, row in enumerate(rows) if place not in removed]
    return Step(name, len(rows), len(removed), examples, figures), kept


def _figures(figures: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {_shown(value)}" for name, value in figures.items())


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {one}" for key, one in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
