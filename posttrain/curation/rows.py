"""The rows that are curated: the texts that filters compare, and the columns that are written."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from posttrain.data.examples import Completion, Example, Examples, Outcome
from posttrain.data.held_out import content
from posttrain.data.recorded import read
from posttrain.trajectory import Prompt, StopReason


@dataclass(frozen=True)
class Row:
    """One row: prompt, text (what duplicates are told by) and everything (what a benchmark's item is looked for in).

    columns: as they were read. group: rows of one prompt have the same. reward: of a trajectory, None where ungraded.
    problem: why the row cannot be written, where so.
    """

    id: str
    prompt: str
    text: str
    everything: str
    columns: Mapping[str, Any]
    group: str = ""
    reward: float | None = None
    problem: str | None = None


def rows_of(examples: Examples, kind: str) -> list[Row]:
    """A row for each example; for each of its recorded completions where kind is "trajectories".

    The text is the prompt's where kind is "prompts", else that of prompt and completions: two solutions of a problem
    are two demonstrations. System messages are left out.
    """
    if kind == "trajectories":
        return [row for example in examples for row in _trajectories(example)]
    return [_row(example, kind) for example in examples]


def text_of(part: Prompt | Completion | None) -> str:
    """The text of a prompt or a completion, its messages a paragraph each."""
    if part is None or isinstance(part, str):
        return part or ""
    return "\n\n".join(content(message) for message in part if message["role"] != "system")


def _row(example: Example, kind: str) -> Row:
    prompt = text_of(example.prompt)
    sides = (example.completion, example.chosen, example.rejected)
    everything = "\n\n".join(filter(None, (prompt, *map(text_of, sides))))
    return Row(example.id, prompt, prompt if kind == "prompts" else everything, everything, example.columns)


def _trajectories(example: Example) -> Iterator[Row]:
    prompt = example.prompt if isinstance(example.prompt, str) else [dict(message) for message in example.prompt]
    for number, outcome in enumerate(example.outcomes):
        completion, finished, num_turns = _said(outcome)
        columns: dict[str, Any] = {
            "prompt": prompt,
            "completion": completion,
            "reward": outcome.reward,
            "solved": outcome.solved,
            "stop_reason": str(StopReason.STOP if finished else StopReason.LENGTH),
        }
        text = f"{text_of(example.prompt)}\n\n{completion if isinstance(completion, str) else json.dumps(completion)}"
        problem = None if num_turns == 1 else f"{num_turns} turns; allowed: 1 (train on the run's directory itself)"
        name = f"{example.id}/{number}"
        yield Row(name, text_of(example.prompt), text, text, columns, example.id, outcome.reward, problem)


def _said(outcome: Outcome) -> tuple[str | list[dict[str, Any]], bool, int]:
    """The completion, whether it ended by itself, and its number of turns."""
    if outcome.sampled is None:
        said = outcome.completion
        return said if isinstance(said, str) else [dict(message) for message in said], outcome.finished, 1
    stored = read(outcome.sampled)
    turns = stored["turns"]
    text, finished = turns[-1]["text"], turns[-1]["stop_reason"] != StopReason.LENGTH
    return text if isinstance(stored["prompt"], str) else [{"role": "assistant", "content": text}], finished, len(turns)
