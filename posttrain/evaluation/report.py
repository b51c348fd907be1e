"""RUN_DIR/report.html: one self-contained page of a run, from whatever files the run has left so far.

Curves, evaluation with intervals, rollouts to read, objective, data and failure counts, recipe. The page loads nothing
(a content security policy forbids it); model text reaches it only as escaped text or as JSON whose markup characters
are escaped. Page, style and script lie beside this file.
"""

from __future__ import annotations

import html
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from posttrain import __version__
from posttrain.errors import DataError
from posttrain.evaluation.overoptimisation import Overoptimisation, overoptimisation
from posttrain.evaluation.report_data import Rollouts, curves, read_jsonl, read_rollouts, reward_weights
from posttrain.evaluation.report_store import stored_rollouts
from posttrain.trajectory import Dropped

_HERE = Path(__file__).parent
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_COUNTS = {
    "num_groups": "groups",
    "num_graded": "graded trajectories",
    "num_ungraded": "ungraded trajectories",
    "num_truncated": "truncated completions",
    "num_sequences": "training sequences",
    "num_pruned": "sequences pruned before the forward pass",
}
_DROPPED: dict[str, str] = {
    Dropped.ALIKE: "dynamic sampling drew another prompt: all of the group ended alike",
    Dropped.STALE: "sampled by a policy older than the recipe allows",
    Dropped.UNUSED: "it failed, or no pair of rollouts has it",
}


def write_report(run_dir: Path) -> Path:
    """Write run_dir/report.html and return its path; DataError where the directory holds nothing of a run.

    Each file may be missing; lines that cannot be read (a killed run's last one) are left out and counted on the page.
    A step that occurs twice, after a resume, counts once, as written last.
    """
    metrics, bad_metrics = read_jsonl(run_dir / "metrics.jsonl")
    evaluations, bad_evaluations = read_jsonl(run_dir / "evaluations.jsonl")
    rollouts = stored_rollouts(run_dir) or read_rollouts(run_dir / "rollouts")
    texts = {name: _text(run_dir / name) for name in ("objective.txt", "recipe.yaml")}
    if not metrics and not evaluations and not rollouts.records and not any(texts.values()):
        raise DataError(
            f"{run_dir}: not a run directory; a report is made of metrics.jsonl, evaluations.jsonl, "
            "trajectories/, rollouts/, objective.txt or recipe.yaml, and none is there"
        )
    metrics = list({row["step"]: row for row in metrics if isinstance(row.get("step"), int)}.values())
    evaluations = list({(row.get("step"), row.get("benchmark")): row for row in evaluations}.values())
    unreadable = {
        "metrics.jsonl": bad_metrics,
        "evaluations.jsonl": bad_evaluations,
        "rollouts/" if rollouts.num_played is None else "trajectories/": rollouts.num_unreadable,
    }
    gold = overoptimisation(metrics, reward_weights(texts["recipe.yaml"]))
    parts = {
        "title": _escape(run_dir.resolve().name),
        "version": _escape(__version__),
        "style": (_HERE / "report.css").read_text(),
        "script": (_HERE / "report.js").read_text(),
        "summary": _summary(metrics, evaluations),
        "notes": _notes(unreadable),
        "evaluations": _evaluation_table(evaluations),
        "left_out": _left_out(rollouts),
        "overoptimised": _overoptimised(gold),
        "objective": _preformatted(texts["objective.txt"], "no objective.txt"),
        "counts": _counts(metrics, rollouts),
        "recipe": _preformatted(texts["recipe.yaml"], "no recipe.yaml"),
        "data": _json(
            {
                "curves": curves(metrics),
                "gold": [{"name": one.name, "kl": one.kl, "proxy": one.proxy, "gold": one.gold} for one in gold],
                "evaluations": [row for row in evaluations if _is_number(row.get("pass_rate"))],
                "prompts": rollouts.prompts,
                "rollouts": rollouts.records,
            }
        ),
    }
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], (_HERE / "report.html").read_text())
    path = run_dir / "report.html"
    unfinished = path.with_suffix(".html.part")
    unfinished.write_text(page, encoding="utf-8")
    os.replace(unfinished, path)  # noqa: PTH105
    return path


def _escape(value: object) -> str:
    """Text for HTML; control characters, direction overrides and lone surrogates become visible."""
    return html.escape(_CONTROL.sub(lambda match: f"\\u{ord(match[0]):04x}", str(value)))


