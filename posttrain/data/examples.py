"""One row of data in canonical form, and a source of such rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

from posttrain.trajectory import Message, Prompt

Completion = str | tuple[Message, ...]


@dataclass(frozen=True)
class Outcome:
    """A recorded completion of a prompt: its reward (None: ungraded), and whether it ended by itself.

    sampled: where the trajectory is stored with the tokens and logprobs that were sampled (`recorded.read`); they are
    then trained on in place of completion, which is empty. steps: its text in steps, step_labels: a label for each,
    where one is known; attributes: the numbers of its row (see `data.labels`).
    """

    completion: Completion
    reward: float | None
    solved: bool = False
    finished: bool = True
    sampled: str | None = None
    steps: tuple[str, ...] = ()
    step_labels: tuple[float | None, ...] = ()
    attributes: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A prompt, and what is known about it.

    id: stable over runs (source and row number). completion: the demonstration, where the row has one. chosen,
    rejected: a preference's two sides, one alone where completions are judged singly; margin: by how much the chosen
    one should win. outcomes: recorded trajectories.
    Prompt and completions are all text or all conversations. columns: the row as it was read (and under the recipe's
    names), for rewards and templates. occurrence: how often whoever drew it (`trainer.window`) had drawn it before;
    rollouts of the next are others.
    """

    id: str
    prompt: Prompt
    completion: Completion | None = None
    chosen: Completion | None = None
    rejected: Completion | None = None
    margin: float = 0.0
    outcomes: tuple[Outcome, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    occurrence: int = 0

    @property
    def tools(self) -> Sequence[Mapping[str, Any]]:
        """JSON schemas of the functions that its conversations may call: the row's column of that name."""
        found = self.columns.get("tools") or ()
        return found if isinstance(found, list | tuple) else ()


@dataclass(frozen=True, eq=False)
class Examples(Sequence[Example]):
    """The usable rows of one source: `read(i)` makes the i-th of `num_examples`, when it is asked for.

    num_skipped: bad rows that were left out. first_problem: what was wrong with the first of them. vocabulary: where
    rows hold token ids, what tells which tokenizer they are of (`recorded.vocabulary_digest`).
    """

    source: str
    num_examples: int
    read: Callable[[int], Example]
    num_skipped: int = 0
    first_problem: str = ""
    vocabulary: str | None = None

    @property
    def description(self) -> str:
        """The source, and what was wrong with the first bad row that was left out."""
        return f"{self.source} (first bad row: {self.first_problem})" if self.num_skipped else self.source

    def only(self, rows: Sequence[int]) -> Examples:
        """The examples of these rows, in this order."""
        read = self.read
        return replace(self, num_examples=len(rows), read=lambda index: read(rows[index]))

    def __len__(self) -> int:
        return self.num_examples

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...
    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self.read(i) for i in range(*index.indices(self.num_examples))]
        if not -self.num_examples <= index < self.num_examples:
            raise IndexError(f"{self.source} has {self.num_examples} examples, not an example {index}")
        return self.read(index % self.num_examples)
