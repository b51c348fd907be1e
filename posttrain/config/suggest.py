"""Where a misplaced key belongs: in another section, or under our name for what other libraries call it."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel

from posttrain.catalog import show, unknown_key
from posttrain.config.extends import EXTENDS
from posttrain.config.schema import Recipe

ELSEWHERE = {
    "accumulation_steps": "training.tokens_per_microbatch",
    "batch_size": "training.prompts_per_step",
    "clip_grad": "training.max_grad_norm",
    "dataset": "prompts",
    "eval": "evaluation",
    "gradient_accumulation_steps": "training.tokens_per_microbatch",
    "lr": "training.learning_rate",
    "lr_scheduler_type": "training.schedule",
    "max_completion_length": "rollout.max_tokens",
    "max_new_tokens": "rollout.max_tokens",
    "max_steps": "training.steps",
    "micro_batch_size": "training.tokens_per_microbatch",
    "model_name_or_path": "model.path",
    "num_generations": "rollout.group_size",
    "num_steps": "training.steps",
    "per_device_train_batch_size": "training.prompts_per_step",
    "report_to": "tracking.trackers",
    "save_steps": "checkpoint.every_steps",
}
"""Names of TRL, verl and transformers -> ours."""

_SECTIONS = ("model", "tokenizer", "rollout", "training", "checkpoint", "tracking")


def unknown(path: tuple[str | int, ...], value: Any) -> str:
    """The sentence about an unknown key of a recipe."""
    key = str(path[-1])
    allowed = [*_model_at(path[:-1]).model_fields, *([EXTENDS] if len(path) == 1 else [])]
    if path == (EXTENDS,):
        return "a recipe's file extends another recipe; on the command line, name the recipe that is meant"
    places = [f"{s}.{key}" for s in _SECTIONS if s != path[0] and key in _model_at((s,)).model_fields]
    if not places and key in ELSEWHERE:
        places = [ELSEWHERE[key]]
    if places:
        names = " or ".join(repr(place) for place in places)
        return f"unknown key (set to {show(value)}); did you mean {names}? allowed here: {', '.join(sorted(allowed))}"
    return unknown_key(key, value, allowed)


def _model_at(path: tuple[str | int, ...]) -> type[BaseModel]:
    """The closed model that holds the keys at `path`."""
    model: type[BaseModel] = Recipe
    for key in path:
        if isinstance(key, str):
            model = _model_in(model.model_fields[key].annotation)
    return model


def _model_in(annotation: Any) -> type[BaseModel]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next(_model_in(inner) for inner in get_args(annotation) if inner is not type(None))
