"""What a study is: arms that are trained alike but for what is compared, figures of each, claims about differences."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from studies.context import Context

Tree = dict[str, Any]
Figures = dict[str, float]


@dataclass(frozen=True)
class Arm:
    """One thing that is compared: recipes run one after the other, each from the former's model unless it names one.

    Each is merged over the study's base. No stages: the starting model itself.
    """

    name: str
    stages: tuple[Tree, ...]


@dataclass(frozen=True)
class Claim:
    """`figure` of `arm` minus that of `other` is above 0 (sign 1) or below 0 (sign -1); without `other`, of `arm`.

    at_most: instead, the absolute value is at most this. ratio: for positive figures of any size, such as divergences,
    the two are compared by the logarithm of their ratio.
    """

    text: str
    figure: str
    arm: str
    other: str | None = None
    sign: int = 1
    at_most: float | None = None
    ratio: bool = False


@dataclass(frozen=True)
class Figure:
    """A column of the table: its heading, a format, and whether it is a share to be shown in percent."""

    heading: str
    format: str = ".3f"


@dataclass(frozen=True)
class Finished:
    """A trained arm: its stages' run directories, and the model it began with."""

    context: Context
    start: Path
    stages: tuple[Path, ...]

    @property
    def final(self) -> Path:
        """The model to measure."""
        return self.stages[-1] / "final" if self.stages else self.start


@dataclass(frozen=True)
class Study:
    """One comparison.

    paper: the claim in one sentence, cited. setting: task, model and data in a sentence. equal: what is held equal.
    base: what every arm's recipe has; its model is the starting model. measure: the figures of a finished arm.
    note: what else was tried, and what came of it.
    """

    name: str
    title: str
    paper: str
    setting: str
    equal: str
    base: Tree
    arms: tuple[Arm, ...]
    figures: Mapping[str, Figure]
    claims: tuple[Claim, ...]
    measure: Callable[[Finished], Figures]
    note: str = ""
