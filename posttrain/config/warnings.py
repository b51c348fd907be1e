"""Combinations that run and are scientifically wrong: what is learnt is not what the recipe seems to say.

Each rule is a small function of the recipe and its algorithm, and its name is the rule's. What one finds stops the run
unless the recipe lists it: `acknowledge: [rule]`. Algorithms are known by what their terms read and by the names of
their parts, never by their own. Only what a recipe alone decides is here, and a paper's own choices are not warned of.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from posttrain import catalog
from posttrain.catalog import Mistake
from posttrain.config.asked import Algorithm, Term
from posttrain.config.correction import correctable, correction, corrects_itself, samples_below_precision
from posttrain.config.schema import Recipe
from posttrain.errors import did_you_mean

Path = tuple[str | int, ...]

TRAJECTORY_INPUTS = frozenset(
    {
        "completion", "completion_messages", "prompt", "stop_reason", "num_tokens", "episode_outcome", "episode_end",
        "environment_rewards", "invalid_actions", "states", "off_path",
    }
)  # fmt: skip
"""What a reward can read without the data's columns."""

_HALF_STEP = {"bfloat16": 5e-5, "float16": 5e-6}
"""Half the distance between neighbouring numbers near 0.02, the size of a usual weight."""


@dataclass(frozen=True)
class Finding:
    """What a rule found: the field, what is wrong, why, and what would be right."""

    rule: str
    path: Path
    wrong: str
    why: str
    right: str
    acknowledged: bool = False

    @property
    def field(self) -> str:
        """The dotted path."""
        return ".".join(map(str, self.path))

    def mistake(self) -> Mistake:
        """As the message that stops a run."""
        text = f"{self.wrong}: {self.why}; {self.right}; to run it all the same, acknowledge: [{self.rule}]"
        return Mistake(self.path, text)


Found = Iterator[tuple[Path, str, str, str]]
"""(field, what is wrong, why, what would be right)."""


def findings(recipe: Recipe, algorithm: Algorithm) -> tuple[Finding, ...]:
    """Everything the rules find, at most one of each rule."""
    named = set(recipe.acknowledge)
    found = [(name, next(rule(recipe, algorithm), None)) for name, rule in RULES.items()]
    return tuple(Finding(name, *one, acknowledged=name in named) for name, one in found if one is not None)


def unmatched(recipe: Recipe, found: tuple[Finding, ...]) -> Iterator[Mistake]:
    """Acknowledgements of what no rule found."""
    names = [finding.rule for finding in found]
    for index, name in enumerate(recipe.acknowledge):
        if name not in RULES:
            yield Mistake(("acknowledge", index), f"{name!r} is not a warning's name; {did_you_mean(name, RULES)}")
        elif name not in names:
            text = f"{name!r} is acknowledged, but nothing warns of it; leave it out"
            yield Mistake(("acknowledge", index), text)


def stale_gradient(recipe: Recipe, algorithm: Algorithm) -> Found:
    """Rollouts of an older policy, by several updates or from ahead, and nothing that corrects for it."""
    rollout = recipe.rollout
    if rollout.updates > 1:
        for term in _reinforcing(algorithm):
            if _part(term, "denominator").formula == "sg(pi)":
                yield (
                    ("rollout", "updates"),
                    f"{rollout.updates} with grad_{term.name}: its denominator is `current`",
                    "after the first update the rollouts are another policy's, and nothing corrects for it",
                    "right: 1 update a rollout phase, or an algorithm with a ratio (denominator `old`) and a clip",
                )
    corrected = correctable(algorithm) if correction(recipe, algorithm) != "none" else ()
    for term in _over(algorithm, "rollouts") if rollout.max_staleness else ():
        reads_old = "old_logprobs" in _part(term, "denominator").needs
        anyones = not _reads_rewards(term) or (_is_paired(term) and not reads_old)
        begins = rollout.old_logprobs == "sampler" and reads_old
        if anyones or begins or corrects_itself(term) or any(term is one for one in corrected):
            continue
        key = "old_logprobs: sampler" if _is_paired(term) else "correction: auto"
        yield (
            ("rollout", "max_staleness"),
            f"{rollout.max_staleness} with grad_{term.name}, which has no importance weight for it",
            "the rollouts are an older policy's, and nothing corrects for it",
            f"right: 0, or rollout.{key}",
        )


