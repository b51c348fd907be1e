"""The policy's model: loaded from the hub or a directory, or initialised from an architecture and a seed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from posttrain.config.hub import hub_reachable
from posttrain.config.schema import CriticSettings, ModelSettings, TeacherSettings
from posttrain.errors import RecipeError, UserError, did_you_mean
from posttrain.models.architecture import architecture
from posttrain.models.check import check_policy
from posttrain.models.quantised import keep_exact, quantization_config
from posttrain.models.quiet import no_progress_bars
from posttrain.models.shared_rows import takes
from posttrain.models.vision import FAMILIES, freeze_tower, images_of_config, is_vision

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTION = ("eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4")


def check_model(settings: ModelSettings) -> None:
    """Whether `load_model` can find what `settings` names, without loading weights.

    RecipeError for a bad architecture; UserError for a directory or a hub id without a causal language model, and
    where the hub cannot be reached.
    """
    if (settings.path is None) == (settings.config is None):
        raise RecipeError("model: exactly one of path (a hub id or directory) and config (a new model) must be set")
    if settings.attention is not None and settings.attention not in ATTENTION:
        raise RecipeError(f"model.attention is {settings.attention!r}; {did_you_mean(settings.attention, ATTENTION)}")
    if settings.config is not None:
        architecture(settings.config)
    else:
        _model_class(settings, _stored_config(settings))


def load_model(settings: ModelSettings, tokenizer: Any, seed: int) -> PreTrainedModel:
    """The model in `settings.dtype` on the CPU, in eval mode, checked against `Policy` (see `models.check`).

    A new model is initialised from `seed` alone, in float32, and then cast; the global random state is left as it
    was. Its generation config ends at the tokenizer's eos (and at those it had). A model that reads images gets what
    reads them as `images`, and so does the tokenizer; its vision tower is frozen unless the settings say otherwise.
    RecipeError, UserError as in `check_model`, and for weights that are missing, unreadable or too few for the
    tokenizer.
    """
    check_model(settings)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = _initialised(settings, tokenizer) if settings.config is not None else _stored(settings)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise UserError(
            f"model {settings.path!r} has embeddings for {rows} tokens, the tokenizer has {len(tokenizer)}; "
            "allowed: a tokenizer with at most as many"
        )
    _set_generation(model, tokenizer)
    if settings.freeze_vision is not None and not is_vision(model.config):
        raise RecipeError(
            f"model.freeze_vision is {settings.freeze_vision}, and {type(model).__name__} reads no images"
        )
    if is_vision(model.config):
        model.images = images_of_config(model.config, tokenizer, *_source(settings))
        tokenizer.images = getattr(tokenizer, "images", model.images)
        if settings.freeze_vision is not False:
            freeze_tower(model)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    model.eval()
    check_policy(model)
    return model


def empty_model(settings: ModelSettings | TeacherSettings, tokenizer: Any = None) -> PreTrainedModel:
    """The model without weights, on the meta device, in eval mode: shapes to count with.

    Of a path only the config is read. tokenizer: what `config` leaves to it. RecipeError, UserError as `check_model`.
    """
    own = ModelSettings(**settings.model_dump())
    check_model(own)
    config = _stored_config(own) if own.config is None else architecture(own.config, tokenizer)
    attention = own.attention if own.attention in ("eager", "sdpa") else None  # the others' packages may be missing
    with torch.device("meta"):
        model = _auto_class(config).from_config(config, dtype=getattr(torch, own.dtype), attn_implementation=attention)
    if is_vision(config) and own.freeze_vision is not False:
        freeze_tower(model)
    model.row_layout = takes(model.get_decoder().config)
    if own.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    found: PreTrainedModel = model.eval()
    return found


def check_critic(policy: ModelSettings, settings: CriticSettings) -> None:
    """Whether `load_critic` can find what `settings` names, without loading weights; UserError as there."""
    with errors_of("critic"):
        check_model(_critic_model(policy, settings))


def load_critic(policy: ModelSettings, settings: CriticSettings, tokenizer: Any) -> PreTrainedModel:
    """The model at `settings.path`, in the policy's dtype; UserError as `load_model`, its field `critic`."""
    with errors_of("critic"):
        return load_model(_critic_model(policy, settings), tokenizer, seed=0)


def _critic_model(policy: ModelSettings, settings: CriticSettings) -> ModelSettings:
    own = {"path": settings.path, "revision": settings.revision, "config": None, "quantization": None}
    return policy.model_copy(update=own)


