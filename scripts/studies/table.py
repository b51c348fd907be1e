"""A study's results: the figures with intervals, what became of the claims, and both as Markdown and JSON."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from textwrap import fill
from typing import Any

from studies.statistics import Mean
from studies.study import Claim, Figures, Study

HOLDS, NOT, OPEN = "holds", "does not hold", "not separable at this scale"
WIDTH = 120
HEADER = """# Science

Small seeded studies that show the direction of each paper's main claim with a tiny model on two CPU cores. They are
checks of direction, not replications: models of 0.3 million parameters, words of a few letters, minutes of training.
Settings were chosen on other seeds and other held-out items than those reported, except where a note says otherwise. A
cell is the mean over seeds with its 95 % interval (Student's t over seeds; a share's is cut at 0 and 1); differences
are paired by seed, and divergences are compared by their ratio. Seconds are wall time of one thread on shared cores.
*seen*: `holds` where the interval of the difference lies on the claimed side of zero (of the ratio, of one),
`does not hold` where it lies on the other, else `not separable at this scale`. Written by `scripts/science STUDY
--markdown SCIENCE.md`.
"""


@dataclass(frozen=True)
class Results:
    """Figures of every arm and seed."""

    study: Study
    found: Sequence[tuple[str, int, Figures]]

    @property
    def seeds(self) -> list[int]:
        """In order."""
        return sorted({seed for _, seed, _ in self.found})

    def values(self, arm: str, figure: str) -> list[float]:
        """One value a seed; empty where the arm has no such figure."""
        rows = sorted((seed, figures) for name, seed, figures in self.found if name == arm)
        return [figures[figure] for _, figures in rows if figure in figures]

    def claimed(self, claim: Claim) -> Mean:
        """The difference, or the logarithm of the ratio, that the claim is about."""
        values = self.values(claim.arm, claim.figure)
        if claim.other is not None:
            others = self.values(claim.other, claim.figure)
            values = [math.log(a / b) if claim.ratio else a - b for a, b in zip(values, others, strict=True)]
        return Mean.of(values)

    def seen(self, claim: Claim) -> str:
        """What became of it."""
        if claim.at_most is not None:
            worst = max(map(abs, self.values(claim.arm, claim.figure)))
            return HOLDS if worst <= claim.at_most else NOT
        mean = self.claimed(claim)
        low, high = sorted((claim.sign * mean.low, claim.sign * mean.high))
        return HOLDS if low > 0 else NOT if high < 0 else OPEN

    def to_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        runs = [{"arm": arm, "seed": seed} | figures for arm, seed, figures in self.found]
        claims = [
            {"claim": claim.text, "difference": asdict(self.claimed(claim)), "seen": self.seen(claim)}
            for claim in self.study.claims
        ]
        return {"study": self.study.name, "seeds": self.seeds, "runs": runs, "claims": claims}

    def markdown(self) -> str:
        """The study's section."""
        study = self.study
        columns = [name for name in study.figures if any(name in figures for _, _, figures in self.found)]
        rows = [[arm.name, *(self._figure(arm.name, name) for name in columns)] for arm in study.arms]
        claims = [
            [claim.text, _difference(claim, self.claimed(claim), study.figures[claim.figure].format), self.seen(claim)]
            for claim in study.claims
        ]
        seeds = ", ".join(map(str, self.seeds))
        return "\n\n".join(
            [
                f"## {study.title}",
                fill(study.paper, WIDTH),
                fill(f"{study.setting} Held equal: {study.equal}", WIDTH),
                f"    scripts/science {study.name} --seeds {seeds.replace(' ', '')}",
                _table(["", *(study.figures[name].heading for name in columns)], rows),
                _table(["claim", "difference, or ratio", "seen"], claims),
                fill(f"{self.sentence()} {study.note}".strip(), WIDTH),
            ]
        )

    def _figure(self, arm: str, name: str) -> str:
        """A cell of the table, empty where the arm has no such figure."""
        values = self.values(arm, name)
        if not values:
            return ""
        mean, how = Mean.of(values), self.study.figures[name].format
        if how.endswith("%") and 0 <= min(values) <= max(values) <= 1:
            mean = replace(mean, low=max(mean.low, 0.0), high=min(mean.high, 1.0))
        return _cell(mean, how)

    def sentence(self) -> str:
        """What was seen, in one sentence."""
        kinds = {kind: [c.text for c in self.study.claims if self.seen(c) == kind] for kind in (HOLDS, NOT, OPEN)}
        parts = [f"{len(texts)} {kind if len(texts) == 1 else _PLURAL[kind]}" for kind, texts in kinds.items() if texts]
        return f"Of {len(self.study.claims)} comparisons over {len(self.seeds)} seeds, {', '.join(parts)}."


_PLURAL = {HOLDS: "hold", NOT: "do not hold", OPEN: "not separable at this scale"}


def _cell(mean: Mean, how: str) -> str:
    if math.isnan(mean.low):
        return f"{mean.value:{how}}"
    return f"{mean.value:{how}} [{mean.low:{how}}, {mean.high:{how}}]"


def _difference(claim: Claim, mean: Mean, how: str) -> str:
    if not claim.ratio:
        return _cell(mean, how)
    return f"x {_cell(Mean(*map(math.exp, (mean.value, mean.low, mean.high)), mean.n), '.3g')}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] * len(header), *rows])


def write_section(path: Path, title: str, section: str, order: Sequence[str]) -> None:
    """Put a study's section into the file: in place of its former one, in the order of the titles."""
    text = path.read_text() if path.exists() else HEADER
    pieces = re.split(r"^(?=## )", text, flags=re.MULTILINE)
    sections = {piece.partition("\n")[0].removeprefix("## "): piece.strip() for piece in pieces[1:]}
    sections[title] = section.strip()
    known = [name for name in order if name in sections]
    path.write_text("\n\n".join([HEADER.strip(), *(sections[name] for name in known)]) + "\n")
