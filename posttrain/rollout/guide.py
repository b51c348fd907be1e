"""Sampling led by values: softmax((logits + weight Q(s, .)) / temperature) (ILQL, arXiv 2206.11871, sec. 4.3).

The paper perturbs by weight (Q - V); V is the same for every token of a state and drops out of the softmax.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from torch import nn

from posttrain.models.action_values import ActionValues


class ValueGuide(nn.Module):
    """Called as a causal language model of transformers, with a cache of its own; its logits are weight * Q."""

    def __init__(self, values: ActionValues, weight: float) -> None:
        super().__init__()
        self.values, self.weight = values, weight

    def forward(self, *, logits_to_keep: int = 0, **inputs: Any) -> SimpleNamespace:
        """logits [B, T, V] of the last `logits_to_keep` positions (0: all)."""
        hidden = self.values.decoder(**inputs).last_hidden_state
        return SimpleNamespace(logits=self.weight * self.values.action(hidden[:, -logits_to_keep:]).float())
