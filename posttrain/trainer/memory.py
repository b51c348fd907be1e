"""How much memory a run will need, phase by phase, from its recipe alone: no weights are loaded.

The forward and backward pass of the fullest micro-batch is carried out on tensors without data (`live_bytes`), so
checkpointing, adapters, attention and the chunked head count as they are. Models and optimiser are added up from
their shapes. Not in it: libraries and their workspaces, fragments of the allocator, DeepSpeed's communication buckets.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from posttrain.batch import Source, TokenSequence
from posttrain.config import Recipe, load_recipe
from posttrain.data.collate import collate
from posttrain.data.plan import microbatches
from posttrain.errors import UserError
from posttrain.estimator import Algorithm
from posttrain.models import head
from posttrain.models.load import empty_model
from posttrain.models.lora import add_lora
from posttrain.models.policy import Policy, Teacher
from posttrain.models.quantised import quantised_bytes
from posttrain.models.scorer import Scorer
from posttrain.models.tokenizer import load_tokenizer
from posttrain.rollout.weights import engine_dtype
from posttrain.rows import Branch, Rows
from posttrain.table import render
from posttrain.trainer.beside import copies_reference, make_critic, reward_model_of
from posttrain.trainer.corrected import algorithm_of
from posttrain.trainer.launch_plan import Launch
from posttrain.trainer.live_bytes import materialise, without_data
from posttrain.trainer.optimizer import state_bytes
from posttrain.trainer.step import row_options

PARTS = ("weights", "beside", "sampler", "optimiser", "gradients", "activations", "cache")
"""weights: the policy's and its critic's; beside: reference and teacher; cache: keys, values, logits of sampling."""

ONE_PROCESS = Launch(1, 1, "one process")
_SPREAD = "ZeRO-3", "FSDP2"
_TELLING_BYTES = 512 << 20
_LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's stage3_max_live_parameters: gathered weights that stay


@dataclass(frozen=True)
class Prediction:
    """Bytes of every phase by part (`PARTS`), on the device of one rank; rows, tokens: of the fullest micro-batch."""

    phases: Mapping[str, Mapping[str, int]]
    rows: int
    tokens: int
    logits_chunk: int
    launch: Launch

    @property
    def peak_bytes(self) -> int:
        """Of the largest phase."""
        return max(sum(parts.values()) for parts in self.phases.values())

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        totals = {name: dict(parts) | {"total": sum(parts.values())} for name, parts in self.phases.items()}
        where = {"num_ranks": self.launch.num_ranks, "kind": self.launch.kind}
        return where | {"phases": totals, "peak_bytes": self.peak_bytes, "microbatch": [self.rows, self.tokens]}

    def __str__(self) -> str:
        """A table, and what it assumes."""
        used = [part for part in PARTS if any(parts.get(part) for parts in self.phases.values())]
        cells = [
            (name, *(f"{parts.get(part, 0):,}" for part in used), f"{sum(parts.values()):,}")
            for name, parts in self.phases.items()
        ]
        return (
            f"memory of one rank of {self.launch.num_ranks} ({self.launch.kind}), in bytes\n\n"
            + render(("phase", *used, "total"), cells)
            + f"\n\nthe fullest micro-batch: {self.rows} x {self.tokens} tokens; logits of a chunk of the head: "
            f"{self.logits_chunk:,}\nwithout libraries, their workspaces and what an allocator loses to fragments"
        )


def explain_memory(name: str, overrides: Sequence[str], launch: Launch, format: str) -> str:
    """The prediction for the recipe `name`, as text or json."""
    if format == "latex":
        raise UserError("--format latex is for objectives; with --memory allowed: text, json")
    recipe = load_recipe(name, overrides, stop_at_warnings=False).recipe
    found = predict(recipe, algorithm_of(recipe), launch)
    return json.dumps(found.as_dict(), indent=2) if format == "json" else str(found)


def predict(recipe: Recipe, algorithm: Algorithm, launch: Launch = ONE_PROCESS) -> Prediction:
    """The memory that `recipe` needs. UserError as `check_model`; of a hub id the config is read and nothing else."""
    models = _Models.of(recipe, algorithm)
    policy, ranks = models.policy, launch.num_ranks
    sequences = fullest_step(recipe, algorithm, ranks, policy.model.config)
    trace = trace_update(
        policy, sequences, recipe.training.tokens_per_microbatch, algorithm.couples, recipe.training.mixed_precision
    )
    trained = [p for p in policy.parameters() if p.requires_grad]
    resident = {
        "weights": _weights(models.weights, policy, launch),
        "beside": models.beside,
        "sampler": models.sampler,
        "optimiser": _optimiser(recipe, trained, launch),
    }
    generation = _generation(recipe, algorithm, models, ranks)
    asleep = {"sampler": 0} if models.sleeps else {}
    gradients = _bytes(trained)
    if launch.kind in ("ZeRO-2", *_SPREAD):
        gradients = math.ceil(gradients / ranks)
    elif launch.kind == "data parallel":
        gradients *= 2  # the copy that goes over the network
    phases = {
        "generation": resident | generation,
        "scoring": resident | asleep | {"activations": trace.scoring},
        "update": resident | asleep | {"gradients": gradients, "activations": trace.activations},
        "checkpoint": resident,
    }
    if not generation:
        del phases["generation"]
    return Prediction(phases, trace.rows, trace.tokens, trace.logits_chunk, launch)


def compared(recipe: Recipe, algorithm: Algorithm, measured_bytes: int, num_ranks: int) -> str:
    """A line for the end of a run; the prediction where one process held enough to outweigh its libraries."""
    line = f"peak memory of this process: {measured_bytes / 1e9:.3f} GB measured"
    if num_ranks > 1 or measured_bytes < _TELLING_BYTES:
        return line
    predicted = predict(recipe, algorithm)
    if torch.cuda.is_available():
        beside = f"predicted ({measured_bytes / predicted.peak_bytes - 1:+.0%}"
    else:  # what is measured there is the process's
        beside = "predicted for tensors alone (libraries and what the allocator keeps come on top"
    return (
        f"{line}, {predicted.peak_bytes / 1e9:.3f} GB {beside}; the fullest micro-batch taken for {predicted.rows} x "
        f"{predicted.tokens} tokens)"
    )


@dataclass(frozen=True)
class Trace:
    """Peaks in bytes beyond weights: of scoring, and of forward and backward without the gradients of weights.

    rows x tokens: of the largest micro-batch; logits_chunk: the head's largest tensor.
    """

    scoring: int
    activations: int
    rows: int
    tokens: int
    logits_chunk: int


def trace_update(
    policy: Policy | Scorer, sequences: Sequence[TokenSequence], budget_tokens: int, couples: Any, precision: str
) -> Trace:
    """What the largest of the micro-batches of `sequences` needs; the policy is on the meta device."""
    options = row_options(policy)
    plan = microbatches(sequences, budget_tokens, couples, **options)
    rows = max((collate([sequences[i] for i in batch], **options) for batch in plan[:4]), key=_size)
    if rows.branches is not None and torch.cuda.is_available():  # there one kernel takes the row as it is
        rows = replace(rows, branches=(Branch(0, rows.input_ids.shape[1]),))
    trained = [name for name, p in policy.named_parameters() if p.requires_grad]
    with coarse_pieces(), without_data() as live:
        for module in (policy, *([] if policy.teacher is None else [policy.teacher.model])):
            materialise(module)
        start = live.now
        with torch.no_grad(), _precision(precision):
            policy.eval()(rows)
        scoring = live.peak - start
        policy.train()
        parameters = dict(policy.named_parameters())
        for name in trained if len(plan) > 1 else ():
            parameters[name].grad = torch.empty_like(parameters[name])
        live.forget_peak()
        with _precision(precision):
            scored = policy(rows)
        wanted = [getattr(scored, name, None) for name in ("logprobs", "values", "divergence")]
        torch.autograd.backward(torch.cat([one.float().flatten() for one in wanted if one is not None]).sum())
        gradients = _bytes(parameters[name] for name in trained)
        activations = max(0, live.peak - start - gradients)
    num_rows, num_tokens = rows.input_ids.shape
    if isinstance(policy, Scorer):
        return Trace(scoring, activations, num_rows, num_tokens, logits_chunk=0)
    row = 4 * _vocabulary(policy)
    chunk = row * min(rows.action_ids.numel(), max(1, policy.chunk_bytes // row))
    return Trace(scoring, activations, num_rows, num_tokens, chunk)


@contextmanager
def coarse_pieces() -> Iterator[None]:
    """Within it the head walks over its chunks in larger pieces than a CPU's cache likes, on CUDA in none.

    Piece by piece a large vocabulary would take minutes to trace; a few times 32 MiB is the price.
    """
    kept = head.CACHED_ELEMENTS
    head.CACHED_ELEMENTS = sys.maxsize if torch.cuda.is_available() else max(kept, 1 << 23)
    try:
        yield
    finally:
        head.CACHED_ELEMENTS = kept


def fullest_step(recipe: Recipe, algorithm: Algorithm, num_ranks: int, config: Any) -> list[TokenSequence]:
    """One rank's sequences of a step, as long as the recipe allows; as many as two full micro-batches have room for.

    A prompt is taken to be half as long as a completion may be, or a quarter of the longest example.
    """
    training, rollout = recipe.training, recipe.rollout
    window = getattr(config.get_text_config(), "max_position_embeddings", None) or training.tokens_per_microbatch
    if Source.ROLLOUTS in algorithm.sources:
        completion = min(rollout.max_tokens, window - 1)
        prompt, members, source = min(max(1, completion // 2), window - completion), rollout.group_size, Source.ROLLOUTS
    else:
        longest = min(training.max_length or window, window, training.tokens_per_microbatch)
        prompt, source = max(1, longest // 4), next(iter(algorithm.sources))
        completion, members = max(1, longest - prompt), 2 if source is Source.PREFERENCES else 1
    room = 2 * training.tokens_per_microbatch // (members * (prompt + completion)) + 1
    groups = min(math.ceil(training.prompts_per_step / num_ranks), room)
    mask = (False,) * prompt + (True,) * completion
    return [
        TokenSequence((group,) * prompt + (member,) * completion, mask, source, group, pair=group)
        for group in range(groups)
        for member in range(members)
    ]


@dataclass(frozen=True)
class _Models:
    """The models of a run on the meta device, and their bytes."""

    policy: Policy | Scorer
    weights: int
    beside: int
    sampler: int
    sleeps: bool

    @classmethod
    def of(cls, recipe: Recipe, algorithm: Algorithm) -> _Models:
        tokenizer = None if recipe.model.config is None else load_tokenizer(recipe.tokenizer, recipe.model)
        model = empty_model(recipe.model, tokenizer)
        base = _bytes(model.parameters())
        teacher = None
        if recipe.teacher is not None and algorithm.divergence is not None:
            teacher = Teacher(empty_model(recipe.teacher, tokenizer).requires_grad_(False), algorithm.divergence)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = engine_dtype(recipe.rollout.dtype, device)
        copies = int(Source.ROLLOUTS in algorithm.sources or recipe.evaluation is not None)
        copies += int(algorithm.plan.reference_samples > 0)
        sampler = copies * sum(p.numel() * dtype.itemsize for p in model.parameters())
        beside = base if copies_reference(recipe, algorithm) and not recipe.reference.offload else 0
        beside += 0 if teacher is None else _bytes(teacher.model.parameters())
        critic = make_critic(model, algorithm.plan)
        saved = 0 if recipe.model.quantization is None else base - quantised_bytes(model, model.dtype)
        if recipe.lora is not None:
            add_lora(model, recipe.lora, recipe.seed)
        policy: Policy | Scorer = Policy(model, teacher, critic=critic)
        if algorithm.plan.scores:
            policy = reward_model_of(algorithm, model)
        sleeps = recipe.rollout.engine == "vllm" and recipe.rollout.sleep > 0 and device.type == "cuda"
        return cls(policy, _bytes(policy.parameters()) - saved, beside, sampler, sleeps)


def _generation(recipe: Recipe, algorithm: Algorithm, models: _Models, num_ranks: int) -> dict[str, int]:
    """Keys, values and logits of the tokens that the engine holds at once; {} where nothing is sampled."""
    if not models.sampler:
        return {}
    rollout, config = recipe.rollout, models.policy.model.config.get_text_config()
    dtype = engine_dtype(rollout.dtype, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token = 2 * config.num_hidden_layers * heads * size * dtype.itemsize
    length = rollout.max_tokens + rollout.max_tokens // 2
    played = math.ceil(recipe.training.prompts_per_step * rollout.updates / num_ranks) * rollout.group_size
    rows = max(1, rollout.batch_tokens // length)
    if Source.ROLLOUTS in algorithm.sources:
        rows = min(rows, played)
    logits = 3 * rows * _vocabulary(models.policy) * 4
    tokens = rollout.batch_tokens if rollout.engine == "vllm" else rows * length
    return {"cache": tokens * a_token + (0 if rollout.engine == "vllm" else logits)}


def _weights(weights: int, policy: Policy | Scorer, launch: Launch) -> int:
    """Where they are spread: this rank's share, and what is gathered at a time."""
    if launch.kind not in _SPREAD:
        return weights
    gathered = weights
    if launch.kind == "ZeRO-3":
        gathered = min(weights, _LIVE_PARAMETERS * next(policy.parameters()).element_size())
    else:
        decoder = policy.model.get_decoder()
        outside = policy.model.get_input_embeddings().weight
        gathered = min(weights, 2 * (outside.numel() * outside.element_size() + weights // len(decoder.layers)))
    return (0 if "weights" in launch.offloaded else math.ceil(weights / launch.num_ranks)) + gathered


def _optimiser(recipe: Recipe, trained: Sequence[nn.Parameter], launch: Launch) -> int:
    if "optimiser state" in launch.offloaded or (launch.kind == "FSDP2" and "weights" in launch.offloaded):
        return 0
    state = state_bytes(recipe.training.optimizer, trained)
    if launch.kind.startswith("ZeRO"):
        state += 4 * sum(p.numel() for p in trained)  # DeepSpeed's own weights in float32
    return math.ceil(state / launch.num_ranks) if launch.kind in ("ZeRO-1", "ZeRO-2", *_SPREAD) else state


def _precision(name: str) -> AbstractContextManager[Any]:
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name)
    return nullcontext() if dtype is None else torch.autocast("cpu", dtype)


def _vocabulary(policy: Policy | Scorer) -> int:
    return int(policy.model.get_input_embeddings().weight.shape[0])


def _bytes(parameters: Iterable[nn.Parameter]) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in parameters)


def _size(rows: Rows) -> int:
    return rows.input_ids.numel()
