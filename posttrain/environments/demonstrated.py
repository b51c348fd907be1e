"""Another environment with the nearest demonstration in context: what was done in a task like this one.

LearnAct's three steps (arXiv 2504.13805, sec. 4) without its models: parse a recorded demonstration into its
instruction and its actions, seek the nearest by the words of the instruction, act with it in the prompt.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain import catalog
from posttrain.environments import Environment, Episode, Observation
from posttrain.errors import DataError, RecipeError
from posttrain.trajectory import Message, Prompt

_WORD = re.compile(r"\w+")


def demonstrated(
    *,
    inner: str | dict[str, Any],
    demonstrations: str,
    nearest: int = 1,
    observations: bool = False,
    same_task: bool = False,
) -> Environment:
    """The environment `inner` (a name, or {name: ..., settings}), with the `nearest` demonstrations before its prompt.

    demonstrations: a .jsonl file as `posttrain record` writes it. Nearness: cosine of the words of the two
    instructions, the last message at reset, weighted by their rarity among the demonstrations; the first wins a tie.
    observations: show what the environment said between the actions too. same_task: allow a demonstration of the very
    task that is played (all columns of it equal); else it is left out, so that training does not copy.
    """
    if nearest < 1:
        raise RecipeError(f"environment demonstrated: nearest is {nearest}; allowed: at least 1")
    settings = {"name": inner} if isinstance(inner, str) else dict(inner)
    if "name" not in settings:
        raise RecipeError(f"environment demonstrated: inner is {inner!r}; allowed: a name, or {{name: ..., settings}}")
    built: Environment = catalog.build("environments", settings.pop("name"), settings)
    return _Demonstrated(built, Library(tuple(_read(Path(demonstrations)))), nearest, observations, same_task)


@dataclass(frozen=True)
class Demonstration:
    """A recorded episode: its instruction, what was said after it, and the columns of its task."""

    instruction: str
    completion: tuple[Message, ...]
    columns: Mapping[str, Any]

    def text(self, observations: bool) -> str:
        """The demonstration as the policy reads it."""
        shown = [one for one in self.completion if observations or one["role"] == "assistant"]
        marks = {"assistant": "> "}
        return "\n".join([self.instruction, *(f"{marks.get(one['role'], '')}{one['content']}" for one in shown)])


@dataclass(frozen=True)
class Library:
    """Demonstrations, and how near their instructions are to another."""

    demonstrations: Sequence[Demonstration]

    @cached_property
    def _rarity(self) -> Mapping[str, float]:
        """log(N / number of instructions with the word) + 1."""
        found = Counter(word for one in self.demonstrations for word in set(_words(one.instruction)))
        return {word: math.log(len(self.demonstrations) / count) + 1 for word, count in found.items()}

    @cached_property
    def _vectors(self) -> Sequence[Mapping[str, float]]:
        return [self._vector(one.instruction) for one in self.demonstrations]

    def seek(self, instruction: str, number: int, left_out: Mapping[str, Any] | None) -> list[Demonstration]:
        """The nearest `number`, nearest first; none whose columns are `left_out`."""
        vector = self._vector(instruction)
        allowed = [
            (-sum(weight * other.get(word, 0.0) for word, weight in vector.items()), place)
            for place, other in enumerate(self._vectors)
            if left_out is None or dict(self.demonstrations[place].columns) != dict(left_out)
        ]
        return [self.demonstrations[place] for _, place in sorted(allowed)[:number]]

    def _vector(self, text: str) -> Mapping[str, float]:
        """Weights of the words, of length 1; words that no demonstration has weigh nothing."""
        counts = Counter(word for word in _words(text) if word in self._rarity)
        weights = {word: count * self._rarity[word] for word, count in counts.items()}
        length = math.sqrt(sum(weight**2 for weight in weights.values()))
        return {word: weight / length for word, weight in weights.items()}


@dataclass(frozen=True)
class _Demonstrated:
    inner: Environment
    library: Library
    nearest: int
    observations: bool
    same_task: bool

    @property
    def capacity(self) -> int | None:
        """The inner environment's."""
        return self.inner.capacity

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Episode]:
        """The inner environment's start, after a message with the demonstrations."""
        observation, episode = await self.inner.reset(prompt, columns, seed)
        messages = observation.messages
        if isinstance(messages, str):
            messages = ({"role": "user", "content": messages},)
        own = {name: value for name, value in columns.items() if name != "prompt"}
        found = self.library.seek(_instruction(messages), self.nearest, None if self.same_task else own)
        if not found:
            return observation, episode
        shown = "\n\n".join(one.text(self.observations) for one in found)
        *opening, last = messages
        example = {**last, "content": f"How a task like this was done:\n{shown}\n\nNow the task:\n{last['content']}"}
        info = {**observation.info, "demonstrations": [one.instruction for one in found]}
        return (
            Observation((*opening, example), observation.tools, observation.actions, observation.state, info),
            episode,
        )

    def close(self) -> None:
        """The inner environment's."""
        self.inner.close()


def _instruction(messages: Sequence[Message]) -> str:
    """What the task is: the last message before the policy's first turn."""
    return str(messages[-1]["content"])


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _read(path: Path) -> list[Demonstration]:
    """The rows of a file; DataError where it cannot be read or a row is no episode."""
    if not path.is_file():
        raise DataError(f"environment demonstrated: demonstrations: {path}: no such file")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            prompt, completion = row.pop("prompt"), row.pop("completion")
            row.pop("tools", None)
            found.append(Demonstration(_instruction(prompt), tuple(completion), row))
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            raise DataError(
                f"{path}:{number}: not a demonstration as `posttrain record` writes it "
                f"({{prompt: messages, completion: messages}}): {type(error).__name__}: {error}"
            ) from error
    if not found:
        raise DataError(f"{path}: holds no demonstration")
    return found
