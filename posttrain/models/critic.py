"""The second trained model: a decoder with a scalar head that gives every action token a number.

Its weights live in the run's checkpoints and nowhere else: `final/`, samplers and references know the policy alone.
"""

from __future__ import annotations

import copy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from posttrain.models.shared_rows import hidden_states
from posttrain.rows import Layout, Rows

Reading = Literal["state", "action"]


class Critic(nn.Module):
    """A copy of `model`'s decoder, weights of its own, under a linear head that starts at zero.

    reading: which hidden state an action's number is read from, "state" (the one that predicts the action: V(s_t) of
    PPO) or "action" (the action token's own: the token reward model of arXiv 2502.06781, sec. 3.2).
    """

    def __init__(self, model: Any, reading: Reading) -> None:
        super().__init__()
        self.decoder = copy.deepcopy(model.get_decoder())
        weight = model.get_output_embeddings().weight
        self.head = Scalar(weight.shape[1], 1, dtype=weight.dtype, device=weight.device)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)
        self.reading = reading
        self.layout: Layout = getattr(model, "row_layout", "padded")

    def forward(self, rows: Rows) -> Tensor:
        """A number for each action token [A]; float32, or float64 as the model is.

        ValueError where the reading is "action" and `rows` were not collated whole.
        """
        hidden, rows = hidden_states(self.decoder, rows, self.layout)
        index = rows.predictor_index if self.reading == "state" else rows.action_index
        if index is None:
            raise ValueError("a critic that reads actions needs whole rows: collate(..., whole=True)")
        values: Tensor = self.head(hidden.index_select(0, index))
        return values


class Scalar(nn.Linear):
    """A linear layer to one number, which autocast does not round."""

    def forward(self, hidden: Tensor) -> Tensor:
        """[A] from [A, H]; float32, or float64 as `hidden` is."""
        kind = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        return (hidden.to(kind) * self.weight[0].to(kind)).sum(-1) + self.bias.to(kind)
