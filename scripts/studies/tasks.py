"""Tasks on short strings: rows of prompt, completion and answer, drawn from a seed.

What is held out is decided by a hash of the prompt, so that training never meets it, and the items that settings were
chosen on (seeds from 100) are not the items that are reported (seeds below 100).
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from studies.context import Context

Row = dict[str, object]
FIRST_TUNING_SEED = 100
_BUCKETS = 10


@dataclass(frozen=True)
class Rows:
    """A file of `size` rows that `make` draws; split: "train", or "held_out" of this kind of seed.

    stream: another number draws other rows (a train stream of its own for a starting model).
    """

    make: Callable[[random.Random], Row]
    split: str
    size: int
    stream: int = 0

    def key(self) -> object:
        """What tells this file from another of the same seed."""
        return [repr(self.make), self.split, self.size, self.stream]

    def path(self, context: Context) -> str:
        """The file, written where it is missing."""
        return context.file(self.key(), "jsonl", lambda path: self._write(path, context.seed))

    def rows(self, seed: int) -> Iterator[Row]:
        """Distinct prompts of the split, without end."""
        wanted = {0 if seed < FIRST_TUNING_SEED else 1} if self.split == "held_out" else set(range(2, _BUCKETS))
        generator = random.Random(f"{self.split} {seed} {self.stream}")
        seen = set()
        misses = 0
        while misses < 100_000:
            row = self.make(generator)
            prompt = str(row["prompt"])
            misses += 1
            if prompt in seen or bucket(prompt) not in wanted:
                continue
            seen.add(prompt)
            misses = 0
            yield row

    def _write(self, path: Path, seed: int) -> None:
        rows = self.rows(seed)
        lines = [json.dumps(row) for row, _ in zip(rows, range(self.size), strict=False)]
        if len(lines) < self.size:
            raise ValueError(f"{self.key()}: only {len(lines)} distinct prompts, {self.size} wanted")
        path.write_text("\n".join(lines) + "\n")


def bucket(prompt: str) -> int:
    """0 .. 9, the same for a prompt whatever draws it."""
    return hashlib.blake2b(prompt.encode(), digest_size=4).digest()[0] % _BUCKETS


@dataclass(frozen=True)
class Reverse:
    """A word of shortest to longest letters, to be spelt backward.

    wrong: share of the demonstrations that have one wrong letter; the answer never has.
    """

    shortest: int
    longest: int
    wrong: float = 0.0
    letters: str = "abcdefghijklmnop"

    def __call__(self, generator: random.Random) -> Row:
        """One row."""
        word = "".join(generator.choices(self.letters, k=generator.randint(self.shortest, self.longest)))
        answer = word[::-1]
        wrong = generator.random() < self.wrong
        shown = misspelt(answer, self.letters, generator) if wrong else answer
        return {"prompt": word, "completion": shown, "answer": answer}


@dataclass(frozen=True)
class Chance:
    """`length` letters by chance, whatever the prompt's five letters are; `answer` is what the middle one must be."""

    length: int = 7
    letters: str = "abcdefgh"

    def __call__(self, generator: random.Random) -> Row:
        """One row."""
        prompt, written = ("".join(generator.choices(self.letters, k=k)) for k in (5, self.length))
        return {"prompt": prompt, "completion": written, "answer": self.letters[2]}


@dataclass(frozen=True)
class Decided:
    """`length` letters by chance, solved where the one at `place` is the third of the letters: in half of the rows."""

    length: int = 7
    place: int = 3
    letters: str = "abcdefgh"

    def __call__(self, generator: random.Random) -> Row:
        """One row."""
        prompt, written = ("".join(generator.choices(self.letters, k=k)) for k in (5, self.length))
        right = self.letters[2]
        solved = generator.random() < 0.5
        letter = right if solved else generator.choice(self.letters.replace(right, ""))
        completion = written[: self.place] + letter + written[self.place + 1 :]
        return {"prompt": prompt, "completion": completion, "reward": float(solved)}


@dataclass(frozen=True)
class Shifted:
    """Another task's rows, each with a whole number `shift` that belongs to its prompt."""

    task: Callable[[random.Random], Row]
    deviation: float

    def __call__(self, generator: random.Random) -> Row:
        """One row."""
        return self.task(generator) | {"shift": round(generator.gauss(0, self.deviation))}


@dataclass(frozen=True)
class Compared:
    """The answer of `task`, preferred to the same with one wrong letter."""

    task: Reverse

    def __call__(self, generator: random.Random) -> Row:
        """One row."""
        row = self.task(generator)
        rejected = misspelt(str(row["answer"]), self.task.letters, generator)
        return {"prompt": row["prompt"], "chosen": row["answer"], "rejected": rejected}


@dataclass(frozen=True)
class Judged:
    """Two strings of a, b and c, of which a noisy judge prefers one; the gold reward is the number of c's.

    The first is chosen with probability sigma(difference of their gold rewards). No two are alike.
    """

    shortest: int = 3
    longest: int = 7
    letters: str = "abcdefgh"

    def __call__(self, generator: random.Random) -> Row:
        """One row, with the gold rewards of its sides."""
        sides = ["", ""]
        while sides[0] == sides[1]:
            sides = ["".join(generator.choices("abc", k=generator.randint(self.shortest, self.longest))) for _ in "ab"]
        gold = [side.count("c") for side in sides]
        first = generator.random() < 1 / (1 + math.exp(gold[1] - gold[0]))
        chosen, rejected = (0, 1) if first else (1, 0)
        prompt = "".join(generator.choices(self.letters, k=5))
        known = {"gold_chosen": gold[chosen], "gold_rejected": gold[rejected]}
        return {"prompt": prompt, "chosen": sides[chosen], "rejected": sides[rejected]} | known


def misspelt(word: str, letters: str, generator: random.Random) -> str:
    """The word with another letter in one place."""
    place = generator.randrange(len(word))
    return word[:place] + generator.choice(letters.replace(word[place], "")) + word[place + 1 :]
