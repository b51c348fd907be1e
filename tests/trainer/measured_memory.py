"""Run by `test_memory`, in a process of its own: an update's memory, predicted and measured, as JSON.

python tests/trainer/measured_memory.py VOCABULARY HIDDEN LAYERS TOKENS [lora] [checkpointing]
"""

from __future__ import annotations

import json
import random
import sys

import torch
from accelerate import Accelerator

from posttrain.algorithms import load
from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import LoraSettings, ModelSettings, TokenizerSettings, TrainingSettings
from posttrain.models.load import empty_model, load_model
from posttrain.models.lora import add_lora
from posttrain.models.policy import Policy
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer.memory import trace_update
from posttrain.trainer.memory_meter import MemoryMeter
from posttrain.trainer.optimizer import make_optimizer, make_schedule, state_bytes
from posttrain.trainer.step import Updater

NUM_TOKENS = 512
"""Of each sequence."""


def model_settings(vocabulary: int, hidden: int, layers: int, checkpointing: bool) -> ModelSettings:
    """A Qwen3 architecture."""
    config = {
        "model_type": "qwen3",
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": 3 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": hidden // 32,
        "num_key_value_heads": hidden // 64,
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
    }
    return ModelSettings(config=config, gradient_checkpointing=checkpointing)


def sequences(num: int) -> list[TokenSequence]:
    """Random ones, without a common beginning."""
    generator = random.Random(0)
    mask = (False, *[True] * (NUM_TOKENS - 1))
    return [
        TokenSequence(tuple(generator.randrange(90) for _ in mask), mask, Source.DEMONSTRATIONS, group)
        for group in range(num)
    ]


def main(vocabulary: int, hidden: int, layers: int, tokens: int, *options: str) -> dict[str, float]:
    """Predict, and measure an update of two micro-batches, after one of one that makes the optimiser's state."""
    settings = model_settings(vocabulary, hidden, layers, "checkpointing" in options)
    tokenizer = load_tokenizer(TokenizerSettings(path="characters"), settings)
    training = TrainingSettings(tokens_per_microbatch=tokens, learning_rate=1e-4)
    batch = sequences(2 * tokens // NUM_TOKENS)
    empty = empty_model(settings, tokenizer)
    if "lora" in options:
        add_lora(empty, LoraSettings(), 0)
    trace = trace_update(Policy(empty), batch, tokens, "", "no")
    weights = sum(p.numel() * p.element_size() for p in empty.parameters())
    trained = [p for p in empty.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    predicted = weights + gradients + state_bytes("adamw", trained) + trace.activations

    accelerator = Accelerator(cpu=True)
    warm = torch.nn.Linear(8, 8)  # libraries make their workspaces
    torch.nn.functional.scaled_dot_product_attention(*[warm(torch.ones(1, 1, 4, 8))] * 3).sum().backward()
    meter = MemoryMeter()
    model = load_model(settings, tokenizer, seed=0)
    if "lora" in options:
        add_lora(model, LoraSettings(), 0)
    policy = Policy(model)
    optimizer = make_optimizer(policy, training)
    updater = Updater(
        algorithm=load("sft"),
        policy=policy,
        optimizer=optimizer,
        schedule=make_schedule(optimizer, training),
        accelerator=accelerator,
        tokens_per_microbatch=tokens,
        max_grad_norm=1.0,
    )
    updater(batch[: len(batch) // 2])
    updater(batch)
    return {"predicted": predicted, "measured": meter.peak_bytes()}


if __name__ == "__main__":
    numbers, words = [int(a) for a in sys.argv[1:5]], sys.argv[5:]
    print(json.dumps(main(*numbers, *words)))
