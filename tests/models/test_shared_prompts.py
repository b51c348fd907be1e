"""Sequences in one row, beginnings that they share once: the same values and gradients as in rows of their own."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from posttrain.batch import Source, TokenSequence
from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.data.collate import collate
from posttrain.data.plan import microbatches
from posttrain.models.load import load_model
from posttrain.models.packed_attention import Packing
from posttrain.models.policy import Policy
from posttrain.models.shared_rows import takes
from posttrain.models.tokenizer import load_tokenizer
from posttrain.rows import Layout, Rows

NARROW: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
SIZES = NARROW | {"head_dim": 8}
QWEN3 = SIZES | {"model_type": "qwen3"}
GPT2 = {
    "model_type": "gpt2",
    "n_embd": 32,
    "n_head": 4,
    "n_layer": 2,
    "attn_pdrop": 0,
    "embd_pdrop": 0,
    "resid_pdrop": 0,
}
MIXED = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}


class Double(TorchFunctionMode):
    """Keeps float64 what architectures compute in float32 (norms), so that gradients compare to 1e-9."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        casts = func is Tensor.float or (func is Tensor.to and torch.float32 in args)
        return args[0] if casts and args[0].dtype == torch.float64 else func(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with Double():
        yield


def tiny(config: dict[str, Any] = QWEN3, **settings: Any) -> Any:
    model_settings = ModelSettings(config=config, **({"dtype": "float64"} | settings))
    return load_model(model_settings, load_tokenizer(TokenizerSettings(path="characters"), model_settings), seed=3)


def tokens(generator: random.Random, number: int) -> tuple[int, ...]:
    return tuple(generator.randrange(6, 90) for _ in range(number))


def completions(group: int, prompt: int, lengths: list[int], asked: int = 0, **changes: Any) -> list[TokenSequence]:
    """Random completions of these lengths after a random prompt, of which the last two tokens depend on `asked`."""
    generator = random.Random(group)
    start = tokens(generator, prompt)
    if asked:
        generator = random.Random(asked)
        start = start[:-2] + tokens(generator, 2)
    found = [
        TokenSequence(start + tokens(generator, length), (False,) * prompt + (True,) * length, Source.ROLLOUTS, group)
        for length in lengths
    ]
    return [replace(sequence, **changes) for sequence in found]


def turns(group: int, number: int) -> list[TokenSequence]:
    """Episodes of one prompt with several runs of actions, of which the last is followed by an answer."""
    generator = random.Random(group)
    start, found = tokens(generator, 11), []
    for _ in range(number):
        mask = [False] * 11 + [True] * generator.randrange(1, 4) + [False] * 3 + [True] * generator.randrange(1, 4)
        mask += [False] * 2
        found.append(
            TokenSequence(start + tokens(generator, len(mask) - 11), tuple(mask), Source.ROLLOUTS, group=group)
        )
    return found


def branches() -> list[TokenSequence]:
    """Episodes that part after their first action, and one of them twice."""
    generator = random.Random(5)
    start, first = tokens(generator, 9), tokens(generator, 4)
    mask = (False,) * 9 + (True,) * 2 + (False,) * 2
    found = [
        TokenSequence(start + first + tokens(generator, length), mask + (True,) * length, Source.ROLLOUTS, 0)
        for length in (3, 1, 5)
    ]
    return [*found, found[0], *completions(5, 9, [4])]


CASES: dict[str, list[TokenSequence]] = {
    "ragged groups": completions(0, 13, [3, 9, 1, 5]) + completions(1, 20, [2, 2, 8]),
    "one-token completions": completions(0, 13, [1] * 6),
    "equal completions": completions(0, 13, [4, 2]) * 3,
    "demonstration and rollouts": [
        *completions(0, 13, [3, 6, 2]),
        *completions(0, 13, [7, 1], source=Source.DEMONSTRATIONS),
    ],
    "several turns": turns(0, 4) + turns(1, 3),
    "branches": branches(),
    "temperatures": completions(0, 13, [3, 4], temperature=0.5) + completions(0, 13, [5, 2], temperature=1.5),
    "with plain rows": completions(0, 13, [3, 9, 1]) + completions(1, 2, [40]) + completions(2, 17, [4]),
    "different questions": [
        *(s for group in (1, 2, 3) for s in completions(0, 14, [3, 5], asked=group)),
        *completions(0, 14, [6], asked=4),
    ],
    "without actions": [*completions(0, 13, [3, 9, 1]), *completions(1, 5, [0]), *completions(0, 13, [0, 0])],
}


def gradient(model: Any, batches: list[Rows]) -> Tensor:
    """Of a sum of all logprobs and entropies with weights that differ from token to token."""
    policy = Policy(model)
    policy.train()
    model.zero_grad()
    for rows in batches:
        result = policy(rows)
        weights = torch.sin(torch.arange(len(rows.action_ids)) + 1.0).to(result.logprobs.dtype)
        (weights * (result.logprobs + 0.3 * result.entropy)).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).clone()


def assert_equal(ours: Tensor, expected: Tensor, relative: float) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= relative * expected.abs().max()


LAYOUTS: list[Layout] = ["packed", "shared"]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("dtype", "relative"), [("float64", 1e-12), ("float32", 1e-6)])
def test_same_values_and_gradient_as_in_padded_rows(case: str, layout: Layout, dtype: str, relative: float) -> None:
    model = tiny(dtype=dtype)
    packed, padded = collate(CASES[case], layout=layout), collate(CASES[case], layout="padded")
    assert packed.branches is not None
    assert padded.branches is None
    assert packed.input_ids.numel() < padded.input_ids.numel()
    assert (packed.input_ids.numel() < collate(CASES[case], layout="packed").input_ids.numel()) == (layout == "shared")
    expected = Policy(model)(padded)
    for rows in (packed, packed.unpacked()):
        for ours, theirs in zip(Policy(model)(rows)[:2], expected[:2], strict=True):
            assert_equal(ours, theirs, relative)
    assert_equal(gradient(model, [packed]), gradient(model, [padded]), relative)


