"""Our side: the trainer's own optimiser step, with the reference's logprobs where the algorithm reads them."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.workloads import Scale
from posttrain.algorithms import load
from posttrain.batch import TokenSequence
from posttrain.config.schema import LoraSettings, ModelSettings, TokenizerSettings, TrainingSettings
from posttrain.models.compiled import compile_layers
from posttrain.models.load import load_model
from posttrain.models.lora import WithoutAdapter, add_lora
from posttrain.models.policy import Policy
from posttrain.models.reference import reference_of
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer.optimizer import make_optimizer, make_schedule
from posttrain.trainer.step import Updater, score

TRAINING = TrainingSettings(steps=1_000_000, learning_rate=1e-6)
GRPO: dict[str, Any] = {"preset": "trl", "correction": "none"}
"""GRPO as TRL's trainer does it by default."""


def settings_of(scale: Scale) -> ModelSettings:
    """The model's section of a recipe."""
    return ModelSettings(config=scale.model, dtype=scale.dtype, gradient_checkpointing=scale.recompute)


def fresh_model(scale: Scale) -> Any:
    """A new model of this scale on the CPU, the same every time, without an adapter."""
    return copy.deepcopy(_loaded(settings_of(scale).model_dump_json()))


@functools.lru_cache(maxsize=1)
def _loaded(settings: str) -> Any:
    return load_model(ModelSettings.model_validate_json(settings), tokenizer(), seed=0)


def tokenizer() -> Any:
    """Any: the sequences are random ids."""
    return load_tokenizer(TokenizerSettings(path="characters"), ModelSettings())


class Ours:
    """Steps of `algorithm` on `sequences`; micro-batches by tokens. mixed: "no" or "bf16"."""

    def __init__(
        self, algorithm: str, sequences: Sequence[TokenSequence], scale: Scale, mixed: str = "no", **settings: Any
    ) -> None:
        from accelerate import Accelerator

        model = fresh_model(scale)
        accelerator = Accelerator(cpu=not torch.cuda.is_available(), mixed_precision=mixed)
        part = load(algorithm, **settings)
        self.reference: Any = None
        wanted = "reference_logprobs" in part.needs
        if wanted and scale.lora is None:
            self.reference = reference_of(model, accelerator.device, mixed).to(accelerator.device)
        if scale.lora is not None:
            add_lora(model, LoraSettings(rank=scale.lora), seed=0)
        for one in [model, *([] if self.reference is None else [self.reference.model])] if scale.compile else []:
            compile_layers(one)
        policy = Policy(model)
        policy, optimizer = accelerator.prepare(policy, make_optimizer(policy, TRAINING))
        if wanted and scale.lora is not None:
            self.reference = WithoutAdapter(policy)
        self.model, self.sequences, self.sizes = model, sequences, scale.budgets
        self.updater = Updater(
            algorithm=part,
            policy=policy,
            optimizer=optimizer,
            schedule=make_schedule(optimizer, TRAINING),
            accelerator=accelerator,
            tokens_per_microbatch=self.sizes[0],
            max_grad_norm=TRAINING.max_grad_norm,
        )

    def use(self, size: int) -> None:
        """Micro-batches of at most `size` tokens."""
        self.updater.tokens_per_microbatch = size

    def step(self) -> None:
        """As `trainer.loop` makes it: score with the reference, update."""
        sequences = list(self.sequences)
        budget = self.updater.tokens_per_microbatch
        if self.reference is not None:
            sequences = score(self.reference, sequences, "reference_logprobs", budget, self.updater.accelerator)
        self.updater(sequences)

    @property
    def optimizer(self) -> Any:
        """torch's, out of accelerate's wrapper."""
        return self.updater.optimizer.optimizer

    @property
    def trained(self) -> list[Tensor]:
        """In the model's order."""
        return [p for p in self.model.parameters() if p.requires_grad]
