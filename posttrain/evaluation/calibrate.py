"""`posttrain calibrate`: a reward model on held-out data: how often it is right, and whether its chances are."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from posttrain import table
from posttrain.batch import TokenSequence
from posttrain.config.schema import SourceSettings
from posttrain.data.examples import Completion, Example, Outcome
from posttrain.data.labels import step_ends
from posttrain.data.recorded import read
from posttrain.data.sources import load_source
from posttrain.data.trajectories import check_recorded
from posttrain.errors import DataError, RecipeError
from posttrain.evaluation.calibration import Calibration, calibration
from posttrain.evaluation.reward_model import OverSteps, RewardModel, Scored
from posttrain.rollout.records import from_record
from posttrain.rollout.sequences import rollout_sequences
from posttrain.trajectory import Prompt

Kind = Literal["preferences", "trajectories", "steps"]


@dataclass(frozen=True)
class Calibrated:
    """What was found on a source. what: what a prediction is of."""

    model: str
    source: str
    what: str
    score: str
    figures: Calibration

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        own = {name: getattr(self, name) for name in ("model", "source", "what", "score")}
        return own | self.figures.to_json()

    def text(self) -> str:
        """Figures, a line each, and a table of reliability."""
        one = self.figures
        ties = f" ({one.num_ties} ties, half right)" if one.num_ties else ""
        lines = [
            f"{self.model}, score {self.score!r}, on {one.n:,} {self.what} of {self.source}",
            f"accuracy           {one.accuracy:.1%} {_percent(one.accuracy_interval)}{ties}",
            f"calibration error  {one.calibration_error:.3f} {_interval(one.calibration_interval)}; a perfectly "
            f"calibrated model would show {one.floor:.3f}",
            f"log loss           {one.log_loss:.3f} {_interval(one.log_loss_interval)} nats (a coin: 0.693)",
            f"brier score        {one.brier:.3f} (a coin: 0.250)",
            "",
        ]
        rows = [
            (
                f"{b.low:.2f} to {b.high:.2f}",
                f"{b.n:,}",
                f"{b.predicted:.1%}",
                f"{b.observed:.1%}",
                _percent(b.interval),
            )
            for b in one.bins
        ]
        lines.append(table.render(("probability", "n", "predicted", "observed", "95 % interval"), rows))
        return "\n".join(lines)


def calibrate(
    path: str,
    source: SourceSettings,
    kind: Kind,
    *,
    score: str | None = None,
    over_steps: OverSteps = "min",
    json_file: Path | None = None,
    model: RewardModel | None = None,
) -> Calibrated:
    """Measure the reward model at `path` (or `model`, loaded already) on held-out data.

    preferences: whether the chosen side wins, p = sigma(s_chosen - s_rejected). trajectories: of those of one prompt
    every two with different rewards, whether the better one wins; where the model reads the mean over tokens or steps,
    whether each is solved. steps: whether each labelled step is right. score: which of the model's several; json_file:
    written with the figures. UserError where data, model and kind do not fit together.
    """
    if json_file is not None and not json_file.absolute().parent.is_dir():
        raise RecipeError(f"--json {json_file}: there is no directory {json_file.absolute().parent}")
    examples = load_source(source, kind)
    found = model or RewardModel.load(path)
    check_recorded(examples, found.tokenizer, logprobs=False)
    if (score or found.names[0]) not in found.names or (score is None and len(found.names) > 1):
        raise RecipeError(f"--score is {score}; allowed: one of {', '.join(found.names)}")
    asked = _Asked(found, found.names.index(score) if score else 0, over_steps)
    what, predicted, seen = asked.of_kind(list(examples), kind)
    if not predicted:
        raise DataError(f"{examples.description}: nothing to compare: no two trajectories of a prompt differ in reward")
    figures = calibration(predicted, seen, mirrored=what == "pairs")
    result = Calibrated(path, examples.description, what, found.names[asked.column], figures)
    if json_file is not None:
        json_file.write_text(json.dumps(result.to_json(), indent=2) + "\n")
    return result


@dataclass(frozen=True)
class _Asked:
    model: RewardModel
    column: int
    over_steps: OverSteps

    def of_kind(self, examples: Sequence[Example], kind: Kind) -> tuple[str, list[float], list[float]]:
        """What is predicted, the probabilities, and what is so."""
        if kind == "steps":
            return "steps", *self._steps(examples)
        if kind == "preferences":
            pairs = [(one.prompt, one.chosen, one.rejected) for one in examples]
            missing = next((e.id for e, (_, c, r) in zip(examples, pairs, strict=True) if c is None or r is None), None)
            if missing is not None:
                raise DataError(f"{missing} has one side; allowed: pairs of a chosen and a rejected one")
            scores = self._scores([(p, side) for p, *both in pairs for side in both if side is not None])
            return "pairs", *_compared(zip(scores[::2], scores[1::2], strict=True))
        outcomes = [(e.prompt, one) for e in examples for one in e.outcomes if one.reward is not None]
        said = self.model.of_sequences([self._recorded(prompt, one) for prompt, one in outcomes])
        scores = [self._reward(each, one.completion) for each, (_, one) in zip(said, outcomes, strict=True)]
        if self.model.reading != "last":
            chances = scores if self.model.reading == "steps" else [_sigmoid(s) for s in scores]
            return "trajectories", chances, [float(one.solved) for _, one in outcomes]
        rewards = [one.reward or 0.0 for _, one in outcomes]
        ordered = (
            (scores[i], scores[j]) if rewards[i] > rewards[j] else (scores[j], scores[i])
            for i, j in _within(outcomes)
            if rewards[i] != rewards[j]
        )
        return "pairs", *_compared(ordered)

    def _scores(self, pairs: Sequence[tuple[Prompt, Completion]]) -> list[float]:
        return [self._reward(one, side) for one, (_, side) in zip(self.model(pairs), pairs, strict=True)]

    def _reward(self, scored: Scored, completion: Completion) -> float:
        return self.model.reward(scored, completion, self.over_steps)[self.column]

    def _recorded(self, prompt: Prompt, outcome: Outcome) -> TokenSequence:
        """A recorded trajectory, with the tokens that were sampled where they are stored."""
        if outcome.sampled is None:
            return self.model.sequence(prompt, outcome.completion)
        made = rollout_sequences(from_record(read(outcome.sampled)), 0, 0)
        if len(made) != 1:
            raise DataError(f"{outcome.sampled}: a trajectory of {len(made)} sequences; a reward model reads one")
        return made[0]

    def _steps(self, examples: Sequence[Example]) -> tuple[list[float], list[float]]:
        outcomes = [(example.prompt, one) for example in examples for one in example.outcomes]
        predicted, seen = [], []
        said = self.model([(prompt, one.completion) for prompt, one in outcomes])
        for scored, (_, one) in zip(said, outcomes, strict=True):
            ends = step_ends(one.steps, scored.token_ids, self.model.tokenizer)
            for place, label in zip(ends, one.step_labels, strict=True):
                if place is not None and label is not None:
                    predicted.append(_sigmoid(float(scored.scores[self.column, place])))
                    seen.append(label)
        return predicted, seen


def _within(outcomes: Sequence[tuple[Prompt, Any]]) -> Iterator[tuple[int, int]]:
    """Every two outcomes of one prompt, which lie side by side."""
    groups: dict[str, list[int]] = {}
    for place, (prompt, _) in enumerate(outcomes):
        groups.setdefault(json.dumps(prompt), []).append(place)
    for places in groups.values():
        yield from combinations(places, 2)


def _compared(pairs: Any) -> tuple[list[float], list[float]]:
    chances = [_sigmoid(better - worse) for better, worse in pairs]
    return chances, [1.0] * len(chances)


def _sigmoid(value: float) -> float:
    return 0.5 * (1.0 + math.tanh(value / 2))


def _interval(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"[{low:.3f}, {high:.3f}]"


def _percent(interval: tuple[float, float]) -> str:
    low, high = interval
    return f"[{low:.1%}, {high:.1%}]"
