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
from typing import Any, TypedDict

import torch

from posttrain.batch import Source, TokenBatch, TokenSequence
from posttrain.config.schema import CriticSettings
from posttrain.data.collate import collate
from posttrain.data.plan import microbatches
from posttrain.estimator import Algorithm, reduce
from posttrain.estimator.diagnostics import Diagnostics, means, merge
from posttrain.models.action_values import ActionValues
from posttrain.models.policy import Policy
from posttrain.models.scorer import Scorer
from posttrain.rows import Layout
from posttrain.trainer.distributed import add_over_ranks, largest_over_ranks
from posttrain.trainer.optimizer import learning_rates
from posttrain.trainer.share import share

_NOTHING = TokenSequence((0, 0), (False, True), Source.ROLLOUTS, group=0)
"""What a rank without work runs, at weight 0, so that every rank takes part in every collective."""


@dataclass
class Updater:
    """Applies `algorithm` to batches of sequences.

    critic: the norm its gradient is clipped to, apart from the policy's, and the updates of its warm-up, in which the
    policy's gradient is dropped and its learning rate is 0. memory: what the parts carry from step to step.
    """

    algorithm: Algorithm
    policy: Any
    optimizer: Any
    schedule: Any
    accelerator: Any
    tokens_per_microbatch: int
    max_grad_norm: float
    critic: CriticSettings = field(default_factory=CriticSettings)
    memory: dict[str, float] = field(default_factory=dict)

    def __call__(self, sequences: Sequence[TokenSequence], step: int = 0) -> dict[str, float]:
        """One step on this rank's `sequences`, after `step` steps of the run; returns its metrics.

        A gradient with inf or nan leaves policy, optimiser, schedule and memory as they were: `skipped` is 1.
        """
        made = TokenBatch.from_sequences(sequences, self._dtype, step, self.memory)
        batch = self.algorithm.prepare(made, partial(add_over_ranks, self.accelerator))
        counts = add_over_ranks(self.accelerator, self.algorithm.counts(batch))
        active = self.algorithm.active(batch).nonzero().squeeze(1).tolist()
        budget, couples = self.tokens_per_microbatch, self.algorithm.couples
        own = share(self.accelerator, batch, sequences, active, budget, couples, **row_options(self.policy))
        plan = own.microbatches or [[]]  # as many on every rank
        self.policy.train()
        found: list[Diagnostics] = []
        for index, rows in enumerate(plan):
            last = index == len(plan) - 1
            self.accelerator.sync_gradients = last  # DeepSpeed steps within the backward pass that is the last
            with nullcontext() if last or self.accelerator.is_fsdp2 else self.accelerator.no_sync(self.policy):
                if rows:
                    found.append(self._accumulate(own.batch, own.sequences, rows, counts))
                else:
                    self._accumulate_nothing()
        metrics = self._apply()
        metrics |= {
            "num_sequences": len(sequences),
            "num_pruned": len(sequences) - len(active),
            "update_tokens": sum(sequences[row].num_tokens for row in active),
        }
        found_means = self._means(found)
        if not metrics["skipped"]:  # what such a step measured may be nan, and would stay so
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
        part_rows = collate([sequences[row] for row in rows], **row_options(self.policy))
        scored = self.policy(part_rows.to(device))
        said = {name: found for name, found in scored._asdict().items() if found is not None}
        if part.old_logprobs is None and "logprobs" in said:
            said["old_logprobs"] = said["logprobs"].detach()
        part = part.replace(**said)
        totals, found = self.algorithm.totals(part)
        # Ranks average their gradients; the counts are global, so the sum over ranks is wanted.
        self.accelerator.backward(reduce(totals, counts.to(device)) * self.accelerator.num_processes)
        return found

    def _accumulate_nothing(self) -> None:
        scored = self.policy(collate([_NOTHING], **row_options(self.policy)).to(self.accelerator.device))
        found = [getattr(scored, name, None) for name in ("logprobs", "values")]
        self.accelerator.backward(0.0 * sum(tensor.sum() for tensor in found if tensor is not None))

    def _apply(self) -> dict[str, float]:
        norms = self._clip()
        finite = all(math.isfinite(norm) for norm in norms.values())
        rates = learning_rates(self.optimizer)
        if finite or self.accelerator.scaler is not None:  # fp16's scaler skips the step itself, and adapts
            self.optimizer.step()
        if finite:
            self.schedule.step()
            critic = getattr(self.policy, "module", self.policy).critic
            if isinstance(critic, ActionValues):
                critic.follow()
        self.optimizer.zero_grad()
        return norms | rates | {"skipped": float(not finite)}

    def _clip(self) -> dict[str, float]:
        """Clip the policy's gradient and the critic's; their norms before that. In warm-up the policy's is dropped.

        DeepSpeed clips both as one and keeps the gradients to itself; there the rate of 0 is the policy's warm-up.
        """
        critic = getattr(self.policy, "module", self.policy).critic
        limit = self.max_grad_norm or math.inf
        if critic is None or str(self.accelerator.distributed_type).endswith("DEEPSPEED"):
            return {"grad_norm": float(self.accelerator.clip_grad_norm_(self.policy.parameters(), limit))}
        of_critic = list(critic.parameters())
        known = set(of_critic)
        of_policy = [p for p in self.policy.parameters() if p not in known]
        norm = float(self.accelerator.clip_grad_norm_(of_policy, limit))  # unscales the critic's gradient too
        clipped = torch.nn.utils.clip_grad_norm_(of_critic, self.critic.max_grad_norm or math.inf)
        critic_norm = clipped.full_tensor() if hasattr(clipped, "full_tensor") else clipped  # FSDP's are in shards
        if self.schedule.last_epoch < self.critic.warmup_steps:
            for parameter in of_policy:
                parameter.grad = None
        return {"grad_norm": norm, "critic_grad_norm": float(critic_norm)}

    def _means(self, found: list[Diagnostics]) -> dict[str, float]:
        merged = merge(found)
        if self.accelerator.num_processes > 1:
            from accelerate.utils import gather_object

            merged = merge(gather_object([{k: (t.cpu(), c.cpu()) for k, (t, c) in merged.items()}]))
        return means(merged)


