"""A critic of what could be said: V of the state and Q of every token that could come next, for ILQL.

As in every critic of a run its weights live in checkpoints; `save_values` also puts them beside an exported policy, for
the sampler that is led by them (`rollout.guide`).
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from posttrain.models.critic import Reading, Scalar
from posttrain.models.head import token_logprobs
from posttrain.models.shared_rows import hidden_states
from posttrain.rows import Layout, Rows

FILE = "action_values.safetensors"


class ActionValues(nn.Module):
    """A copy of `model`'s decoder, weights of its own, under linear heads V [1] and Q [vocabulary] that start at zero.

    A second Q head follows the first after every update, target <- (1 - rate) target + rate Q; it reads the same hidden
    states (arXiv 2206.11871 has a whole network follow; heads alone are trlX's).
    """

    reading: ClassVar[Reading] = "state"
    target_weight: Tensor
    target_bias: Tensor

    def __init__(self, model: Any, target_rate: float) -> None:
        super().__init__()
        self.decoder = copy.deepcopy(model.get_decoder())
        size, width = model.get_output_embeddings().weight.shape
        how = {
            "dtype": model.get_output_embeddings().weight.dtype,
            "device": model.get_output_embeddings().weight.device,
        }
        self.state = Scalar(width, 1, **how)
        self.action = nn.Linear(width, size, **how)
        for head in (self.state, self.action):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)
        self.register_buffer("target_weight", torch.zeros_like(self.action.weight))
        self.register_buffer("target_bias", torch.zeros_like(self.action.bias))
        self.target_rate = target_rate
        self.layout: Layout = getattr(model, "row_layout", "padded")

    def forward(self, rows: Rows) -> Tensor:
        """Of each action token a in its state s: V(s), Q(s, a), log softmax(Q(s, .))[a], target Q(s, a) [4, A].

        float32, or float64 as the model is. The target has no gradient.
        """
        hidden, rows = hidden_states(self.decoder, rows, self.layout)
        hidden = hidden.index_select(0, rows.predictor_index)
        ids = rows.action_ids
        weight, bias = self.action.weight, self.action.bias
        said = token_logprobs(hidden, weight, bias, ids, torch.ones_like(rows.temperatures))
        with torch.no_grad():
            target = _chosen(hidden, self.target_weight, self.target_bias, ids)
        return torch.stack([self.state(hidden), _chosen(hidden, weight, bias, ids), said.logprobs, target])

    @torch.no_grad()
    def follow(self) -> None:
        """Move the target head; after every update."""
        self.target_weight.lerp_(self.action.weight, self.target_rate)
        self.target_bias.lerp_(self.action.bias, self.target_rate)


def _chosen(hidden: Tensor, weight: Tensor, bias: Tensor, ids: Tensor) -> Tensor:
    """The head's number of each token's own id [A]; no [A, V] is made."""
    kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
    return (hidden.to(kind) * weight[ids].to(kind)).sum(-1) + bias[ids].to(kind)


def save_values(values: ActionValues, directory: Path) -> None:
    """Write all of it beside the policy that it belongs to."""
    from safetensors.torch import save_file

    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in values.state_dict().items()}, directory / FILE
    )


def load_values(model: Any, directory: Path) -> ActionValues:
    """What `save_values` wrote beside `model`, frozen."""
    from safetensors.torch import load_file

    values = ActionValues(model, target_rate=0.0)
    values.load_state_dict(load_file(directory / FILE))
    return values.requires_grad_(False).eval()
