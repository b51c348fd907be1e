"""Obfuscated text has fewer characters per token, by a byte-pair tokenizer that learned natural text."""

from __future__ import annotations

import base64
import codecs
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from posttrain.curation.obfuscated import characters_per_token, outside
from posttrain.errors import RecipeError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=3000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    learned = [(ROOT / name).read_text() for name in ("README.md", "SCIENCE.md", "CHANGELOG.md")]
    backend.train_from_iterator([line for text in learned for line in text.splitlines()], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def test_ciphers_and_encodings_are_told_from_prose_that_was_not_learned(tokenizer: Any) -> None:
    prose = (ROOT / "CONTRIBUTING.md").read_text().split("\n\n")
    natural = [" ".join(text.split()) for text in prose if len(text) > 120 and "`" not in text]
    assert len(natural) >= 3
    hidden = [
        write(text)
        for text in natural
        for write in (
            lambda text: codecs.encode(text, "rot13"),
            lambda text: base64.b64encode(text.encode()).decode(),
            lambda text: text.encode().hex(),
            " ".join,
            lambda text: text.translate(str.maketrans("aeiost", "431057")),
        )
    ]
    low = 2.5
    assert outside(characters_per_token(natural, tokenizer), low, None) == {}
    assert set(outside(characters_per_token(hidden, tokenizer), low, None)) == set(range(len(hidden)))


def test_both_bounds_say_why(tokenizer: Any) -> None:
    ids = tokenizer("training", add_special_tokens=False)["input_ids"]
    assert characters_per_token(["training", ""], tokenizer) == [len("training") / len(ids), 0.0]
    assert outside([1.0, 2.0, 3.0], 1.5, 2.5) == {
        0: "1.00 characters per token, below 1.5",
        2: "3.00 characters per token, above 2.5",
    }
    with pytest.raises(RecipeError, match="in this order"):
        outside([1.0], 3.0, 2.0)
