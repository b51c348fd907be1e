"""One optimiser step: micro-batches of sequences in, one update of the policy out.

The gradient is the same under every split: coefficients and normalisers are fixed for the whole step, over all ranks,
before the first micro-batch runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from posttrain.batch import Source, TokenBatch, TokenSequence
from posttrain.data.collate import collate, microbatches
from posttrain.estimator import Algorithm, reduce
from posttrain.estimator.diagnostics import Diagnostics, means, merge
from posttrain.trainer.distributed import add_over_ranks, largest_over_ranks

_NOTHING = TokenSequence((0, 0), (False, True), Source.ROLLOUTS, group=0)
"""What a rank without work runs, at weight 0, so that every rank takes part in every collective."""


@dataclass
class Updater:
    """Applies `algorithm` to batches of sequences. memory: what its parts carry from step to step."""

    algorithm: Algorithm
    policy: Any
    optimizer: Any
    schedule: Any
    accelerator: Any
    tokens_per_microbatch: int
    max_grad_norm: float
    memory: dict[str, float] = field(default_factory=dict)

    def __call__(self, sequences: Sequence[TokenSequence], step: int = 0) -> dict[str, float]:
        """One step on this rank's `sequences`, after `step` steps of the run; returns its metrics.

        A gradient with inf or nan leaves policy, optimiser and schedule as they were: `skipped` is 1.
        """
        own = TokenBatch.from_sequences(sequences, self._dtype, step, self.memory)
        batch = self.algorithm.prepare(own, partial(add_over_ranks, self.accelerator))
        counts = add_over_ranks(self.accelerator, self.algorithm.counts(batch))
        active = self.algorithm.active(batch).nonzero().squeeze(1).tolist()
        kept = [sequences[row] for row in active]
        shares = shares_prompts(self.policy)
        batches = microbatches(kept, self.tokens_per_microbatch, self.algorithm.couples, share=shares)
        plan = [[active[i] for i in rows] for rows in batches]
        num_microbatches = max(1, largest_over_ranks(self.accelerator, len(plan)))
        self.policy.train()
        found: list[Diagnostics] = []
        for index in range(num_microbatches):
            last = index == num_microbatches - 1
            with nullcontext() if last else self.accelerator.no_sync(self.policy):
                if index < len(plan):
                    found.append(self._accumulate(batch, sequences, plan[index], counts))
                else:
                    self._accumulate_nothing()
        metrics = self._apply()
        metrics |= {
            "num_sequences": len(sequences),
            "num_pruned": len(sequences) - len(active),
            "update_tokens": sum(s.num_tokens for s in kept),
        }
        found_means = self._means(found)
        self.memory = self.algorithm.remember(self.memory, found_means)
        return metrics | found_means

    @property
    def _dtype(self) -> torch.dtype:
        weights = next(self.policy.parameters()).dtype
        return torch.float64 if weights == torch.float64 else torch.float32

    def _accumulate(
        self, batch: TokenBatch, sequences: Sequence[TokenSequence], rows: list[int], counts: torch.Tensor
    ) -> Diagnostics:
        device = self.accelerator.device
        part = batch.take(torch.tensor(rows)).to(device)
        part_rows = collate([sequences[row] for row in rows], share=shares_prompts(self.policy))
        scored = self.policy(part_rows.to(device))
        old = scored.logprobs.detach() if part.old_logprobs is None else part.old_logprobs
        beside = {name: getattr(scored, name) for name in ("values", "divergence")}
        beside = {name: found for name, found in beside.items() if found is not None}
        part = part.replace(logprobs=scored.logprobs, entropy=scored.entropy, old_logprobs=old, **beside)
        totals, found = self.algorithm.totals(part)
        # Ranks average their gradients; the counts are global, so the sum over ranks is wanted.
        self.accelerator.backward(reduce(totals, counts.to(device)) * self.accelerator.num_processes)
        return found

    def _accumulate_nothing(self) -> None:
        scored = self.policy(collate([_NOTHING]).to(self.accelerator.device))
        self.accelerator.backward(0.0 * scored.logprobs.sum())

    def _apply(self) -> dict[str, float]:
        limit = self.max_grad_norm or math.inf
        grad_norm = float(self.accelerator.clip_grad_norm_(self.policy.parameters(), limit))
        finite = math.isfinite(grad_norm)
        learning_rate = self.schedule.get_last_lr()[0]
        if finite or self.accelerator.scaler is not None:  # fp16's scaler skips the step itself, and adapts
            self.optimizer.step()
        if finite:
            self.schedule.step()
        self.optimizer.zero_grad()
        return {"grad_norm": grad_norm, "learning_rate": learning_rate, "skipped": float(not finite)}

    def _means(self, found: list[Diagnostics]) -> dict[str, float]:
        merged = merge(found)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            merged = merge(gather_object([{k: (t.cpu(), c.cpu()) for k, (t, c) in merged.items()}]))
        return means(merged)


@torch.no_grad()
def score(
    policy: Any, sequences: Sequence[TokenSequence], field: str, tokens_per_microbatch: int, device: torch.device
) -> list[TokenSequence]:
    """The sequences with the logprobs of their actions under `policy` written to `field`."""
    scored = list(sequences)
    training = policy.training
    policy.eval()
    share = shares_prompts(policy)
    for rows in microbatches(sequences, tokens_per_microbatch, "", share=share):
        part = [sequences[row] for row in rows]
        values = policy(collate(part, share=share).to(device)).logprobs.cpu().split([s.num_actions for s in part])
        for row, logprobs in zip(rows, values, strict=True):
            changes: dict[str, Any] = {field: tuple(logprobs.tolist())}
            scored[row] = replace(sequences[row], **changes)
    policy.train(training)
    return scored


def shares_prompts(policy: Any) -> bool:
    """Whether the policy, wrapped or not, takes rows in which sequences share their prompt."""
    return bool(getattr(policy, "module", policy).shares_prompts)