@torch.no_grad()
def score(
    policy: Any, sequences: Sequence[TokenSequence], field: str, tokens_per_microbatch: int, accelerator: Any
) -> list[TokenSequence]:
    """The sequences with the logprobs of their actions under `policy` written to `field`; every rank must take part.

    Where the policy has a critic, its values go to `old_values`; with that `field`, nothing but them is written.
    """
    scored = list(sequences)
    training = policy.training
    policy.eval()
    options = row_options(policy)
    plan = microbatches(sequences, tokens_per_microbatch, "", **options)
    num_passes = largest_over_ranks(accelerator, len(plan))  # asked before the first: a pass is a collective too
    for rows in plan:
        part = [sequences[row] for row in rows]
        found = policy(collate(part, **options).to(accelerator.device))
        recorded = {field: found.logprobs} | (
            {} if found.values is None or found.values.ndim > 1 else {"old_values": found.values}
        )
        for name, values in recorded.items():
            for row, own in zip(rows, values.cpu().split([s.num_actions for s in part]), strict=True):
                changes: dict[str, Any] = {name: tuple(own.tolist())}
                scored[row] = replace(scored[row], **changes)
    for _ in range(num_passes - len(plan)):  # sharded weights are gathered together
        policy(collate([_NOTHING], **options).to(accelerator.device))
    if hasattr(policy, "reshard"):  # FSDP2 leaves what is outside the layers whole until a backward pass
        policy.reshard()
    policy.train(training)
    return scored


class RowOptions(TypedDict):
    """See `collate`."""

    layout: Layout
    whole: bool


def row_options(policy: Any) -> RowOptions:
    """The rows that the policy or the reward model, wrapped or not, takes."""
    plain = policy
    while not isinstance(plain, Policy | Scorer):
        plain = plain.module
    return {"layout": plain.layout, "whole": plain.whole}
