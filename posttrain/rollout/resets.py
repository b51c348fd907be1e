"""Rollouts that start inside a demonstration: its first tokens are given, the policy samples the rest.

DR-PO (arXiv 2404.08495, alg. 1; its code: with a given probability, after 1 to length - 1 of the reference's tokens,
uniformly). The given tokens are part of the turn's prompt, so the policy gradient does not see them; the text that is
graded holds both. Only the demonstration's first turn is started inside of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from posttrain.data.chat import encode_demonstration
from posttrain.data.examples import Example
from posttrain.rollout.seeds import derived_seed, derived_uniform

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def first_turn(example: Example, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens of the demonstration's first turn, its terminator with them; none where there is no demonstration."""
    if example.completion is None:
        return ()
    encoded = encode_demonstration(example.prompt, example.completion, tokenizer, example.tools)[0]
    start = encoded.action_mask.index(True)
    end = next((i for i in range(start, len(encoded.token_ids)) if not encoded.action_mask[i]), len(encoded.token_ids))
    return encoded.token_ids[start:end]


def given_tokens(turn: tuple[int, ...], probability: float, seed: int, *place: str | int) -> tuple[int, ...]:
    """With `probability` the first k tokens of `turn`, k uniform in 1 .. length - 1; else, or where length < 2, none.

    Both draws derive from (seed, place) alone.
    """
    if len(turn) < 2 or derived_uniform(seed, *place, "reset") >= probability:
        return ()
    return turn[: 1 + derived_seed(seed, *place, "length") % (len(turn) - 1)]
