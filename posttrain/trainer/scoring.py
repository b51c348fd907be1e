"""What the trainer's models say of a window's sequences before its first update."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from posttrain.batch import Source, TokenSequence
from posttrain.models.reference import visiting
from posttrain.trainer.judge import judged
from posttrain.trainer.step import Updater, score
from posttrain.trainer.window import Ask


def scored(
    sequences: Sequence[TokenSequence],
    updater: Updater,
    reference: Any,
    num_steps: int,
    old_logprobs: Literal["trainer", "sampler"] = "trainer",
) -> list[TokenSequence]:
    """The sequences of one of a window's `num_steps` steps with what the algorithm needs recorded of them.

    Old logprobs are scored where the policy will change within the window or advantages read them, or are the sampler's
    own; reference logprobs by `reference`; with a critic, its values before the update too.
    """
    needs = updater.algorithm.needs
    budget, accelerator = updater.tokens_per_microbatch, updater.accelerator
    found = list(sequences)
    read = "old_logprobs" in needs and (num_steps > 1 or "old_logprobs" in updater.algorithm.prepare_needs)
    if old_logprobs == "sampler":
        read = False
        found = [
            one if one.source is Source.DEMONSTRATIONS else replace(one, old_logprobs=one.behavior_logprobs)
            for one in found
        ]
    if read or "old_values" in needs:
        name = "old_logprobs" if read else "old_values"
        found = score(updater.policy, found, name, budget, accelerator)
    if "reference_logprobs" in needs:
        with visiting(reference, accelerator.device):
            found = score(reference, found, "reference_logprobs", budget, accelerator)
    return found


def judge_of(updater: Updater, tokenizer: Any) -> Ask | None:
    """Puts the policy's rollouts to the policy, where the algorithm's pairing has a judge."""
    pairing = updater.algorithm.plan.pairing
    if pairing is None or pairing.judge is None:
        return None
    ask = partial(
        score,
        updater.policy,
        field="old_logprobs",
        tokens_per_microbatch=updater.tokens_per_microbatch,
        accelerator=updater.accelerator,
    )
    return partial(judged, judge=pairing.judge, tokenizer=tokenizer, score=ask)
