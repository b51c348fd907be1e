"""`posttrain eval A.json B.json --compare`: two models on the same items, as a table and as a page to read."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.errors import DataError
from posttrain.evaluation.paired import Comparison
from posttrain.evaluation.statistics import wilson

_STYLE = Path(__file__).parent / "compare.css"
_MAX_CHARACTERS = 4000
_MAX_ASKED = 160

Items = Mapping[str, list[dict[str, Any]]]
"""The completions of each item."""


def read_results(file: Path) -> dict[str, Items]:
    """Benchmark -> item -> its completions, of a file that `posttrain eval --json` wrote; DataError for any other."""
    try:
        content = json.loads(file.read_text())
        found: dict[str, Items] = {}
        for one in content["evaluations"]:
            items: dict[str, list[dict[str, Any]]] = {}
            for completion in one["completions"]:
                items.setdefault(completion["id"], []).append(completion)
            found[one["benchmark"]] = items
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{file}: not results of `posttrain eval --json FILE`: {error}") from error
    return found


def compare(first: Path, second: Path) -> dict[str, Comparison]:
    """The benchmarks that both files hold; DataError where they share none, or none of its graded items."""
    ours, theirs = read_results(first), read_results(second)
    found = {name: Comparison(_shares(ours[name]), _shares(theirs[name])) for name in ours if name in theirs}
    found = {name: one for name, one in found.items() if one.common}
    if not found:
        raise DataError(
            f"{first} and {second} share no graded item: the first holds {', '.join(ours) or 'nothing'}, the second "
            f"{', '.join(theirs) or 'nothing'}"
        )
    return found


def write_page(file: Path, first: Path, second: Path) -> None:
    """An HTML page: the figures, and each item that one of the two solves more often, with both completions."""
    titles = first.stem, second.stem
    results = read_results(first), read_results(second)
    sections = [
        _section(name, one, titles, [found[name] for found in results]) for name, one in compare(first, second).items()
    ]
    file.write_text(
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" '
        f"content=\"default-src 'none'; style-src 'unsafe-inline'\"><title>{_text(first.stem)} and "
        f"{_text(second.stem)}</title><style>{_STYLE.read_text()}</style></head><body><h1>{_text(first.stem)} and "
        f"{_text(second.stem)}</h1>{''.join(sections)}</body></html>\n"
    )


def _shares(items: Items) -> dict[str, float]:
    """The solved share of each item's graded completions."""
    shares = {}
    for item, completions in items.items():
        graded = [one["solved"] for one in completions if one["solved"] is not None]
        if graded:
            shares[item] = sum(graded) / len(graded)
    return shares


def _section(name: str, one: Comparison, titles: tuple[str, str], found: list[Items]) -> str:
    """A benchmark: the figures of both, the test of their difference, and the items that differ, lost ones first."""
    rows = "".join(
        f"<tr><th>{_text(title)}</th><td>{rate:.1%}</td><td>{_rate_interval(one, rate)}</td><td>{len(alone)}</td></tr>"
        for title, rate, alone in zip(titles, one.rates, (one.only_first, one.only_second), strict=True)
    )
    low, high = one.interval
    worse = [item for item in one.common if one.second[item] < one.first[item]]
    better = [item for item in one.common if one.second[item] > one.first[item]]
    parts = [f"<h2>{_text(name)}</h2>"]
    parts.append("<table><tr><td></td><td>pass rate</td><td>95 % interval</td><td>solved alone</td></tr>")
    parts.append(f"{rows}</table><p>Difference {one.difference:+.1%}, 95 % interval {low:+.1%} to {high:+.1%}, ")
    parts.append(f"p = {one.p_value:.3g} ({one.test}), over {len(one.common)} items.</p>")
    for title, items in ((titles[0], worse), (titles[1], better)):
        parts.append(f"<h3>{len(items)} items go better with {_text(title)}</h3>")
        parts += [_item(item, one, titles, [side[item] for side in found]) for item in items]
    return f"<section>{''.join(parts)}</section>"


def _rate_interval(one: Comparison, rate: float) -> str:
    if not one.is_binary:
        return ""
    low, high = wilson(round(rate * len(one.common)), len(one.common))
    return f"{low:.1%} to {high:.1%}"


def _item(item: str, one: Comparison, titles: tuple[str, str], completions: list[list[dict[str, Any]]]) -> str:
    """A line with the beginning of the question; opened, the prompt and both sides' completions."""
    sign = "better" if one.second[item] > one.first[item] else "worse"
    cells = "".join(
        f"<div><h4>{_text(title)}</h4>{''.join(map(_completion, found))}</div>"
        for title, found in zip(titles, completions, strict=True)
    )
    prompt = completions[0][0].get("prompt", "")
    asked = prompt if isinstance(prompt, str) else str(prompt[-1]["content"]) if prompt else ""
    shown = prompt if isinstance(prompt, str) else "\n".join(f"{m['role']}: {m['content']}" for m in prompt)
    shares = "" if one.is_binary else f" {one.first[item]:.0%} to {one.second[item]:.0%}"
    return (
        f'<details class="{sign}"><summary>{_text(item)}{shares} <span>{_text(asked[:_MAX_ASKED])}</span></summary>'
        f'<pre class="prompt">{_text(shown)}</pre><div class="sides">{cells}</div></details>'
    )


def _completion(row: dict[str, Any]) -> str:
    mark = {True: "solved", False: "not solved", None: "ungraded"}[row["solved"]]
    mark += f", answer {_text(row['answer'])}" if row.get("answer") is not None else ""
    text = row["completion"]
    cut = f"\n[{len(text) - _MAX_CHARACTERS} more characters]" if len(text) > _MAX_CHARACTERS else ""
    return f"<p>{mark}</p><pre>{_text(text[:_MAX_CHARACTERS] + cut)}</pre>"


def _text(value: object) -> str:
    return html.escape(str(value))
