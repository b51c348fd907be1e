"""Pairs out of the rollouts of one prompt: which two are compared, and how surely the first is the better one.

Each pairing takes the rollouts of one group, in their order, and returns what is trained on in their place, with pairs
numbered from 0 within the group. The tokens and logprobs stay those that were sampled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise
from typing import ClassVar, Literal

from posttrain.batch import Source, TokenSequence

Chances = Sequence[Sequence[float]]
"""chances[i][j]: how probable it is that rollout i of the group is better than rollout j."""


@dataclass(frozen=True)
class Judge:
    """How a policy is asked which of two completions is better.

    template: a format string of {prompt}, {first} and {second}. labels: the two answers, of which the model's
    probabilities are compared; whatever else it might answer does not matter, so no answer is ever unreadable.
    """

    template: str = (
        "Which of two responses to a prompt is better?\n\nPrompt: {prompt}\n\nResponse A: {first}\n\n"
        "Response B: {second}\n\nAnswer with A or B."
    )
    labels: tuple[str, str] = ("A", "B")

    def __post_init__(self) -> None:
        """ValueError for a template without its three fields or with others, and for labels that are equal or empty."""
        try:
            self.template.format(prompt="", first="", second="")
            known = all("{" + name + "}" in self.template for name in ("prompt", "first", "second"))
        except (KeyError, IndexError, ValueError):
            known = False
        if not known:
            raise ValueError(
                f"judge_template is {self.template!r}; allowed: text with {{prompt}}, {{first}} and {{second}}"
            )
        if not all(self.labels) or self.labels[0] == self.labels[1]:
            raise ValueError(f"judge_labels is {self.labels}; allowed: two different texts")


@dataclass(frozen=True)
class Neighbours:
    """The first graded rollout with the second, the third with the fourth, ...; they stay what they are."""

    graded: ClassVar[bool] = True
    judge: ClassVar[Judge | None] = None
    multiple: ClassVar[int] = 2
    source: ClassVar[Source] = Source.ROLLOUTS
    formula: ClassVar[str] = "neighbouring rollouts of a prompt"

    def __call__(self, sequences: Sequence[TokenSequence], chances: Chances | None = None) -> list[TokenSequence]:
        """The rollouts with `pair` set; a last one without a neighbour is left out."""
        graded = [sequence for sequence in sequences if sequence.reward is not None]
        whole = len(graded) - len(graded) % 2
        return [replace(sequence, pair=index // 2) for index, sequence in enumerate(graded[:whole])]


@dataclass(frozen=True)
class BestAgainstWorst:
    """The rollout of the highest reward, preferred to that of the lowest (the first of each where several tie)."""

    graded: ClassVar[bool] = True
    judge: ClassVar[Judge | None] = None
    multiple: ClassVar[int] = 1
    source: ClassVar[Source] = Source.PREFERENCES
    formula: ClassVar[str] = "the best rollout of a prompt over its worst"

    def __call__(self, sequences: Sequence[TokenSequence], chances: Chances | None = None) -> list[TokenSequence]:
        """Two preferences; none where the graded rewards are all equal."""
        rewards = {index: s.reward for index, s in enumerate(sequences) if s.reward is not None}
        if not rewards:
            return []
        best, worst = max(rewards, key=rewards.__getitem__), min(rewards, key=rewards.__getitem__)
        return [] if rewards[best] == rewards[worst] else compared(sequences[best], sequences[worst], 1.0, 0)


@dataclass(frozen=True)
class Ranked:
    """Pairs across the ranks of a group's rollouts, with soft preferences (OSP, arXiv 2405.14103; reconstruction).

    Rollouts are ranked by their mean chance of being the better one against each of the others. pairs "mirrored": best
    with worst, second with second worst, ...; "adjacent": each with the next in rank; "all": every two (a rollout in
    several pairs is trained on as often). A side's reward is its chance against its partner. hard_threshold t: the
    chance becomes 1 and 0 where one side's is above t >= 0.5, and the pair is left out elsewhere. judge None: chances
    are sigma((R_i - R_j) / reward_scale) of graders' rewards, over the graded rollouts.
    """

    pairs: Literal["mirrored", "adjacent", "all"] = "mirrored"
    hard_threshold: float | None = None
    judge: Judge | None = field(default_factory=Judge)
    reward_scale: float = 1.0
    multiple: ClassVar[int] = 1
    source: ClassVar[Source] = Source.PREFERENCES

    def __post_init__(self) -> None:
        """ValueError for hard_threshold outside [0.5, 1) and reward_scale <= 0."""
        if self.hard_threshold is not None and not 0.5 <= self.hard_threshold < 1:
            raise ValueError(f"hard_threshold is {self.hard_threshold}; allowed: at least 0.5, below 1")
        if not self.reward_scale > 0:
            raise ValueError(f"reward_scale is {self.reward_scale}; allowed: above 0")

    @property
    def graded(self) -> bool:
        """Whether it reads rewards."""
        return self.judge is None

    @property
    def formula(self) -> str:
        """What is compared, by whom."""
        judge = "graders' rewards" if self.judge is None else "the policy, asked in both orders"
        hard = "" if self.hard_threshold is None else f", hard above {self.hard_threshold:g}"
        return f"{self.pairs} ranks of a prompt's rollouts, judged by {judge}{hard}"

    def __call__(self, sequences: Sequence[TokenSequence], chances: Chances | None = None) -> list[TokenSequence]:
        """Preferences, two sequences a pair. chances: the judge's; ValueError where there is a judge and no chances."""
        if self.judge is None:
            sequences = [sequence for sequence in sequences if sequence.reward is not None]
            rewards = [sequence.reward or 0.0 for sequence in sequences]
            chances = [[_sigmoid((one - other) / self.reward_scale) for other in rewards] for one in rewards]
        if chances is None or len(chances) != len(sequences):
            raise ValueError("chances is needed: a row of the judge's for each rollout of the group")
        indices = range(len(sequences))
        strength = [sum(chances[i][j] for j in indices if j != i) for i in indices]
        ranked = sorted(indices, key=lambda i: (-strength[i], i))
        found: list[TokenSequence] = []
        for i, j in self._chosen(ranked):
            chance = self._hardened(chances[i][j])
            if chance is not None:
                found += compared(sequences[i], sequences[j], chance, len(found) // 2)
        return found

    def _chosen(self, ranked: Sequence[int]) -> list[tuple[int, int]]:
        half = len(ranked) // 2
        if self.pairs == "mirrored":
            return list(zip(ranked[:half], reversed(ranked[-half:]), strict=True)) if half else []
        return list(combinations(ranked, 2)) if self.pairs == "all" else list(pairwise(ranked))

    def _hardened(self, chance: float) -> float | None:
        if self.hard_threshold is None:
            return chance
        if max(chance, 1 - chance) <= self.hard_threshold:
            return None
        return float(chance > 0.5)


def compared(first: TokenSequence, second: TokenSequence, chance: float, pair: int) -> list[TokenSequence]:
    """Two rollouts as the sides of preference `pair`, the first better with probability `chance`."""
    sides = (first, chance), (second, 1.0 - chance)
    return [replace(side, source=Source.PREFERENCES, pair=pair, reward=reward) for side, reward in sides]


def _sigmoid(x: float) -> float:
    return 0.5 * (1.0 + math.tanh(x / 2))
