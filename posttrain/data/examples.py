"""One row of data in canonical form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from posttrain.trajectory import Message, Prompt

Completion = str | tuple[Message, ...]


@dataclass(frozen=True)
class Example:
    """A prompt, and what is known about it.

    id: stable over runs (source and row number). completion: the demonstration, where the row has one. chosen,
    rejected: a preference's two sides. Prompt and completions are all text or all conversations. columns: the row as
    it was read, for rewards and templates.
    """

    id: str
    prompt: Prompt
    completion: Completion | None = None
    chosen: Completion | None = None
    rejected: Completion | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
