"""A trained reward model as a reward: what it says of a completion, or of its steps.

The model is held by the workers that grade, each with a copy: for one of up to a few hundred million parameters on CPU
that is right. Set `rollout.reward_workers: 1`, and `rollout.memory_bytes` to three times its bytes plus 6e9, as torch
alone reserves much address space. On a GPU (`device: cuda`) the limit must be out of the way (memory_bytes: 1e13);
calls come one at a time. A model too large for that, or for the device that trains, belongs on a machine of its own.
"""

from __future__ import annotations

import inspect
import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

from posttrain.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from posttrain.evaluation.reward_model import RewardModel


def reward_model(
    completion: str,
    prompt: Any,
    completion_messages: Any = None,
    *,
    path: str = "",
    score: str | None = None,
    over_steps: Literal["min", "last", "mean", "product"] = "min",
    squash: bool = False,
    shift: float = 0.0,
    scale: float = 1.0,
    device: str = "cpu",
    dtype: str = "auto",
) -> float | None:
    """scale (s - shift), or with `squash` sigma of it, s what the model at `path` says of the completion.

    path: a directory (a reward model's run final/) or hub id of a sequence classification model. score: which of its
    labels, where it has several. A process reward model's steps are the lines of the completion, whose probabilities
    become one by over_steps: the lowest (arXiv 2312.08935), the last, their mean or product (arXiv 2305.20050). A
    reward of at least 1 counts as solved: without `squash` a score is no probability, and should not be the outcome.
    None for an episode of several turns: what the environment said between them is not known here.
    """
    if not path:
        raise RecipeError("reward_model: path is missing; allowed: the final/ of a reward model's run, or a hub id")
    model = _model(path, device, dtype)
    if score is not None and score not in model.names:
        raise RecipeError(f"reward_model: score is {score!r}; {did_you_mean(score, model.names)}")
    if score is None and len(model.names) > 1:
        raise RecipeError(f"reward_model: score is missing; allowed: one of {', '.join(model.names)}")
    if len(completion_messages or ()) > 1:
        return None
    answer: Any = completion
    if not isinstance(prompt, str):
        prompt, answer = tuple(prompt), ({"role": "assistant", "content": completion},)
    (scored,) = model([(prompt, answer)])
    value = scale * (model.reward(scored, answer, over_steps)[model.names.index(score) if score else 0] - shift)
    return 1 / (1 + math.exp(-max(-700.0, value))) if squash else value


def warm_up(**settings: Any) -> None:
    """Load the model before the first call's deadline runs."""
    given = inspect.signature(reward_model).parameters
    chosen = {name: settings.get(name, given[name].default) for name in ("path", "device", "dtype")}
    if chosen["path"]:
        _model(**chosen)


@lru_cache(maxsize=2)
def _model(path: str, device: str, dtype: str) -> RewardModel:
    import torch

    from posttrain.evaluation.reward_model import RewardModel

    if device == "cpu":
        torch.set_num_threads(1)  # the others are the sampler's
    return RewardModel.load(path, device=device, dtype=dtype)
