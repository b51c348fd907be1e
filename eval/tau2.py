"""tau2-bench (arXiv 2506.07982): customer service with tools, for a user played by a model; solved by the database."""

from __future__ import annotations

from posttrain.config.schema import EpisodeSettings, Named, PartnerSettings, SourceSettings
from posttrain.environments.tau2_domains import Domain
from posttrain.evaluation.benchmark import Benchmark
from posttrain.reward import RewardSpec

DOING_NOTHING: dict[Domain, tuple[int, int]] = {
    "airline": (19, 50),
    "retail": (7, 114),
    "telecom": (0, 114),
    "banking": (0, 97),
}
"""Tasks that an agent solves which says one sentence and calls no tool, of how many: report scores next to it."""


def tau2(
    *,
    domain: Domain = "airline",
    first: int = 0,
    size: int | None = None,
    user: str | None = None,
    user_name: str | None = None,
    user_max_tokens: int = 512,
    max_turns: int = 100,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 1024,
) -> Benchmark:
    """The base split of a domain, or `size` tasks of it from number `first` on.

    user: the model or endpoint that plays the user, at temperature 0 as in tau2-bench (user_name: which of an
    endpoint's); without one a script does, who says all at once: scores are then no tau2-bench scores.
    """
    other = None
    if user is not None:
        other = PartnerSettings(path=user, name=user_name, max_tokens=user_max_tokens, temperature=0.0)
    return Benchmark(
        name=f"tau2/{domain}",
        source=SourceSettings(path="tasks", config={"size": size or DOING_NOTHING[domain][1] - first, "seed": first}),
        rewards=(RewardSpec("episode_success"),),
        environment=Named.model_validate({"name": "tau2", "domain": domain}),
        episode=EpisodeSettings(max_turns=max_turns),
        partner=other,
        temperature=temperature,
        top_p=top_p,
        max_tokens=max_tokens,
    )
