"""From a recipe's `environment` and `partner` to an environment whose other side somebody plays."""

from __future__ import annotations

from typing import Any

from posttrain import catalog
from posttrain.config.schema import Named, PartnerSettings
from posttrain.environments import Environment
from posttrain.environments.speaker import TwoSided
from posttrain.errors import RecipeError
from posttrain.evaluation.model import NamedModel, Opened, open_model
from posttrain.rollout.engine import Sampling
from posttrain.rollout.speaker import EngineSpeaker


def make_environment(named: Named, partner: PartnerSettings | None, policy: Opened | None) -> Environment:
    """The environment, and with `partner` its other side played by that; policy: who plays where it is self-play.

    A partner's model is loaded here, beside the policy's sampler. RecipeError where the environment has no other side,
    or nobody can play it; UserError where the model cannot be used.
    """
    environment: Environment = catalog.build("environments", named.name, named.settings)
    if partner is None:
        return environment
    if not isinstance(environment, TwoSided):
        environment.close()
        raise RecipeError(f"partner: environment {named.name!r} has no other side; allowed: leave `partner` out")
    return environment.with_partner(_speaker(partner, policy))


def _speaker(settings: PartnerSettings, policy: Opened | None) -> EngineSpeaker:
    opened = policy
    if settings.path is not None:
        model = NamedModel(settings.path, settings.engine, settings.name)
        model.check()
        opened = open_model(model)
    if opened is None:
        raise RecipeError("partner.self_play: no policy plays here; allowed: a `path`")
    sampling: dict[str, Any] = {"temperature": settings.temperature, "top_p": settings.top_p}
    return EngineSpeaker(opened.engine, opened.tokenizer, Sampling(settings.max_tokens, opened.stop_ids, **sampling))
