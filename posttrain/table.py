"""Tables for a terminal: cells wrap at words, and what does not fit is left out by column, never cut off."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

GAP = "  "


def render(
    header: Sequence[str], rows: Sequence[Sequence[str]], width: int | None = None, optional: Sequence[str] = ()
) -> str:
    """Columns side by side, at most `width` characters wide; None does not wrap.

    optional: columns that may be left out where not even the longest words fit, the first of them first; a last line
    names what is missing. A table that is still too wide stays so.
    """
    if width is None:
        return _lines(header, rows, [max(map(len, column)) for column in zip(header, *rows, strict=True)])
    shown = list(header)
    left_out: list[str] = []
    while _too_wide(_least(shown, _pick(header, rows, shown)), width) and len(left_out) < len(optional):
        left_out.append(optional[len(left_out)])
        shown.remove(left_out[-1])
    picked = _pick(header, rows, shown)
    least = _least(shown, picked)
    widths = [max(map(len, column)) for column in zip(shown, *picked, strict=True)]
    while _too_wide(widths, width) and widths != least:
        widest = max(range(len(widths)), key=lambda column: (widths[column] > least[column], widths[column]))
        widths[widest] -= 1
    text = _lines(shown, picked, widths)
    if not left_out:
        return text
    missing = [name for name in header if name in left_out]
    note = f"Left out at {width} columns: {', '.join(missing)}; a wider terminal, a file or a pipe gets them."
    return f"{text}\n\n{textwrap.fill(note, width)}"


def _pick(header: Sequence[str], rows: Sequence[Sequence[str]], shown: Sequence[str]) -> list[list[str]]:
    """The rows' cells of the columns `shown`."""
    return [[cell for name, cell in zip(header, row, strict=True) if name in shown] for row in rows]


def _least(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[int]:
    """Each column's longest word."""
    return [max(len(word) for cell in column for word in cell.split()) for column in zip(header, *rows, strict=True)]


def _too_wide(widths: Sequence[int], width: int) -> bool:
    return sum(widths) + len(GAP) * (len(widths) - 1) > width


def _lines(header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    lines = []
    for row in (header, *rows):
        cells = [
            textwrap.wrap(cell, width, break_long_words=False, break_on_hyphens=False)
            for cell, width in zip(row, widths, strict=True)
        ]
        for line in zip_longest(*cells, fillvalue=""):
            lines.append(GAP.join(part.ljust(width) for part, width in zip(line, widths, strict=True)).rstrip())
    return "\n".join(lines)