def truncated_sampling(recipe: Recipe, algorithm: Algorithm) -> Found:
    """top_p or top_k, and a gradient that takes rollouts for samples of the policy."""
    rollout = recipe.rollout
    key = "top_p" if rollout.top_p < 1 else "top_k"
    if rollout.top_p == 1 and rollout.top_k == 0:
        return
    terms = [t for t in _over(algorithm, "rollouts") if _reads_rewards(t) or _part(t, "denominator").needs]
    if terms:
        yield (
            ("rollout", key),
            f"{getattr(rollout, key)} cuts the distribution that rollouts are drawn from",
            "logprobs are the whole distribution's, so that ratios average to the kept mass instead of 1 and the "
            "gradient is biased",
            "right: top_p 1, top_k 0; a lower temperature is scored as it is sampled",
        )


def two_temperatures(recipe: Recipe, algorithm: Algorithm) -> Found:
    """Rollouts at a temperature, and other data that is scored at 1."""
    others = sorted({str(source) for source in algorithm.sources} - {"rollouts"})
    if "rollouts" in algorithm.sources and others and recipe.rollout.temperature != 1:
        yield (
            ("rollout", "temperature"),
            f"{recipe.rollout.temperature:g} beside {' and '.join(others)}",
            "rollouts train softmax(logits / temperature), the other data softmax(logits): two policies in one update",
            "right: temperature 1",
        )


def pair_deviation(recipe: Recipe, algorithm: Algorithm) -> Found:
    """A group of two divided by its deviation."""
    if recipe.rollout.group_size != 2:
        return
    for term in _over(algorithm, "rollouts"):
        for part in _inside(term.describe().get("advantage")):
            if _name(part) == "GroupRelative" and part.std:
                yield (
                    ("rollout", "group_size"),
                    "2, with advantages divided by the group's deviation",
                    "the deviation of two is their difference, so the advantage is +0.71 or -0.71 whatever the rewards",
                    "right: std: false, or a larger group",
                )


def unclipped_reuse(recipe: Recipe, algorithm: Algorithm) -> Found:
    """Many updates from one rollout phase, and a ratio that nothing bounds."""
    if recipe.rollout.updates <= 4:
        return
    for term in _over(algorithm, "rollouts"):
        denominator, mask = _part(term, "denominator"), _part(term, "mask")
        if denominator.needs and not hasattr(denominator, "cap") and mask.formula == "1":
            yield (
                ("rollout", "updates"),
                f"{recipe.rollout.updates} with grad_{term.name}, whose ratio has no clip",
                "a few tokens whose probability has grown dominate the later updates",
                "right: at most 4 updates, or a mask such as clip",
            )


def unbounded_behavior(_: Recipe, algorithm: Algorithm) -> Found:
    """Importance weights against the sampler, as they come."""
    for term in _over(algorithm, "rollouts"):
        if _name(_part(term, "denominator")) == "Behavior" and _part(term, "mask").formula == "1":
            yield (
                ("algorithm",),
                f"grad_{term.name} divides by what the sampler reported, and no mask bounds the weight",
                "sampler and trainer differ in kernels and precision: single tokens get weights without limit",
                "right: a mask such as clip, or denominator `old` with the mask sampler_correction",
            )


def vanishing_imitation(_: Recipe, algorithm: Algorithm) -> Found:
    """Demonstrations by their bare probability."""
    terms = list(_over(algorithm, "demonstrations"))
    if any(_part(term, "denominator").formula == "sg(pi)" for term in terms):
        return
    for term in terms:
        if _name(_part(term, "denominator")) == "One" and _name(_part(term, "likelihood")) == "Ratio":
            yield (
                ("algorithm",),
                f"grad_{term.name} learns from demonstrations with the denominator `one` and no shaping",
                "its gradient is pi(y) grad log pi(y): what the policy finds unlikely, it never learns",
                "right: the likelihood `shaped`, or a term with the denominator `current` beside it",
            )


