"""What a benchmark is: its items, how they are asked, and how the answers are graded.

A file in `eval/` holds one function of its own name that returns a `Benchmark`; the function's keyword-only parameters
are the benchmark's settings in recipes and on the command line.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from posttrain.config.schema import EpisodeSettings, Named, PartnerSettings, SourceSettings
from posttrain.data.examples import Example
from posttrain.errors import RecipeError
from posttrain.reward import RewardSpec
from posttrain.reward_specs import outcome_of


@dataclass(frozen=True)
class Benchmark:
    """Items, environment, rewards and sampling of one benchmark.

    source: the prompts. partner: who plays the environment's other side (None: the environment itself). rewards: as in
    a recipe; an item is solved where the outcome reward reaches 1.0. max_tokens: of one completion. temperature 0 is
    greedy. samples: completions per item, more than one only where temperature is above 0. by: a column whose values
    have rates of their own (`Evaluation.parts`). listed_actions: as a recipe's `rollout.listed_actions`. prepare: makes
    the item that is asked of the one that was read.
    RecipeError where a number is out of range.
    """

    name: str
    source: SourceSettings
    rewards: tuple[RewardSpec, ...]
    environment: Named = field(default_factory=lambda: Named(name="single_turn"))
    episode: EpisodeSettings = field(default_factory=EpisodeSettings)
    partner: PartnerSettings | None = None
    max_tokens: int = 1024
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    samples: int = 1
    by: str | None = None
    listed_actions: bool = False
    prepare: Callable[[Example], Example] | None = None

    def __post_init__(self) -> None:
        self._require("max_tokens", self.max_tokens >= 1, "at least 1")
        self._require("temperature", self.temperature >= 0, "at least 0 (0 is greedy)")
        self._require("top_p", 0 < self.top_p <= 1, "above 0, at most 1")
        self._require("top_k", self.top_k >= 0, "at least 0 (0 is off)")
        self._require("samples", self.samples >= 1, "at least 1")
        if self.samples > 1 and self.temperature == 0:
            raise RecipeError(
                f"benchmark {self.name}: samples is {self.samples} with temperature 0, which repeats one greedy "
                "completion; set temperature above 0, or samples to 1"
            )

    @property
    def outcome(self) -> str:
        """The reward whose full mark is "solved"."""
        return outcome_of(self.rewards)

    def with_samples(self, samples: int | None) -> Benchmark:
        """The same benchmark with this many completions per item; None leaves it as it is."""
        return self if samples is None else replace(self, samples=samples)

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise RecipeError(f"benchmark {self.name}: {name} is {getattr(self, name)}; allowed: {allowed}")
