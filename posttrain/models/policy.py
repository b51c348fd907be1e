"""The policy as the trainer sees it: padded rows in, log-probability and entropy of each action token out.

No attention mask is passed: rows are padded on the right, so a causal model never looks from a token to padding, and
the fast causal kernels stay available. `models.check` verifies this, and the head, for the loaded architecture.
Not covered: architectures whose attention is not causal, and value heads.
"""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn

from posttrain.models.head import DEFAULT_CHUNK_BYTES, LogitShape, TokenLogprobs, token_logprobs


class PolicyRows(Protocol):
    """What a policy reads of `posttrain.data.collate.Rows`."""

    @property
    def input_ids(self) -> Tensor:
        """Tokens, padded on the right [B, T]."""
        ...

    @property
    def predictor_index(self) -> Tensor:
        """Flat positions in [B, T] whose output predicts an action token [A]."""
        ...

    @property
    def action_ids(self) -> Tensor:
        """The action tokens [A]."""
        ...

    @property
    def temperatures(self) -> Tensor:
        """The temperatures they are scored at [A]."""
        ...


class Policy(nn.Module):
    """A causal language model of transformers (`.model`) that scores action tokens.

    All its work happens in `forward`, so that wrappers for data parallelism see it. chunk_bytes: see `token_logprobs`.
    """

    def __init__(self, model: Any, *, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> None:
        super().__init__()
        self.model = model
        self.chunk_bytes = chunk_bytes
        self.shape = logit_shape(model.config)

    def forward(self, rows: PolicyRows) -> TokenLogprobs:
        """Logprobs and entropies [A] of softmax(logits / temperature), in nats; float32, or float64 as the model is."""
        output = self.model.get_decoder()(input_ids=rows.input_ids, use_cache=False)
        hidden = output.last_hidden_state.flatten(0, 1).index_select(0, rows.predictor_index)
        head = self.model.get_output_embeddings()
        return token_logprobs(
            hidden,
            head.weight,
            getattr(head, "bias", None),
            rows.action_ids,
            rows.temperatures,
            chunk_bytes=self.chunk_bytes,
            shape=self.shape,
        )


def logit_shape(config: Any) -> LogitShape:
    """What the architecture of `config` does to its logits: Cohere multiplies, Granite divides, Gemma caps."""
    text = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= getattr(text, name, None) or 1.0
    scale /= getattr(text, "logits_scaling", None) or 1.0
    softcap = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
    return LogitShape(float(scale), None if softcap is None else float(softcap))
