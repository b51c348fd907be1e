"""What an algorithm wants of the run beside its terms: how rollouts start and pair up, which models stand beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from posttrain.batch import Source, TokenSequence
from posttrain.estimator.pairing import Chances, Judge


class Pairing(Protocol):
    """Makes the sequences of a step out of its rollouts: it sets `pair`, or makes preferences of them (`pairing`).

    source: of what it makes. graded: whether it reads rewards. judge: how the policy is to be asked which of two
    rollouts is better, None where it is not. multiple: what a group's size must be a multiple of.
    """

    @property
    def source(self) -> Source:
        """Rollouts or preferences."""
        ...

    @property
    def graded(self) -> bool:
        """Whether it reads rewards."""
        ...

    @property
    def judge(self) -> Judge | None:
        """The question to the policy."""
        ...

    @property
    def multiple(self) -> int:
        """1 where any group will do."""
        ...

    @property
    def formula(self) -> str:
        """What is compared, for `explain`."""
        ...

    def __call__(self, sequences: Sequence[TokenSequence], chances: Chances | None = None) -> list[TokenSequence]:
        """The sequences to train on, in place of `sequences`, all rollouts of one group; chances: the judge's."""
        ...


@dataclass(frozen=True)
class Plan:
    """Requests to the trainer; the defaults ask for nothing.

    pairing: applied to the rollouts of each group. reset_probability: of a rollout to start inside its prompt's
    demonstration (DR-PO, arXiv 2404.08495, alg. 1). reference_samples: rollouts of the reference policy for each
    prompt, graded like the policy's; they enter the step as demonstrations of their group. reference_decay: eta of
    theta_ref <- (1 - eta) theta_ref + eta theta after every step; 0 freezes the reference. critic: a second trained
    model with a scalar for each action token, read from the state before the action or from the action itself; or
    "actions": with V of the state and Q of every token, whose target follows it by target_rate after every step.
    mismatched: adds each preference's prompt with the completion of another, ungraded (KTO, arXiv 2402.01306).

    scores: the names of what a reward model says of each action token; then that model is trained, and no policy is.
    labels: what each recorded trajectory has in place of a reward: numbers for its steps, or for its attributes.
    reading: which of a completion's tokens such a model speaks of it with: the last one's score, the mean of all, or
    those that end its steps.
    """

    pairing: Pairing | None = None
    reset_probability: float = 0.0
    reference_samples: int = 0
    reference_decay: float = 0.0
    critic: Literal["state", "action", "actions"] | None = None
    target_rate: float = 0.0
    mismatched: bool = False
    scores: tuple[str, ...] = ()
    labels: Literal["steps", "attributes"] | None = None
    reading: Literal["last", "mean", "steps"] = "last"

    def drawn(self, source: Source) -> str:
        """What the sequences of a term over `source` are made of, where the trainer makes them."""
        if source is Source.DEMONSTRATIONS and self.reference_samples:
            return "reference rollouts"
        if source is Source.PREFERENCES and self.pairing is not None:
            return "paired rollouts"
        return str(source)
