"""Our optimiser step against bare PyTorch: forward, backward, clipping and AdamW on the same tokens, nothing else.

The bare side gets its tensors ready-made. Sequences of one length are plain rows; of a group it computes one row, the
prompt once and the completions after it, with the boolean mask that lets no completion see another.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.measure import Row, compare
from benchmarks.ours import GRPO, TRAINING, Ours, fresh_model
from benchmarks.workloads import Scale, demonstrations, groups, split
from posttrain.batch import TokenSequence
from posttrain.config.schema import LoraSettings
from posttrain.models.lora import add_lora

TARGET = 1 / 1.1


@dataclass(frozen=True)
class Batch:
    """Rows for transformers' model [B, T], the flat positions that predict, their tokens [A], and weights [A]."""

    inputs: dict[str, Tensor]
    predictors: Tensor
    targets: Tensor
    weights: Tensor


class Bare:
    """transformers' model, torch's cross-entropy and AdamW."""

    sizes = (0,)

    def __init__(self, batches: Sequence[Batch], scale: Scale, mixed: str = "no") -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model = fresh_model(scale)
        if scale.lora is not None:
            add_lora(self.model, LoraSettings(rank=scale.lora), seed=0)
        self.model.to(self.device).train()
        self.optimizer = torch.optim.AdamW(self.trained, lr=TRAINING.learning_rate, weight_decay=0.0, fused=True)
        self.batches, self.mixed = [_moved(batch, self.device) for batch in batches], mixed == "bf16"

    def use(self, size: int) -> None:
        """Its micro-batches are given."""

    def step(self) -> None:
        """One optimiser step."""
        for batch in self.batches:
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed):
                hidden = self.model.model(**batch.inputs, use_cache=False).last_hidden_state.flatten(0, 1)
                logits = self.model.lm_head(hidden[batch.predictors]).float()
                losses = cross_entropy(logits, batch.targets, reduction="none")
            (losses * batch.weights).sum().backward()
        torch.nn.utils.clip_grad_norm_(self.trained, TRAINING.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def trained(self) -> list[Tensor]:
        """In the model's order."""
        return [p for p in self.model.parameters() if p.requires_grad]


def _moved(batch: Batch, device: torch.device) -> Batch:
    inputs = {name: tensor.to(device) for name, tensor in batch.inputs.items()}
    return Batch(inputs, *(tensor.to(device) for tensor in (batch.predictors, batch.targets, batch.weights)))


def plain(sequences: Sequence[TokenSequence], rows: int) -> list[Batch]:
    """Demonstrations of one length, `rows` at a time."""
    number = sum(sequence.num_actions for sequence in sequences)
    found = []
    for start in range(0, len(sequences), rows):
        ids = torch.tensor([sequence.token_ids for sequence in sequences[start : start + rows]])
        predictors = torch.arange(ids.numel()).view_as(ids)[:, :-1].flatten()
        targets = ids[:, 1:].flatten()
        found.append(Batch({"input_ids": ids}, predictors, targets, torch.full(targets.shape, 1 / number)))
    return found


def tree(group: Sequence[TokenSequence], num_actions: int, std: float) -> Batch:
    """One group as one row; a token's weight is its sequence's advantage over the number of all action tokens."""
    prompt, _ = split(group[0])
    ids, positions, owner = list(prompt), list(range(len(prompt))), [-1] * len(prompt)
    predictors: list[int] = []
    targets: list[int] = []
    weights: list[float] = []
    for index, sequence in enumerate(group):
        _, completion = split(sequence)
        predictors += [len(prompt) - 1, *range(len(ids), len(ids) + len(completion) - 1)]
        targets += completion
        ids += completion[:-1]
        positions += range(len(prompt), len(prompt) + len(completion) - 1)
        owner += [index] * (len(completion) - 1)
        weights += [((sequence.reward or 0.0) - 0.5) / (std * num_actions)] * len(completion)
    whose = torch.tensor(owner)
    seen = ((whose[:, None] == whose) | (whose == -1)) & torch.ones(len(ids), len(ids)).tril().bool()
    inputs = {
        "input_ids": torch.tensor([ids]),
        "position_ids": torch.tensor([positions]),
        "attention_mask": seen[None, None],
    }
    return Batch(inputs, torch.tensor(predictors), torch.tensor(targets), torch.tensor(weights))


def step_benchmark(runs: int, scale: Scale, mixed: str, tolerance: float) -> list[Row]:
    """Rows for short, middling and long demonstrations, and for groups with a shared prompt."""
    vocabulary = scale.model["vocab_size"]
    rows = []
    for usual_number, usual in [(64, 32), (32, 128), (8, 512)]:
        length = scale.length(usual)
        number = scale.number(usual_number, length)
        sequences = demonstrations(number, length, length, vocabulary)
        sides = Ours("sft", sequences, scale, mixed), Bare(plain(sequences, max(1, 4096 // length)), scale, mixed)
        rows.append(
            compare(f"SFT, {number} x {length} tokens, to bare PyTorch", *sides, TARGET, runs, tolerance=tolerance)
        )
    prompt, shortest, longest = map(scale.length, (512, 16, 128))
    number = scale.number(4, prompt + 4 * longest)
    sequences = groups(number, prompt, shortest, longest, vocabulary)
    actions = sum(sequence.num_actions for sequence in sequences)
    std = float(torch.tensor([0.0, 1.0] * 4).std()) + 1e-4  # as TRL has it
    trees = [tree([s for s in sequences if s.group == group], actions, std) for group in range(number)]
    work = f"GRPO, {number} x 8 x {shortest}-{longest} after {prompt} tokens, to bare tree-masked PyTorch"
    sides = Ours("grpo", sequences, scale, mixed, **GRPO), Bare(trees, scale, mixed)
    return [*rows, compare(work, *sides, TARGET, runs, tolerance=tolerance)]
