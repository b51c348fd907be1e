"""A check at load time that `Policy` computes what the model itself computes: head, logit shape and padding."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from posttrain.errors import UserError
from posttrain.models.policy import Policy

_LENGTHS = (9, 5)
_SPREAD = 30.0


class _Rows(NamedTuple):
    input_ids: Tensor
    predictor_index: Tensor
    action_ids: Tensor
    temperatures: Tensor


@torch.no_grad()
def check_policy(model: Any) -> None:
    """Compare Policy's logprobs on two padded rows with softmax of the model's own logits on each row alone.

    Hidden states are scaled up on both sides until logits spread over about 30 nats, so that a cap or a factor shows
    even in a freshly initialised model. UserError naming the architecture where half of the digits do not agree.
    """
    training = model.training
    model.eval()
    vocabulary = model.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(vocabulary, (len(_LENGTHS), max(_LENGTHS)), generator=generator).to(model.device)
    try:
        difference, scale = _difference(model, ids)
    except (RuntimeError, TypeError, AttributeError, ValueError, IndexError) as error:
        raise _refusal(model, f"a forward pass fails: {error}") from error
    finally:
        model.train(training)
    if not difference <= torch.finfo(model.dtype).eps ** 0.5 * scale:
        raise _refusal(model, f"its logprobs differ from the model's own by up to {difference:.3g} nats")


def _refusal(model: Any, cause: str) -> UserError:
    return UserError(
        f"model: {type(model).__name__} (model_type {model.config.model_type!r}) cannot be trained here: {cause}. "
        "Allowed: causal language models whose logits are a linear head, maybe scaled or soft-capped, of the decoder's "
        "last hidden state, and that ignore padding on the right"
    )


def _difference(model: Any, ids: Tensor) -> tuple[float, float]:
    """Largest difference of logprobs, and the largest logit."""
    spread = float(model(input_ids=ids[:1], use_cache=False).logits.float().std())
    factor = max(1.0, _SPREAD / spread) if spread > 0 else 1.0

    def amplify(_module: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = factor * output.last_hidden_state
        return output

    hook = model.get_decoder().register_forward_hook(amplify)
    try:
        alone = [model(input_ids=ids[i : i + 1, :n], use_cache=False).logits[0, :-1] for i, n in enumerate(_LENGTHS)]
        predictors = [i * ids.shape[1] + torch.arange(n - 1, device=ids.device) for i, n in enumerate(_LENGTHS)]
        actions = torch.cat([ids[i, 1:n] for i, n in enumerate(_LENGTHS)])
        scored = Policy(model)(_Rows(ids, torch.cat(predictors), actions, torch.ones(len(actions), device=ids.device)))
    finally:
        hook.remove()
    logits = torch.cat(alone).to(scored.logprobs.dtype)
    expected = torch.log_softmax(logits, -1).gather(1, actions[:, None]).squeeze(1)
    return float((scored.logprobs - expected).abs().max()), float(logits.abs().max())