def _json(value: object) -> str:
    """JSON in ASCII that cannot end its script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _percent(value: object) -> str:
    return f"{100 * value:.1f} %" if isinstance(value, int | float) else "–"


def _interval(row: Mapping[str, Any]) -> str:
    match row.get("interval"):
        case [float() | int() as low, float() | int() as high]:
            return f"{100 * low:.1f} – {100 * high:.1f} %"
    return "–"


def _figure(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else ("–" if value is None else _escape(value))


def _duration(seconds: object) -> str:
    if not isinstance(seconds, int | float):
        return "–"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s" if minutes else f"{rest} s"


def _summary(metrics: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> str:
    """The tiles on top: how far, how long, how well."""
    last = metrics[-1] if metrics else {}
    tiles = [
        ("optimiser steps", _figure(last.get("step")), ""),
        ("time", _duration(last.get("time_seconds")), ""),
        ("tokens per second", _figure(_median(metrics, "tokens_per_second")), "median"),
        ("reward", _figure(last.get("reward_mean")), "last step"),
    ]
    for benchmark in dict.fromkeys(row.get("benchmark") for row in evaluations):
        rows = [row for row in evaluations if row.get("benchmark") == benchmark]
        before = f", {_percent(rows[0].get('pass_rate'))} at first" if len(rows) > 1 else ""
        tiles.append((f"{benchmark}: pass rate", _percent(rows[-1].get("pass_rate")), _interval(rows[-1]) + before))
    return "".join(
        f"<div class=tile><span>{_escape(name)}</span><b>{value}</b><small>{note}</small></div>"
        for name, value, note in tiles
        if value != "–"
    )


def _median(metrics: Iterable[Mapping[str, Any]], key: str) -> float | None:
    values = sorted(row[key] for row in metrics if _is_number(row.get(key)))
    return values[len(values) // 2] if values else None


def _notes(unreadable: Mapping[str, int]) -> str:
    parts = {"trajectories/": "shard"}
    notes = [f"{n} unreadable {parts.get(name, 'line')}(s) of {name} left out." for name, n in unreadable.items() if n]
    return "".join(f"<p class=note>{note}</p>" for note in notes)


def _overoptimised(found: list[Overoptimisation]) -> str:
    """What became of the rewards that weigh nothing; empty where there is none."""
    if not found:
        return ""
    lines = "".join(f"<p>{_escape(one.text())}</p>" for one in found)
    return f"<section><h2>Over-optimisation</h2><div class=charts id=gold-charts></div>{lines}</section>"


def _evaluation_table(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return "<p class=empty>This run was not evaluated.</p>"
    heads = ["step", "benchmark", "pass rate", "95 % interval", "solved", "ungraded", "truncated", "samples", "seconds"]
    lines = []
    for row in rows:
        cells = [row.get("step"), row.get("benchmark"), _percent(row.get("pass_rate")), _interval(row)]
        solved = f"{_figure(row.get('num_solved'))} of {_figure(row.get('n'))}"
        cells += [solved, *(row.get(key) for key in ("num_ungraded", "num_truncated", "samples", "seconds"))]
        lines.append("".join(f"<td>{_figure(cell)}</td>" for cell in cells))
    return _table(heads, lines)


def _counts(metrics: list[dict[str, Any]], rollouts: Rollouts) -> str:
    """What went through the run, and why trajectories were left ungraded."""
    rows = []
    for key, name in _COUNTS.items():
        values = [row[key] for row in metrics if _is_number(row.get(key))]
        if values:
            rows.append((name, sum(values)))
    last = metrics[-1] if metrics else {}
    rows += [(name, last[key]) for key, name in (("epoch", "epoch"), ("skipped_steps", "skipped steps")) if key in last]
    total = _table(["whole run", ""], [f"<td>{name}</td><td>{_figure(value)}</td>" for name, value in rows])
    among = f"the {len(rollouts.records)} on this page" if rollouts.num_played is None else "all"
    failures = _causes(f"why rollouts failed, among {among}", rollouts.causes)
    dropped = Counter({_DROPPED.get(reason, reason): count for reason, count in rollouts.dropped.items()})
    left_out = _causes("why nothing was trained on rollouts", dropped)
    return (total if rows else "") + failures + left_out or "<p class=empty>No counts.</p>"


def _causes(head: str, causes: Counter[str]) -> str:
    lines = [f"<td>{_figure(count)}</td><td>{_escape(cause)}</td>" for cause, count in causes.most_common(20)]
    return _table(["", head], lines) if lines else ""


def _left_out(rollouts: Rollouts) -> str:
    notes = []
    kept = len({record["step"] for record in rollouts.records})
    if rollouts.num_played is not None:
        if rollouts.num_played > len(rollouts.records):
            notes.append(
                f"{len(rollouts.records):,} of the run's {rollouts.num_played:,} rollouts are here, of {kept} steps "
                "spread over it; trajectories/ holds all."
            )
    elif rollouts.steps_left_out:
        steps = ", ".join(map(str, rollouts.steps_left_out[:40])) + (", …" if len(rollouts.steps_left_out) > 40 else "")
        notes.append(
            f"Rollouts of {kept} steps are here; to bound the size of this page, those of steps {steps} are not."
        )
    if rollouts.num_cut:
        notes.append(f"Very long rollouts are cut in the middle ({rollouts.num_cut}).")
    return f"<p class=note>{' '.join(notes)}</p>" if notes else ""


def _table(heads: Iterable[str], lines: Iterable[str]) -> str:
    head = "".join(f"<th>{_escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=scroll><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"


def _preformatted(text: str, missing: str) -> str:
    return f"<pre>{_escape(text.rstrip())}</pre>" if text.strip() else f"<p class=empty>{_escape(missing)}</p>"