def test_long_rows_take_several_calls() -> None:
    sequences = completions(0, 200, [3, 150, 40, 90]) + completions(1, 2, [300, 5, 5]) + completions(2, 90, [30] * 5)
    rows = collate(sequences)
    assert rows.branches is not None
    packing = Packing(rows.branches, torch.device("cpu"))
    assert 3 <= len(packing.calls.calls) < len(rows.branches)
    model = tiny(QWEN3 | MIXED | {"use_sliding_window": True, "sliding_window": 64})
    expected = gradient(model, [collate(sequences, layout="padded")])
    assert_equal(gradient(model, [rows]), expected, 1e-12)


@pytest.mark.parametrize(
    ("config", "layout"),
    [
        (QWEN3, "shared"),
        (QWEN3 | MIXED | {"use_sliding_window": True}, "shared"),
        (SIZES | {"model_type": "llama"}, "shared"),
        (SIZES | MIXED | {"model_type": "gemma3_text"}, "shared"),
        (
            SIZES | {"model_type": "gemma3_text", "sliding_window": 4, "layer_types": ["sliding_attention"] * 2},
            "shared",
        ),
        (SIZES | {"model_type": "mistral", "sliding_window": 4}, "shared"),
        (NARROW | {"model_type": "qwen2"}, "shared"),
        (NARROW | {"model_type": "cohere2"} | MIXED, "shared"),
        (GPT2, "shared"),
        ({"model_type": "bloom", "hidden_size": 32, "n_head": 4, "n_layer": 2}, "padded"),
        ({"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2}, "padded"),
    ],
    ids=lambda value: value.get("model_type") if isinstance(value, dict) else None,
)
def test_every_architecture_is_exact_shared_or_not(config: dict[str, Any], layout: Layout) -> None:
    model = tiny(config)
    assert Policy(model).layout == layout
    sequences = [s for case in ("ragged groups", "several turns", "with plain rows") for s in CASES[case]]
    expected = gradient(model, [collate(sequences, layout="padded")])
    assert_equal(gradient(model, [collate(sequences)]), expected, 1e-9)


def test_other_attention_gets_plain_rows() -> None:
    rows = collate(CASES["ragged groups"])
    expected = Policy(tiny(dtype="float32"))(rows).logprobs
    assert Policy(tiny(attention="eager")).layout == "padded"
    changed = tiny(dtype="float32")
    policy = Policy(changed)
    changed.set_attn_implementation("eager")  # after loading
    assert_equal(policy(rows).logprobs, expected, 1e-6)
    for name, layout in {
        "flash_attention_2": "packed",
        "flash_attention_3": "packed",
        "flex_attention": "padded",
        "posttrain_grouped_sdpa": "padded",
    }.items():
        changed.config._attn_implementation = name
        assert takes(changed.config) == layout


def test_gradient_checkpointing_changes_nothing() -> None:
    rows = collate(CASES["ragged groups"])
    models = (tiny(gradient_checkpointing=on, dtype="float32") for on in (False, True))
    plain, checkpointed = (gradient(model, [rows]) for model in models)
    assert_equal(checkpointed, plain, 1e-6)


@pytest.mark.parametrize("couples", ["", "pair", "group"])
@pytest.mark.parametrize("budget", [20, 64, 100_000])
def test_micro_batches_change_nothing(couples: Any, budget: int) -> None:
    sequences = random.Random(0).sample([s for case in CASES.values() for s in case], 24)
    model = tiny()
    expected = per_sequence(model, [list(range(len(sequences)))], sequences, "padded")
    for layout in (*LAYOUTS, "padded"):
        plan = microbatches(sequences, budget, couples, layout=layout)
        assert_equal(per_sequence(model, plan, sequences, layout), expected, 1e-12)


def per_sequence(model: Any, plan: list[list[int]], sequences: list[TokenSequence], layout: Layout) -> Tensor:
    """The gradient of the sum of all logprobs, each with its sequence's weight."""
    policy = Policy(model)
    model.zero_grad()
    for batch in plan:
        part = [sequences[index] for index in batch]
        logprobs = policy(collate(part, layout=layout)).logprobs.split([s.num_actions for s in part])
        loss = torch.stack([(index + 1.0) * found.sum() for index, found in zip(batch, logprobs, strict=True)]).sum()
        torch.autograd.backward(loss)
    return torch.cat([p.grad.flatten() for p in model.parameters()]).clone()


def test_bfloat16_autocast_is_as_close_as_plain_rows_are() -> None:
    model = tiny(dtype="float32")
    rows, plain = collate(CASES["ragged groups"]), collate(CASES["ragged groups"], layout="padded")
    exact = Policy(model)(plain).logprobs
    with torch.autocast("cpu", torch.bfloat16):
        shared = Policy(model)(rows).logprobs
    assert 0 < (shared - exact).abs().max() < 0.05


def test_a_repeated_step_is_the_same_bit_for_bit() -> None:
    model = tiny(dtype="float32")
    twin = copy.deepcopy(model)
    first, second = (gradient(m, [collate(CASES["several turns"])]) for m in (model, twin))
    assert torch.equal(first, second)
