"""The evaluations of a run: a benchmark played as it goes, which selects a step, and one to report on at the end.

What is selected on is not what is reported: the best of many measurements is too good by chance.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from posttrain import catalog
from posttrain.config import Recipe
from posttrain.config.schema import BenchmarkSettings
from posttrain.data.examples import Example
from posttrain.data.held_out import asked
from posttrain.errors import DataError
from posttrain.evaluation.benchmark import Benchmark
from posttrain.evaluation.runner import evaluate, load_items
from posttrain.models.export import save_model
from posttrain.reward import Grader
from posttrain.rollout.engine import Engine

FINAL = "final"
_FIGURES = "selected.json"


@dataclass(frozen=True)
class HeldOut:
    """A benchmark of the recipe, its items, and completions per item (None: the benchmark's own number)."""

    benchmark: Benchmark
    items: Sequence[Example]
    samples: int | None


@dataclass(frozen=True)
class Evaluations:
    """What the recipe holds out: `evaluation` to select a step by, `final_evaluation` to report on."""

    selects: HeldOut | None
    final: HeldOut | None

    @property
    def items(self) -> list[Example]:
        """All that is asked, which is not trained on."""
        return [item for one in (self.selects, self.final) if one is not None for item in one.items]


def load_evaluations(recipe: Recipe) -> Evaluations:
    """The items of both; DataError where one is asked in both."""
    found = Evaluations(_held_out(recipe.evaluation), _held_out(recipe.final_evaluation))
    if found.selects is not None and found.final is not None:
        known = asked(found.selects.items)
        shared = [item.id for item in found.final.items if asked([item]) & known]
        if shared:
            raise DataError(
                f"final_evaluation: {len(shared)} of its {len(found.final.items)} items are asked by evaluation too "
                f"(the first: {shared[0]}); allowed: another split than the one that selects the step"
            )
    return found


def _held_out(settings: BenchmarkSettings | None) -> HeldOut | None:
    if settings is None:
        return None
    benchmark = catalog.build("eval", settings.name, settings.settings)
    return HeldOut(benchmark, load_items(benchmark, settings.limit), settings.samples)


@dataclass(frozen=True)
class Player:
    """Plays what is held out with the weights that the engine has, and returns the figures."""

    held_out: HeldOut
    engine: Engine
    tokenizer: Any
    stop_ids: frozenset[int]
    grader: Grader
    recipe: Recipe

    def __call__(self) -> dict[str, Any]:
        """A line of evaluations.jsonl without its step."""
        rollout = self.recipe.rollout
        result = evaluate(
            self.held_out.benchmark,
            self.engine,
            self.tokenizer,
            self.grader,
            items=self.held_out.items,
            samples=self.held_out.samples,
            seed=self.recipe.seed,
            stop_ids=self.stop_ids,
            attempts=rollout.attempts,
            max_failure_rate=rollout.max_failure_rate,
        )
        return result.summary()


@dataclass(frozen=True)
class Selection:
    """The weights of the step that has done best so far on `evaluation`: a plain model, with its figures beside it.

    Of equals the first is kept. report: plays `final_evaluation`; None where the recipe has none. It has no state but
    its directory, so that a resumed run goes on with it.
    """

    directory: Path
    report: Callable[[], dict[str, Any]] | None

    @property
    def best(self) -> dict[str, Any] | None:
        """The figures of the step that is kept; None before the first."""
        file = self.directory / _FIGURES
        if not file.is_file():
            return None
        figures: dict[str, Any] = json.loads(file.read_text())
        return figures

    def improves(self, result: dict[str, Any]) -> bool:
        """Whether these figures are better than those of the step that is kept."""
        best = self.best
        return best is None or result["pass_rate"] > best["pass_rate"]

    def keep(self, result: dict[str, Any] | None, model: Any, tokenizer: Any) -> None:
        """Keep the model in place of the former; on every rank, of which the one with the figures writes."""
        beside = {} if result is None else {_FIGURES: json.dumps(result, indent=2) + "\n"}
        save_model(model, tokenizer, self.directory, writes=result is not None, beside=beside)

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Those that are kept, by name."""
        from safetensors import safe_open

        for file in sorted(self.directory.glob("*.safetensors")):
            with safe_open(file, framework="pt") as stored:
                for name in stored.keys():  # noqa: SIM118 (it has no iterator)
                    yield name, stored.get_tensor(name)
