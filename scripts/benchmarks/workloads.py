"""What is trained on: random models of the Qwen3 architecture, and random sequences."""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from posttrain.batch import Source, TokenSequence

GROUP_SIZE = 8


@dataclass(frozen=True)
class Scale:
    """How large everything is.

    model: fields of Qwen3's config. shrink: lengths are divided by it. budgets: tokens of our micro-batches to choose
    from; rows: the peer's micro-batches to choose from, in sequences. tokens: of one step, before groups are formed;
    None: a workload's own number of sequences. lora: the rank of an adapter in place of all weights. dtype: of the
    weights. recompute: activations in backward. compile: our layers.
    """

    model: dict[str, Any]
    shrink: int = 1
    budgets: tuple[int, ...] = (2048, 4096, 8192)
    rows: tuple[int, ...] = (4, 8, 16)
    tokens: int | None = None
    lora: int | None = None
    dtype: str = "float32"
    recompute: bool = False
    compile: bool = False

    def length(self, tokens: int) -> int:
        """A workload's length at this scale."""
        return max(2, tokens // self.shrink)

    def number(self, usual: int, each: float) -> int:
        """How many units of about `each` tokens one step has: a multiple of two, or `usual`."""
        return usual if self.tokens is None else max(2, 2 * round(self.tokens / each / 2))

    def with_vocabulary(self, size: int) -> Scale:
        """The same layers over another vocabulary."""
        return replace(self, model=self.model | {"vocab_size": size})


def _qwen3(hidden: int, intermediate: int, layers: int, heads: int, **beside: Any) -> dict[str, Any]:
    return {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads // 2,
        "head_dim": 64,
        "max_position_embeddings": 32_768,
        "tie_word_embeddings": True,
    } | beside


_GPU: dict[str, Any] = {"budgets": (16_384, 32_768), "rows": (4, 8, 16), "tokens": 16_384}
SCALES = {
    "toy": Scale(_qwen3(32, 64, 2, 2, vocab_size=128, head_dim=16), 8, (256, 512), (4, 8)),
    "small": Scale(_qwen3(384, 1152, 6, 6, vocab_size=8192)),
    "narrow": Scale(_qwen3(128, 384, 6, 2, vocab_size=151_936)),
    "0.6b": Scale(_qwen3(1024, 3072, 28, 16, vocab_size=151_936, num_key_value_heads=8, head_dim=128), **_GPU),
    "4b-lora": Scale(
        _qwen3(2560, 9728, 36, 32, vocab_size=151_936, num_key_value_heads=8, head_dim=128),
        **_GPU | {"budgets": (8192,), "rows": (4, 8)},
        lora=16,
        dtype="bfloat16",
    ),
}
"""By name: for tests; for a CPU 13.8 M parameters, and 20.6 M of which most are embeddings; Qwen3-0.6B and 4B."""


@dataclass
class Draw:
    """Random token ids of a vocabulary, the same for the same seed; the first ids, which may be special, never."""

    vocabulary: int
    seed: int = 0
    _random: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)

    def length(self, shortest: int, longest: int) -> int:
        """Uniform, both ends included."""
        return self._random.randint(shortest, longest)

    def ids(self, number: int) -> tuple[int, ...]:
        """`number` ids."""
        return tuple(self._random.randrange(10, self.vocabulary) for _ in range(number))


def groups(
    num_groups: int,
    prompt: int,
    shortest: int,
    longest: int,
    vocabulary: int,
    *,
    equal: int = 0,
    size: int = GROUP_SIZE,
) -> list[TokenSequence]:
    """Groups of `size` completions of one prompt, half of a group rewarded; in the first `equal` groups all are."""
    draw = Draw(vocabulary)
    found = []
    for group in range(num_groups):
        ids = draw.ids(prompt)
        for index in range(size):
            length = draw.length(shortest, longest)
            reward = 1.0 if group < equal else float(index % 2)
            found.append(_sequence(ids, draw.ids(length), Source.ROLLOUTS, group, reward=reward))
    return found


def demonstrations(number: int, shortest: int, longest: int, vocabulary: int) -> list[TokenSequence]:
    """Sequences of which every token but the first is imitated."""
    draw = Draw(vocabulary)
    return [
        _sequence(draw.ids(1), draw.ids(draw.length(shortest, longest) - 1), Source.DEMONSTRATIONS, group)
        for group in range(number)
    ]


def pairs(number: int, prompt: int, shortest: int, longest: int, vocabulary: int) -> list[TokenSequence]:
    """Chosen and rejected completions of one prompt, side by side."""
    draw = Draw(vocabulary)
    found = []
    for pair in range(number):
        ids = draw.ids(prompt)
        for reward in (1.0, 0.0):
            completion = draw.ids(draw.length(shortest, longest))
            found.append(_sequence(ids, completion, Source.PREFERENCES, pair, pair=pair, reward=reward))
    return found


def _sequence(
    prompt: tuple[int, ...], completion: tuple[int, ...], source: Source, group: int, **beside: Any
) -> TokenSequence:
    mask = (False,) * len(prompt) + (True,) * len(completion)
    return TokenSequence(prompt + completion, mask, source, group, **beside)


def split(sequence: TokenSequence) -> tuple[list[int], list[int]]:
    """The tokens before the first action, and the rest."""
    start = sequence.action_mask.index(True)
    return list(sequence.token_ids[:start]), list(sequence.token_ids[start:])
