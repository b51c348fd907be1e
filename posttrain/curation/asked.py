"""What is asked of curation: the settings of its filters."""

from __future__ import annotations

from dataclasses import dataclass, replace

from posttrain.curation.returns import Baseline
from posttrain.errors import RecipeError

_RATED = ("prompts", "demonstrations")


def parse_buckets(text: str) -> tuple[float, ...]:
    """Bounds with commas between them; RecipeError for anything else."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError as error:
        raise RecipeError(f"--buckets {text!r}; allowed: numbers with commas between them, as in 0.2,0.8") from error


@dataclass(frozen=True)
class Filters:
    """What is removed, in this order; a part that is None, 0, empty or False is not asked for.

    min_characters, max_characters: per token of `tokenizer`. exact: duplicates; None: unless these are trajectories, a
    sample in which an answer may come twice. near: the overlap from which texts are near duplicates; None: 0.8 among
    prompts, else 0 (short answers to one long prompt overlap too); any_numbers: also where their numbers differ.
    against, ngram: benchmarks, and how many words in a row a row may not share with them. pass_rate_run,
    pass_rate_column: where pass rates come from; rows outside of min_pass_rate to max_pass_rate are removed, the others
    get the columns pass_rate and pass_rate_bucket (cut at `buckets`). sample: how many trajectories to draw by return,
    with beta and baseline of `return_weights`.
    """

    tokenizer: str | None = None
    min_characters: float | None = None
    max_characters: float | None = None
    exact: bool | None = None
    near: float | None = None
    any_numbers: bool = False
    against: tuple[str, ...] = ()
    ngram: int = 13
    pass_rate_run: str | None = None
    pass_rate_column: str | None = None
    min_pass_rate: float = 0.0
    max_pass_rate: float = 1.0
    buckets: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8)
    sample: int | None = None
    beta: float = 1.0
    baseline: Baseline = "group"
    seed: int = 0

    def of(self, kind: str) -> Filters:
        """With what is left to the kind of data. RecipeError where parts do not fit together, or the kind."""
        exact = kind != "trajectories" if self.exact is None else self.exact
        near = (0.8 if kind == "prompts" else 0.0) if self.near is None else self.near
        bounded = self.min_characters is not None or self.max_characters is not None
        rated = self.pass_rate_run is not None or self.pass_rate_column is not None
        ranged = (self.min_pass_rate, self.max_pass_rate) != (0.0, 1.0)
        for wrong, message in (
            (bounded and self.tokenizer is None, "bounds of characters per token need --tokenizer"),
            (not 0 <= near <= 1, f"--near {near:g}; allowed: from 0 (off) to 1"),
            (None not in (self.pass_rate_run, self.pass_rate_column), "pass rates of a run, or of a column; not both"),
            (ranged and not rated, "bounds of pass rates need --pass-rate-run or --pass-rate-column"),
            (rated and kind not in _RATED, f"pass rates are of {' or '.join(_RATED)}, and these are {kind}"),
            (not 0 <= self.min_pass_rate <= self.max_pass_rate <= 1, "pass rates are from 0 to 1, in this order"),
            (list(self.buckets) != sorted(set(self.buckets)), f"--buckets {self.buckets}; allowed: rising bounds"),
            (self.sample is not None and kind != "trajectories", f"--sample is of trajectories, and these are {kind}"),
        ):
            if wrong:
                raise RecipeError(message)
        return replace(self, exact=exact, near=near)
