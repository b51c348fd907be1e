"""What the report shows, read from a run directory and made small: curves of at most 2,000 points, some rollouts."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from posttrain.picture import in_words

MAX_POINTS = 2000
MAX_ROLLOUT_CHARACTERS = 6_000_000
MAX_TOKENS = 4000
MAX_TEXT = 20_000

Row = dict[str, Any]


@dataclass
class Rollouts:
    """Trajectories to read, the newest step first.

    prompts: each distinct one once; a record's "prompt" is its index. steps_left_out: steps whose rollouts were not (or
    not wholly) taken. num_cut: records shortened in their middle. num_played: of the whole run, where that is known.
    causes: why rollouts failed, dropped: why nothing was trained on them, both counted over all that were looked at.
    """

    records: list[Row] = field(default_factory=list)
    prompts: list[Any] = field(default_factory=list)
    steps_left_out: list[int] = field(default_factory=list)
    num_unreadable: int = 0
    num_cut: int = 0
    num_played: int | None = None
    causes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    _indices: dict[str, int] = field(default_factory=dict)
    _used: int = 0

    def add(self, record: Row, prompt: Any, *, cut: bool, limit: int) -> bool:
        """Take a record and its prompt, unless the page would be more than `limit` characters long; whether it fits."""
        written = json.dumps(prompt)
        index = self._indices.get(written, len(self.prompts))
        new = index == len(self.prompts)
        size = len(json.dumps(record)) + (len(written) if new else 0)
        if self._used + size > limit:
            return False
        self._used += size
        self._indices[written] = index
        if new:
            self.prompts.append(_short_prompt(prompt))
        self.records.append(record | {"prompt": index})
        self.num_cut += cut
        return True

    def sort(self) -> None:
        """The newest step first."""
        self.steps_left_out.sort()
        self.records.sort(key=lambda record: -int(record["step"]))


def read_jsonl(path: Path) -> tuple[list[Row], int]:
    """The objects of a file, inf and nan as None, and the number of lines that hold none; a missing file is empty."""
    rows: list[Row] = []
    num_bad = 0
    for row in _rows(path):
        if row is None:
            num_bad += 1
        else:
            rows.append(row)
    return rows, num_bad


def _rows(path: Path) -> Iterator[Row | None]:
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8", errors="replace"), parse_constant=lambda _: None)
            except (json.JSONDecodeError, RecursionError):
                row = None
            yield _finite(row) if isinstance(row, dict) else None


def _finite(value: Any) -> Any:
    """1e999 is valid JSON and infinite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list) else value


