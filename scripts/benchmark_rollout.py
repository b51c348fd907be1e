"""The rollout benchmark: our collector over vLLM against vLLM alone and against TRL's colocated vLLM.

All three sample the same prompts with the same model (3 M parameters, bfloat16) in this process, in turn; completions
end at a stop token that is drawn at random, so their lengths vary. The first two draw the very same tokens.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from posttrain import catalog
from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.data.examples import Example
from posttrain.models.export import save_model
from posttrain.models.load import load_model
from posttrain.models.tokenizer import load_tokenizer
from posttrain.models.weights import named_weights
from posttrain.rollout.collector import Collector
from posttrain.rollout.engine import Completion, Engine, Request, Sampling
from posttrain.trajectory import Trajectory

NUM_PROMPTS, GROUP_SIZE, MAX_TOKENS = 24, 8, 120
STOPS = frozenset(range(30, 33))
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


class NoGrades:
    """Grades nothing: grading is not what is measured."""

    def grade(self, trajectories: Sequence[Trajectory], group_size: int | None = None) -> None:
        """Nothing."""


@dataclass
class Recorded:
    """An engine that keeps the requests and the completions of its last call."""

    engine: Engine
    requests: Sequence[Request] = ()
    completions: Sequence[Completion] = ()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """As the engine's."""
        self.requests, self.completions = requests, self.engine.generate(requests, sampling)
        return list(self.completions)


def seconds(function: Callable[[], Any]) -> float:
    """How long one call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def rollout_benchmark(runs: int) -> list[dict[str, object]]:
    """Rows: throughput against `LLM.generate` and against TRL, and a weight sync against a generation phase."""
    from posttrain.rollout.vllm_engine import VllmEngine

    settings = ModelSettings(config=MODEL)
    tokenizer = load_tokenizer(TokenizerSettings(path="characters"), settings)
    model = load_model(settings, tokenizer, seed=0)
    engine = VllmEngine(model, dtype="bfloat16")
    sampling = Sampling(max_tokens=MAX_TOKENS, stop_token_ids=STOPS)
    recorded = Recorded(engine)
    collector = Collector(recorded, catalog.build("environments", "single_turn", {}), NoGrades(), tokenizer, sampling)  # type: ignore[arg-type]
    examples = [
        Example(id=str(i), prompt=({"role": "user", "content": f"{i:03d} " + "word " * (4 + i % 9)},), columns={})
        for i in range(NUM_PROMPTS)
    ]

    def ours() -> None:
        engine._llm.reset_prefix_cache()
        collector.collect(examples, GROUP_SIZE, seed=0)

    ours()
    raw = raw_generate(engine, recorded.requests)
    num_tokens = sum(len(completion.token_ids) for completion in recorded.completions)
    with TemporaryDirectory() as directory:
        peer = trl_generate(model, tokenizer, Path(directory), examples)
        raw()
        peer()
        ours_seconds, raw_seconds, peer_rates, sync_seconds = [], [], [], []
        for _ in range(runs):
            ours_seconds.append(seconds(ours))
            raw_seconds.append(seconds(raw))
            start = time.perf_counter()
            peer_rates.append(peer() / (time.perf_counter() - start))
            sync_seconds.append(seconds(lambda: engine.sync(named_weights(model), 0)))
    work = f"{NUM_PROMPTS} x {GROUP_SIZE} completions, {num_tokens:,} tokens"
    pairs = list(zip(ours_seconds, raw_seconds, peer_rates, sync_seconds, strict=True))
    mean = statistics.median(ours_seconds)

    def row(what: str, peer_time: float, ratio: float, target: float) -> dict[str, object]:
        return {"work": what, "ours_seconds": mean, "peer_seconds": peer_time, "ratio": ratio, "target": target}

    return [
        row(f"collector, LLM.generate: {work}", statistics.median(raw_seconds),
            statistics.median(b / a for a, b, _, _ in pairs), 0.9),
        row("collector, TRL's VLLMGeneration (by tokens/s)", num_tokens / statistics.median(peer_rates),
            statistics.median(num_tokens / a / rate for a, _, rate, _ in pairs), 1.0),
        row("phase, weight sync: syncs in the time of a phase", statistics.median(sync_seconds),
            statistics.median(a / d for a, _, _, d in pairs), 10.0),
    ]  # fmt: skip


def raw_generate(engine: Any, requests: Sequence[Request]) -> Callable[[], None]:
    """vLLM's own call for the same requests, as its documentation shows it."""
    from vllm import SamplingParams

    prompts = [{"prompt_token_ids": list(request.prompt_ids)} for request in requests]
    params = [
        SamplingParams(
            max_tokens=MAX_TOKENS,
            seed=request.seed % (1 << 63),
            logprobs=0,
            stop_token_ids=sorted(STOPS),
            ignore_eos=True,
        )
        for request in requests
    ]

    def run() -> None:
        engine._llm.reset_prefix_cache()
        engine._llm.generate(prompts, params, use_tqdm=False)

    return run


def trl_generate(model: Any, tokenizer: Any, directory: Path, examples: Sequence[Example]) -> Callable[[], int]:
    """TRL's colocated rollout of the same prompts; a call returns how many tokens it has drawn.

    Prompts are rendered and completions decoded as GRPOTrainer does it, and as our collector does.
    On CPU its vLLM runs without torch.compile, as ours does: compiling takes minutes and is no part of either.
    """
    if not torch.cuda.is_available():
        os.environ["VLLM_CPU_CI_ENV"] = "1"
    from accelerate import Accelerator
    from trl.generation.vllm_generation import VLLMGeneration

    saved = save_model(copy.deepcopy(model).bfloat16(), tokenizer, directory / "model")
    model.name_or_path = str(saved)
    generation = VLLMGeneration(
        model,
        Accelerator(cpu=True),
        tokenizer,
        max_model_length=model.config.max_position_embeddings,
        gpu_memory_utilization=0.25,
        max_completion_length=MAX_TOKENS,
        generation_kwargs={"stop_token_ids": sorted(STOPS), "ignore_eos": True},
    )
    conversations = [list(example.prompt) for example in examples for _ in range(GROUP_SIZE)]

    def run() -> int:
        generation.llm.reset_prefix_cache()
        prompts = tokenizer.apply_chat_template(
            conversation=conversations, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        _, completions, *_ = generation.generate(prompts, None, GROUP_SIZE)
        tokenizer.batch_decode(completions, skip_special_tokens=True)
        return sum(map(len, completions))

    return run