def self_imitation(_: Recipe, algorithm: Algorithm) -> Found:
    """All of the policy's own rollouts, imitated."""
    if getattr(algorithm.plan, "pairing", None) is not None:
        return
    for term in _over(algorithm, "rollouts"):
        roles = term.describe()
        plain = _name(roles.get("advantage")) == "Constant" and _part(term, "denominator").formula == "sg(pi)"
        if plain and "where" not in roles and not _part(term, "weight").needs:
            yield (
                ("algorithm",),
                f"grad_{term.name} imitates every rollout, good or bad",
                "the expectation of grad log pi under pi is 0: it learns noise",
                "right: an advantage that reads rewards, or `where` such as solved",
            )


def rounded_updates(recipe: Recipe, _: Algorithm) -> Found:
    """Weights of half precision under a small learning rate."""
    smallest = _HALF_STEP.get(recipe.model.dtype, 0.0)
    if 0 < recipe.training.learning_rate < smallest and recipe.lora is None:
        yield (
            ("model", "dtype"),
            f"{recipe.model.dtype} weights with training.learning_rate {recipe.training.learning_rate:g}",
            f"AdamW moves a weight by about the learning rate, and {recipe.model.dtype} rounds less than {smallest:g} "
            "away near 0.02: most weights stay as they are",
            "right: model.dtype float32 with training.mixed_precision bf16",
        )


def dropout(recipe: Recipe, algorithm: Algorithm) -> Found:
    """Dropout where logprobs of two passes are compared."""
    places: list[tuple[Path, float]] = [
        (("model", "config", *path), value)
        for path, value in _numbers(recipe.model.config or {})
        if "dropout" in path[-1] or path[-1].endswith("pdrop")
    ]
    if recipe.lora is not None:
        places.append((("lora", "dropout"), recipe.lora.dropout))
    compared = sorted(algorithm.needs & {"old_logprobs", "behavior_logprobs", "reference_logprobs"})
    for path, value in places:
        if value > 0 and compared:
            yield (
                path,
                f"{value:g}, and the objective compares logprobs with {' and '.join(compared)}",
                "those are scored without dropout: the ratio is not 1 before the first update",
                "right: 0",
            )


def unchecked_outcome(recipe: Recipe, algorithm: Algorithm) -> Found:
    """A first reward that cannot know the answer, beside one that does."""
    if "rollouts" not in algorithm.sources or any(reward.outcome for reward in recipe.rewards):
        return
    checking = {one.name: _reads_columns(one.name) for one in recipe.rewards if not one.shaping}
    first = next(iter(checking), None)
    if first is not None and any(checking.values()) and not checking[first]:
        other = next(name for name, checks in checking.items() if checks)
        yield (
            ("rewards", [one.name for one in recipe.rewards].index(first)),
            f"{first!r} is the first reward, so its full mark is what solved means, and it reads the completion alone",
            "gates, filters and pass_rate would count a form, not a right answer",
            f"right: `outcome: true` at {other!r}, or list it first, or `shaping: true` at {first!r}",
        )


def clip_range(_: Recipe, algorithm: Algorithm) -> Found:
    """A token's range on a sequence's ratio, or the other way round."""
    for term in _over(algorithm, "rollouts"):
        for part in _inside(term.describe().get("mask")):
            wide = _name(part) == "SequenceClip" and max(part.low, part.high) > 0.05
            if wide or (_name(part) == "Clip" and max(part.low, part.high) < 2e-3):
                kind, other = ("sequence's mean", "3e-4 to 4e-4") if wide else ("single token's", "0.1 to 0.3")
                yield (
                    ("algorithm",),
                    f"{part.low:g} and {part.high:g} clip a {kind} ratio",
                    "it would hardly ever be clipped" if wide else "nearly every token would be clipped at once",
                    f"right: {other}",
                )


