"""The teacher of a distillation: a frozen model with the policy's tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from posttrain.config.schema import ModelSettings, TeacherSettings, TokenizerSettings
from posttrain.errors import UserError
from posttrain.models.divergence import Divergence
from posttrain.models.load import check_model, errors_of, load_model
from posttrain.models.policy import Teacher
from posttrain.models.tokenizer import load_tokenizer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")


def check_teacher(settings: TeacherSettings) -> None:
    """Whether `load_teacher` can find what `settings` names, without loading weights; UserError as there."""
    with errors_of("teacher"):
        check_model(_as_model(settings))


def load_teacher(settings: TeacherSettings, tokenizer: Any, divergence: Divergence, seed: int = 0) -> Teacher:
    """The model at `settings.path`, or a new one made from `seed`, in eval mode and without gradients, on the CPU.

    Its head may have more rows than the policy's, or fewer, as long as every token of `tokenizer` has one: what is
    beyond the smaller of the two is padding, and is cut. UserError, its field `teacher`, where the model cannot be
    loaded, has too few rows, or where a tokenizer beside it has other tokens than `tokenizer`.
    """
    check_teacher(settings)
    _check_tokens(settings, tokenizer)
    with errors_of("teacher"):
        model = load_model(_as_model(settings), tokenizer, seed)
    return Teacher(model.requires_grad_(False), divergence)


def _as_model(settings: TeacherSettings) -> ModelSettings:
    return ModelSettings(**settings.model_dump())


def _check_tokens(settings: TeacherSettings, tokenizer: Any) -> None:
    """UserError where a token has another id for the teacher; a directory without a tokenizer is taken at its word."""
    if settings.path is None:
        return
    local = Path(settings.path).expanduser()
    if local.is_dir() and not any((local / name).is_file() for name in _TOKENIZER_FILES):
        return
    theirs = load_tokenizer(TokenizerSettings(), _as_model(settings)).get_vocab()
    different = sorted((row, token) for token, row in tokenizer.get_vocab().items() if theirs.get(token) != row)
    if different:
        row, token = different[0]
        raise UserError(
            f"teacher.path {settings.path!r}: {len(different)} of the policy's {len(tokenizer)} tokens are not the "
            f"teacher's: id {row} is {token!r}, which the teacher's tokenizer has as {theirs.get(token)}; "
            "allowed: a teacher with the policy's tokenizer"
        )
