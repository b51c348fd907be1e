"""The policy as the trainer sees it: padded rows in, log-probability and entropy of each action token out.

Plain rows come without an attention mask: they are padded on the right, so a causal model never looks from a token to
padding, and the fast causal kernels stay available. Rows that several sequences share bring a mask; models that cannot
take it (see `models.shared_rows`) get the same sequences as plain rows. `models.check` verifies all this, and the head,
for the loaded architecture. Not covered: architectures whose attention is not causal, and value heads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from posttrain.models.head import DEFAULT_CHUNK_BYTES, LogitShape, token_logprobs
from posttrain.models.shared_rows import PolicyRows, attention_masks, may_share, unshared


class Scored(NamedTuple):
    """Of each action token [A]: log-probability, entropy, and what the models beside the policy say of it.

    values: the critic's scalar; divergence: from the teacher, in nats; None without such a model.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None = None
    divergence: Tensor | None = None


class Policy(nn.Module):
    """A causal language model of transformers (`.model`) that scores action tokens.

    All its work happens in `forward`, so that wrappers for data parallelism see it. chunk_bytes: see `token_logprobs`.
    shares_prompts: whether the model computes shared rows as they are; `models.check` decides it at load.
    """

    def __init__(self, model: Any, *, chunk_bytes: int = DEFAULT_CHUNK_BYTES) -> None:
        super().__init__()
        self.model = model
        self.chunk_bytes = chunk_bytes
        self.shape = logit_shape(model.config)
        self.shares_prompts: bool = getattr(model, "shares_prompts", False)

    def forward(self, rows: PolicyRows) -> Scored:
        """Logprobs and entropies [A] of softmax(logits / temperature), in nats; float32, or float64 as the model is."""
        decoder = self.model.get_decoder()
        how: dict[str, Any] = {}
        if rows.seen_until is not None and self.shares_prompts and may_share(decoder.config):
            mask = attention_masks(decoder.config, rows.seen_until, rows.position_ids)
            how = {"attention_mask": mask, "position_ids": rows.position_ids}
        elif rows.seen_until is not None:
            rows = unshared(rows)
        output = decoder(input_ids=rows.input_ids, use_cache=False, **how)
        hidden = output.last_hidden_state.flatten(0, 1).index_select(0, rows.predictor_index)
        head = self.model.get_output_embeddings()
        scored = token_logprobs(
            hidden,
            head.weight,
            getattr(head, "bias", None),
            rows.action_ids,
            rows.temperatures,
            chunk_bytes=self.chunk_bytes,
            shape=self.shape,
        )
        return Scored(*scored)


def logit_shape(config: Any) -> LogitShape:
    """What the architecture of `config` does to its logits: Cohere multiplies, Granite divides, Gemma caps."""
    text = config.get_text_config()
    scale = 1.0
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= getattr(text, name, None) or 1.0
    scale /= getattr(text, "logits_scaling", None) or 1.0
    softcap = getattr(text, "final_logit_softcapping", None) or getattr(text, "logits_soft_cap", None)
    return LogitShape(float(scale), None if softcap is None else float(softcap))