def weight_cap(_: Recipe, algorithm: Algorithm) -> Found:
    """A cap of importance weights that is an epsilon."""
    for term in _over(algorithm, "rollouts"):
        cap = getattr(_part(term, "denominator"), "cap", None)
        if cap is not None and cap <= 1:
            yield (
                ("algorithm",),
                f"cap {cap:g} bounds the importance weight itself",
                "on-policy the weight is 1, so every token would be capped",
                f"right: {1 + cap:g} if {cap:g} is meant as epsilon (cap = 1 + epsilon); 5 is usual",
            )


def overlong_out_of_reach(recipe: Recipe, _: Algorithm) -> Found:
    """A reward that begins beyond the longest completion."""
    for index, reward in enumerate(recipe.rewards):
        begins = reward.settings.get("max_tokens", 0) - reward.settings.get("buffer_tokens", 0)
        if "buffer_tokens" in reward.settings and begins >= recipe.rollout.max_tokens:
            yield (
                ("rewards", index, "max_tokens"),
                f"{reward.name} acts from {begins:,} tokens, and completions end at {recipe.rollout.max_tokens:,}",
                "it is the same for every rollout",
                f"right: max_tokens {recipe.rollout.max_tokens}, the rollouts' own, and a buffer within it",
            )


def sampler_precision(recipe: Recipe, algorithm: Algorithm) -> Found:
    """Sampling in less precision than is trained in, uncorrected."""
    if not samples_below_precision(recipe) or correction(recipe, algorithm) != "none":
        return
    at_sampler = recipe.rollout.old_logprobs == "sampler"
    terms = (term for term in _reinforcing(algorithm) if not corrects_itself(term))
    if any(not (at_sampler and "old_logprobs" in _part(term, "denominator").needs) for term in terms):
        yield (
            ("rollout", "dtype"),
            f"{recipe.rollout.dtype} while the policy is trained in {recipe.model.dtype}",
            "the sampler is another policy than the one that the ratio begins at, and nothing corrects for it",
            f"right: rollout.dtype {recipe.model.dtype}, or rollout.correction: auto",
        )


def _over(algorithm: Algorithm, source: str) -> Iterator[Term]:
    """The terms over `source` that are made of the four parts."""
    for term in algorithm.terms:
        if term.source == source and {"denominator", "mask", "advantage", "likelihood"} <= term.describe().keys():
            yield term


def _reinforcing(algorithm: Algorithm) -> Iterator[Term]:
    """The policy gradients on rollouts; preferences among rollouts hold for any policy's."""
    for term in _over(algorithm, "rollouts"):
        if _reads_rewards(term) and not _is_paired(term):
            yield term


def _is_paired(term: Term) -> bool:
    return getattr(_part(term, "advantage"), "couples", "") == "pair"


def _reads_rewards(term: Term) -> bool:
    return "rewards" in _part(term, "advantage").needs


def _part(term: Term, role: str) -> Any:
    return term.describe()[role]


def _name(part: Any) -> str:
    return type(part).__name__


def _inside(part: Any) -> Iterator[Any]:
    """The part, and those that it holds."""
    if part is not None:
        yield part
    for field in fields(part) if is_dataclass(part) else ():
        value = getattr(part, field.name)
        if is_dataclass(value):
            yield from _inside(value)


def _numbers(config: dict[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
    for key, value in config.items():
        if isinstance(value, dict):
            yield from (((key, *path), number) for path, number in _numbers(value))
        elif isinstance(value, int | float):
            yield (key,), float(value)


def _reads_columns(name: str) -> bool:
    """Whether a reward reads anything besides the trajectory."""
    parameters = inspect.signature(catalog.find("rewards", name)).parameters.values()
    return any(p.kind is not p.KEYWORD_ONLY and p.name not in TRAJECTORY_INPUTS for p in parameters)


RULES: dict[str, Callable[[Recipe, Algorithm], Found]] = {
    rule.__name__: rule
    for rule in (
        stale_gradient,
        truncated_sampling,
        two_temperatures,
        pair_deviation,
        unclipped_reuse,
        unbounded_behavior,
        vanishing_imitation,
        self_imitation,
        rounded_updates,
        dropout,
        unchecked_outcome,
        clip_range,
        weight_cap,
        overlong_out_of_reach,
        sampler_precision,
    )
}
"""Name -> rule; the name is what a recipe acknowledges."""
