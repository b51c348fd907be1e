"""The tokenizer of a run: loaded from the hub or a directory, made of single characters, or learnt from a file."""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

from posttrain.config.hub import hub_reachable
from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.errors import UserError
from posttrain.models.bpe_tokenizer import bpe_tokenizer
from posttrain.models.vision import FAMILIES, TOKENS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHARACTERS = "characters"
BPE = "bpe"
_SPECIAL = ("<pad>", "<unk>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>")
_SYMBOLS = "\n" + "".join(sorted(string.digits + string.ascii_letters + string.punctuation + " "))
_CHARACTER_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('the character tokenizer has no role ' + message.role) }}"
    "{% endif %}"
    "{{ '<|' + message.role + '|>' }}"
    "{% if message.content is string %}{{ message.content }}{% else %}{% for part in message.content %}"
    "{{ part.text if part.type == 'text' else '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% endfor %}{% endif %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def load_tokenizer(tokenizer: TokenizerSettings, model: ModelSettings) -> PreTrainedTokenizerBase:
    """The tokenizer at `tokenizer.path` (default: `model.path`, at its revision), with a pad token in every case.

    `tokenizer.chat_template` (a file, or the template's text) replaces the tokenizer's own. Raises UserError where no
    path is given, nothing can be loaded from it, or the template's file is missing.
    """
    path = tokenizer.path or model.path
    if path is None:
        raise UserError(
            "tokenizer.path: missing. model.config makes a model without a tokenizer; "
            f"give a directory, a hub id, '{CHARACTERS}', or '{BPE}' with a corpus"
        )
    revision = tokenizer.revision or (model.revision if path == model.path else None)
    if path == BPE:
        loaded = bpe_tokenizer(tokenizer.corpus or "", tokenizer.vocabulary)
    else:
        reads_images = (model.config or {}).get("model_type") in FAMILIES
        loaded = character_tokenizer(reads_images) if path == CHARACTERS else _pretrained(path, revision)
    if tokenizer.chat_template is not None:
        loaded.chat_template = _template(tokenizer.chat_template)
    if loaded.pad_token is None:
        loaded.pad_token = loaded.eos_token or loaded.unk_token
    return loaded


def character_tokenizer(images: bool = False) -> PreTrainedTokenizerBase:
    """One token for each printable ASCII character and newline, `<unk>` for others, and a short chat template.

    A conversation reads `<|user|>question<|end|><|assistant|>answer<|end|>`; `<|end|>` is the end-of-sequence token.
    images: also the tokens that stand for images.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vision = TOKENS.values() if images else ()
    vocabulary = {token: index for index, token in enumerate((*_SPECIAL, *_SYMBOLS, *vision))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    backend.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<|end|>",
        additional_special_tokens=[*_SPECIAL[3:], *vision],
        clean_up_tokenization_spaces=False,
        chat_template=_CHARACTER_TEMPLATE,
    )


def _pretrained(path: str, revision: str | None) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory or of the hub (its cache, where the hub cannot be reached)."""
    from transformers import AutoTokenizer

    local = Path(path).expanduser()
    try:
        if local.is_dir():
            return AutoTokenizer.from_pretrained(str(local))
        return AutoTokenizer.from_pretrained(path, revision=revision, local_files_only=not hub_reachable())
    except (OSError, ValueError) as error:
        kind = "the directory" if local.is_dir() else "the hub (and there is no such directory)"
        reach = (
            "" if local.is_dir() or hub_reachable() else "; the hub cannot be reached and its cache does not hold it"
        )
        raise UserError(f"tokenizer '{path}': cannot be loaded from {kind}{reach}: {_first_line(error)}") from error


def _template(value: str) -> str:
    """The text of a chat template given as a file or as itself."""
    if "{" in value or "\n" in value:
        return value
    path = Path(value).expanduser()
    if not path.is_file():
        raise UserError(f"tokenizer.chat_template: '{value}' is neither a file nor a template (which contains '{{')")
    return path.read_text(encoding="utf-8")


def _first_line(error: Exception) -> str:
    """An exception's first line, or its class where it says nothing."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
