"""Rollouts for the report out of a run's trajectory store: some groups of some steps, with every turn of theirs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

from posttrain.data.recorded import FOLDER, TOKENIZER, read, scan, shards
from posttrain.errors import DataError
from posttrain.evaluation.report_data import (
    MAX_ROLLOUT_CHARACTERS,
    MAX_TOKENS,
    Rollouts,
    Row,
    sampled_tokens,
    short,
    spread,
)
from posttrain.rollout.records import from_record
from posttrain.trajectory import Dropped, Turn

MAX_GROUPS, MAX_REPLACED, MAX_SAMPLES = 4, 1, 16
"""Groups of a step that are shown: trained on, and replaced or too old; trajectories of each."""
MAX_ROLLOUTS = 400
MAX_SAID = 4000
MAX_PICTURE = 300_000
"""Characters of a picture; larger ones are left out."""
_PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")

Decode = Callable[[tuple[int, ...]], str]
Group = tuple[int, int]


def stored_rollouts(run_dir: Path, limit: int = MAX_ROLLOUT_CHARACTERS) -> Rollouts | None:
    """Rollouts of the last step, the first, the middle one and so on; None without a store.

    At most MAX_ROLLOUTS, whole steps of them, and `limit` characters.

    A shard that cannot be read counts as one unreadable line.
    """
    files = shards(run_dir)
    if not files:
        return None
    found = Rollouts(num_played=0)
    steps: dict[int, tuple[dict[Group, list[str]], dict[Group, list[str]]]] = {}
    for file in files:
        try:
            for place, row in scan([file], ("step", "rank", "group", "dropped", "error")):
                found.num_played = (found.num_played or 0) + 1
                found.causes.update([] if row["error"] is None else [row["error"]])
                found.dropped.update([] if row["dropped"] is None else [row["dropped"]])
                whole = row["dropped"] in (Dropped.ALIKE, Dropped.STALE)
                groups = steps.setdefault(row["step"], ({}, {}))[whole]
                key = row["rank"], row["group"]
                if key in groups or len(groups) < (MAX_REPLACED if whole else MAX_GROUPS):
                    groups.setdefault(key, []).append(place)
        except DataError:
            found.num_unreadable += 1
    decode = _decoder(run_dir / FOLDER / TOKENIZER)
    full = False
    for step in spread(sorted(steps)):
        places = list(_places(*steps[step]))
        full = full or len(found.records) + len(places) > MAX_ROLLOUTS
        for place in () if full else places:
            record, prompt, cut = _record(read(place), decode)
            full = not found.add(record, prompt, cut=cut, limit=limit)
            if full:
                break
        if full:
            found.steps_left_out.append(step)
    found.sort()
    return found


def _places(*kinds: dict[Group, list[str]]) -> Iterator[str]:
    for groups in kinds:
        for key in sorted(groups):
            yield from groups[key][:MAX_SAMPLES]


def _decoder(path: Path) -> Decode | None:
    """The text of tokens; None where the store has no vocabulary."""
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))

    @cache
    def decode(ids: tuple[int, ...]) -> str:
        return tokenizer.decode(list(ids), skip_special_tokens=False)

    return decode


def _record(row: Row, decode: Decode | None) -> tuple[Row, Any, bool]:
    """A row as the page takes it, its prompt, and whether it was cut."""
    turns = from_record(row).turns
    names = ("step", "group", "prompt_id", "attempt", "by", "reward", "rewards", "solved", "error", "dropped")
    record = {name: row[name] for name in (*names, "sample", "rank", "generation_seconds", "grading_seconds")}
    record |= {"end": row["end"], "outcome": row["outcome"], "environment_seconds": row["environment_seconds"]}
    record["stop_reason"] = str(turns[-1].stop_reason) if turns else None
    tokens = [] if decode is None else [decode((token,)) for turn in turns for token in turn.completion_ids]
    logprobs = [value for turn in turns for value in turn.logprobs]
    sampled, cut = sampled_tokens(tokens, logprobs, row["advantage"], "\n\n".join(turn.text for turn in turns))
    return record | sampled | {"turns": _turns(turns, decode)}, row["prompt"], cut


def _turns(turns: tuple[Turn, ...], decode: Decode | None) -> list[Row]:
    """Each turn: where its tokens begin among those shown, which policy sampled it, and what was said before it.

    And what the environment said of it. Where a turn does not go on from the one before, all that it read is shown.
    """
    num_tokens = sum(len(turn.completion_ids) for turn in turns)
    before = [turn.prompt_ids[len(turn.prompt_ids) - turn.num_given :] for turn in turns[:1]]
    before += [turn.added(last) for last, turn in pairwise(turns)]
    shown: list[Row] = []
    start = 0
    for turn, said in zip(turns, before, strict=True):
        shown.append(
            {
                "start": _shown_at(start, num_tokens),
                "num_tokens": len(turn.completion_ids),
                "policy_version": turn.policy_version,
                "stop_reason": str(turn.stop_reason),
                "before": short(decode(_without_cells(turn, said)), MAX_SAID) if decode and said else "",
                "reward": turn.reward,
                "invalid": turn.invalid,
                "masked": turn.masked,
                "screenshot": _picture(turn.screenshot or next((one.image for one in turn.pictures[-1:]), "")),
            }
        )
        start += len(turn.completion_ids)
    return shown


def _without_cells(turn: Turn, said: tuple[int, ...]) -> tuple[int, ...]:
    """The end of a turn's prompt with one placeholder for each picture."""
    first = len(turn.prompt_ids) - len(said)
    cells = {place for one in turn.pictures for place in range(one.start + 1, one.stop)}
    return tuple(token for place, token in enumerate(said, start=first) if place not in cells)


def _picture(screenshot: str) -> str:
    """A picture that the page can show."""
    whole = _PICTURE.fullmatch(screenshot) if len(screenshot) <= MAX_PICTURE else None
    return screenshot if whole else ""


def _shown_at(index: int, num_tokens: int) -> int:
    """Where the token at `index` stands among those that are shown, the middle of many being one mark."""
    half = MAX_TOKENS // 2
    if num_tokens <= MAX_TOKENS or index <= half:
        return index
    return max(half, index - (num_tokens - MAX_TOKENS) + 1)
