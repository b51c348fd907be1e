"""What the rules about recipes ask of an algorithm: what it reads (`sources`, `needs`, `plan`), never its name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Term(Protocol):
    """What is asked of a term; its source is a word such as "rollouts"."""

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def source(self) -> str:
        """The data source it runs over."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What a batch must hold for it."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """Its parts by role."""
        ...


class Plan(Protocol):
    """What is asked of what an algorithm wants beside its terms."""

    @property
    def critic(self) -> str | None:
        """How its second trained model is read; None: it has none."""
        ...

    @property
    def scores(self) -> tuple[str, ...]:
        """Names of what a reward model says of each token; empty where a policy is trained."""
        ...

    @property
    def labels(self) -> str | None:
        """What recorded trajectories have in place of a reward."""
        ...

    @property
    def mismatched(self) -> bool:
        """Whether prompts are joined with the completions of others."""
        ...

    @property
    def reset_probability(self) -> float:
        """Of a rollout to start inside its prompt's demonstration."""
        ...

    @property
    def reference_samples(self) -> int:
        """Rollouts of the reference for each prompt."""
        ...

    @property
    def reference_decay(self) -> float:
        """How fast the reference follows the policy; 0: it is frozen."""
        ...

    @property
    def pairing(self) -> Any:
        """How the rollouts of a group are paired (`estimator.plan.Pairing`); None: they are not."""
        ...


class Algorithm(Protocol):
    """What is asked of an algorithm."""

    @property
    def plan(self) -> Plan:
        """What it wants beside its terms."""
        ...

    @property
    def name(self) -> str:
        """Its name."""
        ...

    @property
    def terms(self) -> tuple[Term, ...]:
        """Its summands."""
        ...

    @property
    def sources(self) -> frozenset[str]:
        """The data sources of its terms."""
        ...

    @property
    def needs(self) -> frozenset[str]:
        """What a batch must hold: union over its terms."""
        ...

    @property
    def grades_rollouts(self) -> bool:
        """Whether rewards of rollouts are read."""
        ...
