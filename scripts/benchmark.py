"""Benchmarks, each side by side with what it is compared to, in one process, alternating.

scripts/benchmark step      one optimiser step against a bare forward + backward + AdamW on the same tokens
scripts/benchmark update    forward + backward + AdamW of groups with shared prompts against padded rows, in bf16
scripts/benchmark rollout   the collector over vLLM against vLLM alone and TRL's colocated vLLM, and a weight sync
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

from posttrain.algorithms import load
from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import ModelSettings, TokenizerSettings, TrainingSettings
from posttrain.data.collate import collate, microbatches
from posttrain.models.load import load_model
from posttrain.models.policy import Policy
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trainer.optimizer import make_optimizer, make_schedule
from posttrain.trainer.step import Updater

MODEL = {
    "model_type": "qwen3",
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
QUICKSTART = MODEL | {
    "hidden_size": 160,
    "intermediate_size": 448,
    "num_hidden_layers": 4,
    "num_attention_heads": 5,
    "num_key_value_heads": 5,
    "max_position_embeddings": 1024,
}
TRAINING = TrainingSettings(steps=1000, learning_rate=1e-4, tokens_per_microbatch=4096)


def demonstrations(num_sequences: int, num_tokens: int, seed: int) -> list[TokenSequence]:
    """Random sequences of one length: no padding on either side of the comparison."""
    generator = random.Random(seed)
    return [
        TokenSequence(
            token_ids=tuple(generator.randrange(10, 90) for _ in range(num_tokens)),
            action_mask=(False, *[True] * (num_tokens - 1)),
            source=Source.DEMONSTRATIONS,
            group=index,
        )
        for index in range(num_sequences)
    ]


def our_step(sequences: Sequence[TokenSequence]) -> tuple[Callable[[], None], int]:
    """The trainer's whole optimiser step, and the model's size."""
    from accelerate import Accelerator

    settings = ModelSettings(config=MODEL)
    policy = Policy(load_model(settings, load_tokenizer(TokenizerSettings(path="characters"), settings), seed=0))
    optimizer = make_optimizer(policy, TRAINING)
    updater = Updater(
        algorithm=load("sft"),
        policy=policy,
        optimizer=optimizer,
        schedule=make_schedule(optimizer, TRAINING),
        accelerator=Accelerator(cpu=True),
        tokens_per_microbatch=TRAINING.tokens_per_microbatch,
        max_grad_norm=1.0,
    )
    return lambda: updater(sequences) and None, sum(p.numel() for p in policy.parameters())


def bare_step(sequences: Sequence[TokenSequence]) -> Callable[[], None]:
    """transformers' model, torch's cross-entropy and AdamW, the same micro-batches, nothing else."""
    settings = ModelSettings(config=MODEL)
    model = load_model(settings, load_tokenizer(TokenizerSettings(path="characters"), settings), seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=TRAINING.learning_rate, weight_decay=0.0, fused=True)
    plan = microbatches(sequences, TRAINING.tokens_per_microbatch, "")
    batches = [collate([sequences[row] for row in rows]).input_ids for rows in plan]
    num_actions = sum(s.num_actions for s in sequences)

    def step() -> None:
        for input_ids in batches:
            logits = model(input_ids=input_ids, use_cache=False).logits[:, :-1].flatten(0, 1)
            (cross_entropy(logits, input_ids[:, 1:].flatten(), reduction="sum") / num_actions).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def alternate(first: Callable[[], None], second: Callable[[], None], runs: int) -> tuple[list[float], list[float]]:
    """Seconds of each, in turn, after one warm-up each."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for run in range(runs + 1):
        for function, taken in zip((first, second), seconds, strict=True):
            start = time.perf_counter()
            function()
            if run:
                taken.append(time.perf_counter() - start)
    return seconds