@contextmanager
def errors_of(section: str) -> Iterator[None]:
    """Within it errors that begin with the field `model` begin with `section` instead."""
    try:
        yield
    except UserError as error:
        raise type(error)(re.sub(r"^model\b", section, str(error))) from error


def _initialised(settings: ModelSettings, tokenizer: Any) -> Any:
    assert settings.config is not None
    config = architecture(settings.config, tokenizer)
    try:
        model = _auto_class(config).from_config(config, dtype=torch.float32, attn_implementation=settings.attention)
    except (ValueError, ImportError, RuntimeError, TypeError, KeyError, ZeroDivisionError) as error:
        raise RecipeError(f"model.config: cannot be built: {type(error).__name__}: {_first_line(error)}") from error
    return model.to(getattr(torch, settings.dtype))


def _stored(settings: ModelSettings) -> Any:
    from safetensors import SafetensorError

    place, revision = _place(settings)
    local = Path(place).is_dir()
    config = _stored_config(settings)
    quantised: dict[str, Any] = {}
    if settings.quantization is not None:
        quantised = {"quantization_config": quantization_config(settings, sees=is_vision(config))}
    try:
        with no_progress_bars() if local else nullcontext():
            model, info = _model_class(settings, config).from_pretrained(
                place,
                revision=revision,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=settings.attention,
                output_loading_info=True,
                **quantised,
            )
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        raise UserError(f"model.path {settings.path!r}: cannot be loaded: {_first_line(error)}") from error
    if quantised:
        keep_exact(model)
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"model.path {settings.path!r}: {len(missing)} weights are missing: {', '.join(missing[:5])}; "
            f"allowed: a complete {type(model).__name__}"
        )
    return model


def _stored_config(settings: ModelSettings) -> Any:
    from transformers import AutoConfig

    place, revision = _place(settings)
    try:
        return AutoConfig.from_pretrained(place, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path {settings.path!r}: no readable config.json there: {_first_line(error)}; "
            "allowed: a directory with a Hugging Face model, or a hub id as in Qwen/Qwen2.5-0.5B"
        ) from error


def _model_class(settings: ModelSettings, config: Any) -> Any:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    if is_vision(config):
        return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise UserError(
            f"model.path {settings.path!r} has model_type {config.model_type!r}; allowed: a causal language model, or "
            f"of image-text-to-text models {', '.join(FAMILIES)}"
        )
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]


def _auto_class(config: Any) -> Any:
    """What makes a new model of `config`."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if is_vision(config) else AutoModelForCausalLM


def _source(settings: ModelSettings) -> tuple[str | None, str | None]:
    """Where a processor is: as `_place`; nowhere for a new model."""
    return (None, None) if settings.path is None else _place(settings)


def _place(settings: ModelSettings) -> tuple[str, str | None]:
    """Where to load from, and the revision: a directory, a hub id, or the hub's cache where it cannot be reached."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    assert settings.path is not None
    local = Path(settings.path).expanduser()
    if local.is_dir():
        return str(local), None
    if local.exists() or settings.path.startswith((".", "/", "~")) or settings.path.count("/") > 1:
        raise UserError(f"model.path {settings.path!r}: no such directory; allowed: a directory with config.json")
    if hub_reachable():
        return settings.path, settings.revision
    try:
        return snapshot_download(settings.path, revision=settings.revision, local_files_only=True), None
    except (LocalEntryNotFoundError, HFValidationError) as error:
        raise UserError(
            f"model.path {settings.path!r}: no such directory here, the hub cannot be reached, and its cache does not "
            "hold it; give a directory, or download it first: hf download " + settings.path
        ) from error


def _set_generation(model: Any, tokenizer: Any) -> None:
    """Make `generate` stop at the tokenizer's eos and at whatever the model's own generation config names."""
    generation = model.generation_config
    had = generation.eos_token_id
    eos = sorted({*(had if isinstance(had, list | tuple) else [had]), tokenizer.eos_token_id} - {None})
    generation.eos_token_id = eos[0] if len(eos) == 1 else eos or None
    if generation.pad_token_id is None:
        generation.pad_token_id = tokenizer.pad_token_id
    try:
        generation.validate(strict=True)
    except ValueError:  # a temperature without do_sample, as some published configs have it, could not be saved
        generation.do_sample = True


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
