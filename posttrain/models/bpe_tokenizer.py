"""A small tokenizer learnt from a file of examples: byte pairs, so that any text can be written, and a chat template.

For tiny models made from a configuration, which read a world of few words: a word of it is a token or two.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NUM_BYTES = 256
_SPECIAL = ("<pad>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")
_TEMPLATE = (
    "{% for tool in tools or [] %}{{ '<|system|>' + (tool | tojson) + '<|end|>' }}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant', 'tool'] %}"
    "{{ raise_exception('this tokenizer has no role ' + message.role) }}"
    "{% endif %}"
    "{{ '<|' + message.role + '|>' + message.content + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def bpe_tokenizer(corpus: str | Path, size: int) -> PreTrainedTokenizerBase:
    """At most `size` tokens: special ones, the bytes, and the pairs most frequent in the texts of `corpus`.

    corpus: a .jsonl file; every text anywhere in its rows counts. The same file gives the same tokenizer. A
    conversation reads `<|user|>question<|end|><|assistant|>answer<|end|>`, tools before it. UserError for a file that
    cannot be read and a size too small for the bytes.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    least = len(_SPECIAL) + _NUM_BYTES
    if size < least:
        raise UserError(f"tokenizer.vocabulary: {size} is not allowed; allowed: at least {least}, for the bytes alone")
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(_texts(Path(corpus).expanduser()), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=list(_SPECIAL[2:]),
        clean_up_tokenization_spaces=False,
        chat_template=_TEMPLATE,
    )


def _texts(path: Path) -> list[str]:
    """Every text in the rows."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"tokenizer.corpus: {path} cannot be read as a .jsonl file: {error}") from error
    found = [text for row in rows for text in _strings(row)]
    if not found:
        raise UserError(f"tokenizer.corpus: {path} holds no text")
    return found


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)