def step_benchmark(runs: int) -> list[dict[str, object]]:
    """Rows for several shapes; ratio = bare / ours, so that it grows with better; the target is 1 / 1.15."""
    rows: list[dict[str, object]] = []
    for num_sequences, num_tokens in [(128, 32), (64, 128), (16, 512)]:
        sequences = demonstrations(num_sequences, num_tokens, seed=0)
        ours, num_parameters = our_step(sequences)
        our_seconds, bare_seconds = alternate(ours, bare_step(sequences), runs)
        ratio = statistics.median(b / o for b, o in zip(bare_seconds, our_seconds, strict=True))
        rows.append(
            {
                "work": f"step, {num_parameters / 1e6:.1f} M parameters, {num_sequences} x {num_tokens} tokens",
                "ours_seconds": statistics.median(our_seconds),
                "peer_seconds": statistics.median(bare_seconds),
                "ratio": ratio,
                "target": 1 / 1.15,
            }
        )
    return rows


def groups(num_groups: int, prompt_tokens: int, longest: int, shortest: int, seed: int) -> list[TokenSequence]:
    """Groups of 9 random completions of one random prompt."""
    generator = random.Random(seed)
    found = []
    for group in range(num_groups):
        prompt = tuple(generator.randrange(10, 90) for _ in range(prompt_tokens))
        for _ in range(9):
            length = generator.randint(shortest, longest)
            ids = prompt + tuple(generator.randrange(10, 90) for _ in range(length))
            mask = (False,) * prompt_tokens + (True,) * length
            found.append(TokenSequence(ids, mask, Source.ROLLOUTS, group))
    return found


def rows_step(sequences: Sequence[TokenSequence], share: bool) -> Callable[[], None]:
    """Planning, collating, forward and backward under bf16 autocast, AdamW."""
    settings = ModelSettings(config=QUICKSTART)
    policy = Policy(load_model(settings, load_tokenizer(TokenizerSettings(path="characters"), settings), seed=0))
    policy.train()
    optimizer = make_optimizer(policy, TRAINING)

    def step() -> None:
        for batch in microbatches(sequences, TRAINING.tokens_per_microbatch, share=share):
            with torch.autocast("cpu", torch.bfloat16):
                scored = policy(collate([sequences[index] for index in batch], share=share))
            torch.autograd.backward(scored.logprobs.sum())
        optimizer.step()
        optimizer.zero_grad()

    return step


def update_benchmark(runs: int) -> list[dict[str, object]]:
    """Rows for several shapes; ratio = padded / shared; 1 where sharing cannot pay and padded rows are chosen."""
    rows: list[dict[str, object]] = []
    for prompt, shortest, longest, num_groups, target in [
        (57, 7, 7, 64, 2.5),
        (512, 16, 128, 4, 2.5),
        (32, 16, 256, 16, 0.95),
    ]:
        sequences = groups(num_groups, prompt, longest, shortest, seed=0)
        shared_seconds, padded_seconds = alternate(rows_step(sequences, True), rows_step(sequences, False), runs)
        rows.append(
            {
                "work": f"update, {num_groups} x 9 of {shortest}-{longest} after {prompt} tokens",
                "ours_seconds": statistics.median(shared_seconds),
                "peer_seconds": statistics.median(padded_seconds),
                "ratio": statistics.median(p / s for p, s in zip(padded_seconds, shared_seconds, strict=True)),
                "target": target,
            }
        )
    return rows


def rollout(runs: int) -> list[dict[str, object]]:
    """See `benchmark_rollout`; it needs vLLM and TRL."""
    from benchmark_rollout import rollout_benchmark

    return rollout_benchmark(runs, MODEL)


BENCHMARKS = {"step": step_benchmark, "update": update_benchmark, "rollout": rollout}


def main() -> None:
    """Run one benchmark, print its table, write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rows = BENCHMARKS[arguments.benchmark](arguments.runs)
    print(f"{'work':<52}{'ours':>10}{'peer':>10}{'peer/ours':>11}{'target':>9}")
    for row in rows:
        print(
            f"{row['work']:<52}{row['ours_seconds']:>9.3f}s{row['peer_seconds']:>9.3f}s"
            f"{row['ratio']:>11.3f}{row['target']:>9.3f}"
        )
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows}, indent=2))


if __name__ == "__main__":
    main()
