"""A trajectory as a plain object and back: what checkpoints and the trajectory store hold.

Tokens, logprobs and rewards survive JSON exactly (Python writes the shortest decimal that reads back as the same
double). Of `columns`, so does what JSON has; another value (a date, an image) becomes its text on the way through
`to_json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from posttrain.picture import Picture
from posttrain.trajectory import Dropped, EpisodeEnd, Group, StopReason, Trajectory, Turn

Record = dict[str, Any]


def as_record(trajectory: Trajectory) -> Record:
    """Every field by its name; tuples as lists, turns as objects. images: those of the turns, each once."""
    record: Record = {entry.name: getattr(trajectory, entry.name) for entry in fields(Trajectory)}
    prompt = trajectory.prompt
    images: dict[str, int] = {}
    return record | {
        "prompt": prompt if isinstance(prompt, str) else [dict(message) for message in prompt],
        "columns": dict(trajectory.columns),
        "turns": [_turn_record(turn, images) for turn in trajectory.turns],
        "images": list(images),
        "rewards": dict(trajectory.rewards),
        "dropped": None if trajectory.dropped is None else str(trajectory.dropped),
        "end": None if trajectory.end is None else str(trajectory.end),
        "turn_rewards": None if trajectory.turn_rewards is None else list(trajectory.turn_rewards),
    }


def from_record(record: Mapping[str, Any]) -> Trajectory:
    """What `as_record` made a record of; keys that are no field are left out, KeyError for a field that is missing."""
    values = {entry.name: record[entry.name] for entry in fields(Trajectory)}
    prompt, dropped, end, spread = (values[name] for name in ("prompt", "dropped", "end", "turn_rewards"))
    values["prompt"] = prompt if isinstance(prompt, str) else tuple(prompt)
    images = record.get("images") or ()
    values["turns"] = tuple(_turn(turn, images) for turn in values["turns"])
    values["dropped"] = None if dropped is None else Dropped(dropped)
    values["end"] = None if end is None else EpisodeEnd(end)
    values["turn_rewards"] = None if spread is None else tuple(spread)
    return Trajectory(**values)


def group_record(group: Group) -> Record:
    """A group as a plain object."""
    return {"prompt_id": group.prompt_id, "trajectories": [as_record(one) for one in group.trajectories]}


def group_of(record: Mapping[str, Any]) -> Group:
    """What `group_record` made a record of."""
    return Group(record["prompt_id"], tuple(from_record(one) for one in record["trajectories"]))


def to_json(value: Any) -> str:
    """Compact JSON; what JSON does not have as its text."""
    return json.dumps(value, default=str, separators=(",", ":"))


def _turn_record(turn: Turn, images: dict[str, int]) -> Record:
    """A turn; its pictures as objects with the number of their image, which is added to `images` where it is new."""
    record: Record = {entry.name: getattr(turn, entry.name) for entry in fields(Turn)}
    lists: Record = {name: list(record[name]) for name in _TUPLES}
    lists["allowed"] = [list(one) for one in turn.allowed]
    lists["pictures"] = [
        {
            "start": one.start,
            "height": one.height,
            "width": one.width,
            "image": images.setdefault(one.image, len(images)),
        }
        for one in turn.pictures
    ]
    return record | lists | {"stop_reason": str(turn.stop_reason)}


def _turn(record: Mapping[str, Any], images: Sequence[str]) -> Turn:
    pictures = record.get("pictures") or ()
    values: Record = {entry.name: record[entry.name] for entry in fields(Turn) if entry.name not in _ADDED}
    tuples: Record = {name: tuple(values[name]) for name in _TUPLES}
    tuples["allowed"] = tuple(tuple(one) for one in record.get("allowed") or ())
    tuples["pictures"] = tuple(Picture(**one | {"image": images[one["image"]]}) for one in pictures)
    return Turn(**values | tuples | {"stop_reason": StopReason(values["stop_reason"])})


_ADDED = ("pictures", "allowed")
"""What was written before there were any has none."""
_TUPLES = ("prompt_ids", "completion_ids", "logprobs")
