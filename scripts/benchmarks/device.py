"""Packed rows against padded ones on this device, in values and gradients; an update's memory, predicted and measured.

Each row of exactness is the allowed difference over the one found; of memory, how near the prediction is. The last one
is a long sequence whose activations are computed twice: on a GPU for which prime-rl publishes a figure, next to that.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from benchmarks.machine import peak_flops
from benchmarks.measure import Row, time_of
from benchmarks.ours import TRAINING, Ours, fresh_model, settings_of, tokenizer
from benchmarks.throughput import flops
from benchmarks.workloads import Scale, demonstrations, groups
from posttrain.batch import TokenSequence
from posttrain.config.schema import LoraSettings
from posttrain.data.collate import collate
from posttrain.models.load import empty_model
from posttrain.models.lora import add_lora
from posttrain.models.policy import Policy
from posttrain.rows import Layout
from posttrain.trainer.memory import trace_update
from posttrain.trainer.memory_meter import MemoryMeter
from posttrain.trainer.optimizer import state_bytes

ALLOWED = {"float32": 2e-5, "bfloat16": 5e-2}
"""Of the gradient's norm and of the largest logprob: kernels that add in another order."""

PUBLISHED_TOKENS_PER_SECOND = {"0.6b": 11_900.0, "4b-lora": 6_230.0}
"""prime-rl on one H100 at 16k tokens: reinforcement learning of all of Qwen3-0.6B, and of 4B with LoRA of rank 16."""


def device_benchmark(runs: int, name: str, scale: Scale, mixed: str) -> list[Row]:
    """Rows of exactness, memory and the long sequence."""
    rows = _exactness(scale)
    for recompute in (False, True):
        gc.collect()
        rows.append(_long(runs, name, replace(scale, recompute=recompute), mixed))
    return rows


def _exactness(scale: Scale) -> list[Row]:
    """Of a model with few layers: float32 is slow on a GPU, and depth adds nothing to be seen."""
    prompt, shortest, longest = map(scale.length, (512, 16, 128))
    sequences = groups(2, prompt, shortest, longest, scale.model["vocab_size"])
    sequences += demonstrations(4, scale.length(64), scale.length(1024), scale.model["vocab_size"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = []
    for dtype, allowed in ALLOWED.items():
        shallow = replace(scale, model=scale.model | {"num_hidden_layers": 2}, dtype=dtype, lora=None)
        policy = Policy(fresh_model(shallow).to(device))  # its own layout takes whichever rows it is given
        logprobs, gradients = {}, {}
        layouts: list[Layout] = ["padded", "packed", "shared"]
        for layout in layouts:
            logprobs[layout], gradients[layout], seconds = _scored(policy, sequences, layout)
            if layout == "padded":
                continue
            worst = float((logprobs[layout] - logprobs["padded"]).abs().max() / logprobs["padded"].abs().max())
            apart = float((gradients[layout] - gradients["padded"]).norm() / gradients["padded"].norm())
            work = f"{layout} rows to padded ones, {dtype}: logprobs {worst:.1e}, gradient {apart:.1e} apart"
            ratio = allowed / max(worst, apart, 1e-12)
            found.append(_row(work, seconds, seconds * ratio, 1.0))
        del policy
    return found


def _scored(policy: Policy, sequences: Sequence[TokenSequence], layout: Layout) -> tuple[Tensor, Tensor, float]:
    """Logprobs, the gradient of their weighted sum with entropies, and the seconds that both took."""
    device = next(policy.parameters()).device
    policy.zero_grad()
    policy.train()
    seen: list[Tensor] = []

    def step() -> None:
        scored = policy(collate(sequences, layout=layout).to(device))
        weights = torch.sin(torch.arange(len(scored.logprobs), device=device) + 1.0)
        (weights * (scored.logprobs + 0.1 * scored.entropy)).sum().backward()
        seen.append(scored.logprobs.detach().double())

    seconds = time_of(step).wall
    gradient = torch.cat([p.grad.double().flatten() for p in policy.parameters() if p.grad is not None])
    return seen[0], gradient, seconds


def _long(runs: int, name: str, scale: Scale, mixed: str) -> Row:
    """One sequence of 16,384 tokens (toy: fewer): time, and memory against its prediction."""
    length = scale.length(16_384)
    sequences = demonstrations(1, length, length, scale.model["vocab_size"])
    budget = length
    predicted = _predicted(scale, sequences, budget, mixed)
    meter = MemoryMeter()
    side = Ours("sft", sequences, scale, mixed)
    side.use(budget)
    for _ in range(2):
        side.step()
    measured = max(1, meter.peak_bytes())
    seconds = statistics.median(time_of(side.step).wall for _ in range(runs))
    peak = peak_flops()
    mfu = "" if peak is None else f", MFU {flops(side.model, length) / seconds / peak:.1%}"
    how = "computed twice" if scale.recompute else "kept"
    work = (
        f"one sequence of {length:,} tokens, activations {how}: {length / seconds:,.0f} tokens/s{mfu}; "
        f"{measured / 2**30:.1f} GiB, predicted {predicted / 2**30:.1f}"
    )
    published = PUBLISHED_TOKENS_PER_SECOND.get(name)
    if published is not None and scale.recompute:
        return _row(work, seconds, length / published, 1.0)
    return _row(work, seconds, seconds * min(predicted / measured, measured / predicted), 1 / 1.15)


def _predicted(scale: Scale, sequences: Sequence[TokenSequence], budget: int, mixed: str) -> int:
    """As `posttrain explain --memory` adds up the phase of the update."""
    empty = empty_model(settings_of(scale), tokenizer())
    if scale.lora is not None:
        add_lora(empty, LoraSettings(rank=scale.lora), 0)
    trained = [p for p in empty.parameters() if p.requires_grad]
    held = sum(p.numel() * p.element_size() for p in [*empty.parameters(), *trained])
    trace = trace_update(Policy(empty), sequences, budget, "", mixed)
    return held + state_bytes(TRAINING.optimizer, trained) + trace.activations


def _row(work: str, ours: float, peer: float, target: float) -> Row:
    return {
        "work": work,
        "ours_seconds": ours,
        "peer_seconds": peer,
        "ratio": peer / ours,
        "target": target,
        "ratios": [],
        "cpu_ratio": None,
        "note": "",
    }
