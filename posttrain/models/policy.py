"""The policy as the trainer sees it: rows in, log-probability and entropy of each action token out.

How a model takes packed rows is in `models.shared_rows`, pictures in `models.vision`; one that cannot take packed rows
gets the same sequences as padded ones.
`models.check` verifies this, and the head, for the loaded architecture. Not covered: architectures whose attention is
not causal.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from posttrain.models.action_values import ActionValues
from posttrain.models.critic import Critic
from posttrain.models.divergence import Divergence, Scores, token_divergence
from posttrain.models.head import DEFAULT_CHUNK_BYTES, token_logprobs
from posttrain.models.logits import LogitShape
from posttrain.models.restricted import restricted_logprobs
from posttrain.models.shared_rows import hidden_states
from posttrain.models.vision import see
from posttrain.rows import Layout, Rows


class Scored(NamedTuple):
    """Of each action token [A]: log-probability, entropy, and what the models beside the policy say of it.

    values: the critic's scalar; divergence: from the teacher, in nats; None without such a model.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None = None
    divergence: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Teacher:
    """A frozen model and how far the policy is from it; no module, so that no wrapper or checkpoint takes it in."""

    model: Any
    divergence: Divergence

    @torch.no_grad()
    def __call__(self, rows: Rows) -> Scores:
        """Its logits at the action tokens, not computed yet."""
        rows = see(self.model, rows)
        return action_scores(self.model, rows, logit_shape(self.model.config), self.model.row_layout)


class Policy(nn.Module):
    """A causal language model of transformers (`.model`) that scores action tokens.

    All its work happens in `forward`, so that wrappers for data parallelism see it. chunk_bytes: see `token_logprobs`.
    layout: the rows that the model computes as they are; `models.check` decides it at load. teacher: the divergence
    from it is part of what is scored with gradient. critic: a second trained model, in the same wrapper and the same
    checkpoint, whose scalars are scored along.
    """

    def __init__(
        self,
        model: Any,
        teacher: Teacher | None = None,
        *,
        critic: Critic | ActionValues | None = None,
        chunk_bytes: int = DEFAULT_CHUNK_BYTES,
    ) -> None:
        super().__init__()
        self.model = model
        self.critic = critic
        self.teacher = teacher
        self.chunk_bytes = chunk_bytes
        self.shape = logit_shape(model.config)
        self.layout: Layout = getattr(model, "row_layout", "padded")

    @property
    def head(self) -> Any:
        """The linear layer that is read directly."""
        return self.model.get_output_embeddings()

    @property
    def whole(self) -> bool:
        """Whether rows must hold the action tokens themselves."""
        return self.critic is not None and self.critic.reading == "action"

    def forward(self, rows: Rows) -> Scored:
        """Logprobs and entropies [A] of softmax(logits / temperature), in nats; float32, or float64 as the model is.

        Where an action was one of a few tokens, the softmax is over these.
        """
        rows = see(self.model, rows)
        scores = action_scores(self.model, rows, self.shape, self.layout)
        chosen = rows.action_ids, rows.temperatures
        if rows.allowed is None:
            scored = token_logprobs(*scores[:3], *chosen, chunk_bytes=self.chunk_bytes, shape=self.shape)
        else:
            scored = restricted_logprobs(scores, *chosen, rows.allowed, chunk_bytes=self.chunk_bytes)
        read = rows if rows.seen is None else replace(rows, seen=rows.seen.detached())
        values = None if self.critic is None else self.critic(read)
        if self.teacher is None or not torch.is_grad_enabled():
            return Scored(*scored, values)
        how = self.teacher.divergence, scores, self.teacher(rows), rows.temperatures
        return Scored(*scored, values, token_divergence(*how, chunk_bytes=self.chunk_bytes))


def action_scores(model: Any, rows: Rows, shape: LogitShape, layout: Layout) -> Scores:
    """The model's logits at the action tokens of `rows` [A], not computed yet; its tower has seen their pictures."""
    hidden, rows = hidden_states(model.get_decoder(), rows, layout)
    head = model.get_output_embeddings()
    return Scores(hidden.index_select(0, rows.predictor_index), head.weight, getattr(head, "bias", None), shape)


def logit_shape(config: Any) -> LogitShape:
    """What the architecture of `config` does to its logits: Cohere multiplies, Granite divides, Gemma caps."""
    text = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= getattr(text, name, None) or 1.0
    scale /= getattr(text, "logits_scaling", None) or 1.0
    softcap = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
    return LogitShape(float(scale), None if softcap is None else float(softcap))