def curves(metrics: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """Each numeric key's steps and values, in the order of first occurrence."""
    names = dict.fromkeys(name for row in metrics for name in row if name != "step")
    found = {}
    for name in names:
        values = [row.get(name) for row in metrics]
        points = [
            (row["step"], float(f"{value:.6g}"))
            for row, value in zip(metrics, values, strict=True)
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]
        if points:
            steps, kept = zip(*downsample(points, MAX_POINTS), strict=True)
            found[name] = {"steps": list(steps), "values": list(kept)}
    return found


def reward_weights(recipe: str) -> dict[str, float]:
    """The weight of each reward of a recipe's text; {} where it cannot be read."""
    try:
        tree = yaml.safe_load(recipe) or {}
        rewards = tree.get("rewards") or [] if isinstance(tree, dict) else []
        return {str(one["name"]): float(one.get("weight", 1.0)) for one in rewards}
    except (yaml.YAMLError, TypeError, KeyError, ValueError, AttributeError):
        return {}


def downsample(points: Sequence[tuple[int, float]], limit: int) -> list[tuple[int, float]]:
    """At most `limit` points: the lowest and the highest of each of limit / 2 equal parts, so that spikes stay."""
    if len(points) <= limit:
        return list(points)
    num_parts = limit // 2
    kept = []
    for part in range(num_parts):
        chunk = points[part * len(points) // num_parts : (part + 1) * len(points) // num_parts]
        extremes = {min(chunk, key=lambda point: point[1]), max(chunk, key=lambda point: point[1])}
        kept += sorted(extremes)
    return kept


def read_rollouts(folder: Path, limit: int = MAX_ROLLOUT_CHARACTERS) -> Rollouts:
    """Rollouts of the last step, the first, the middle one and so on, up to `limit` characters of JSON."""
    files = {
        int(match[1]): path
        for path in (folder.glob("step_*.jsonl") if folder.is_dir() else ())
        if (match := re.fullmatch(r"step_(\d+)\.jsonl", path.name))
    }
    found = Rollouts()
    full = False
    for step in spread(sorted(files)):
        for row in () if full else _rows(files[step]):
            if row is None:
                found.num_unreadable += 1
                continue
            record, cut = _record(row, step)
            full = not found.add(record, row.get("prompt"), cut=cut, limit=limit)
            if full:
                break
            found.causes.update([str(row["error"])] if row.get("error") else [])
        if full:
            found.steps_left_out.append(step)
    found.sort()
    return found


def spread(steps: Sequence[int]) -> Iterator[int]:
    """Last, first, then the middle of every gap, wide gaps first."""
    if steps:
        yield steps[-1]
    if len(steps) > 1:
        yield steps[0]
    gaps = [(0, len(steps) - 1)]
    while gaps:
        wider = []
        for low, high in gaps:
            if high - low > 1:
                middle = (low + high) // 2
                yield steps[middle]
                wider += [(low, middle), (middle, high)]
        gaps = wider


def _record(row: Row, step: int) -> tuple[Row, bool]:
    """A line of rollouts/ as the page takes it, and whether it was cut."""
    names = ("group", "prompt_id", "attempt", "by", "reward", "rewards", "solved", "stop_reason", "error")
    record = {"step": step} | {name: row.get(name) for name in (*names, "policy_version")}
    tokens = [str(token) for token in row.get("tokens") or ()]
    sampled, cut = sampled_tokens(tokens, row.get("logprobs"), row.get("advantage"), str(row.get("completion") or ""))
    return record | sampled, cut


def sampled_tokens(tokens: list[str], logprobs: Any, advantage: Any, completion: str) -> tuple[Row, bool]:
    """What was sampled as the page takes it, and whether it was cut: tokens, or the text where there are none.

    Logprobs and advantages only where they fit the tokens; an advantage that all share once.
    """
    if not tokens:
        return {"completion": short(completion)}, len(completion) > MAX_TEXT
    numbers = _numbers(advantage, len(tokens))
    record = {
        "tokens": _ends(tokens, f" [… {len(tokens) - MAX_TOKENS} tokens left out …] "),
        "logprobs": _ends(_numbers(logprobs, len(tokens)), None),
        "advantage": numbers[0] if len(set(numbers)) == 1 else _ends(numbers, None),
    }
    return record, len(tokens) > MAX_TOKENS


def _numbers(values: Any, length: int) -> list[float | None]:
    """As many numbers as there are tokens, rounded; None where one is missing."""
    given = values if isinstance(values, list) and len(values) == length else [None] * length
    return [float(f"{value:.3g}") if isinstance(value, int | float) else None for value in given]


def _ends(values: list[Any], middle: Any) -> list[Any]:
    if len(values) <= MAX_TOKENS:
        return values
    return [*values[: MAX_TOKENS // 2], middle, *values[-MAX_TOKENS // 2 :]]


def short(text: str, limit: int = MAX_TEXT) -> str:
    """The text, or its two ends."""
    if len(text) <= limit:
        return text
    return f"{text[: limit // 2]} [… {len(text) - limit} characters left out …] {text[-limit // 2 :]}"


def _short_prompt(prompt: Any) -> list[Row]:
    """A prompt as messages; plain text has no role."""
    messages: Iterable[Any] = prompt if isinstance(prompt, list) else [{"role": "", "content": prompt}]
    shown = []
    for message in messages:
        known = message if isinstance(message, dict) else {"role": "", "content": message}
        content = known.get("content")
        parts = [in_words(content)]
        if known.get("tool_calls"):
            parts.append(json.dumps(known["tool_calls"]))
        shown.append({"role": str(known.get("role") or ""), "content": short("\n".join(filter(None, parts)))})
    return shown
