"""A new model's architecture: the `model.config` of a recipe as a config of transformers, every field checked."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from posttrain.errors import RecipeError, did_you_mean
from posttrain.models.vision import FAMILIES, TOKENS

_LEGACY = ("rope_theta", "rope_scaling")
_SET_ELSEWHERE = {"dtype": "model.dtype", "torch_dtype": "model.dtype", "attn_implementation": "model.attention"}
_POSITIVE = {
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
}
_NOT_SETTINGS = {
    "transformers_version",
    "architectures",
    "return_dict",
    "problem_type",
    "id2label",
    "label2id",
    "dtype",
}


def architecture(fields: Mapping[str, Any], tokenizer: Any = None) -> Any:
    """The config of `fields`: `model_type`, and fields of that type's config class.

    vocab_size and the ids of special tokens come from the tokenizer where `fields` does not name them and a tokenizer
    is given. A model that reads images has parts with fields of their own, text_config and vision_config. RecipeError
    on an unknown type or field, a value that the config class refuses, and a vocabulary smaller than the tokenizer's.
    """
    from huggingface_hub.errors import StrictDataclassError

    values = dict(fields)
    config_class = _config_class(values.pop("model_type", None))
    _check_fields(values, config_class, "model.config")
    parts = config_class.sub_configs if config_class.model_type in FAMILIES else {}
    for name, part in parts.items():
        values[name] = dict(values.get(name) or {})
        _check_fields(values[name], part, f"model.config.{name}")
    if tokenizer is not None and parts:
        values = {name: tokenizer.convert_tokens_to_ids(token) for name, token in TOKENS.items()} | values
        values["text_config"] = _of_tokenizer(tokenizer) | values["text_config"]
    elif tokenizer is not None:
        values = _of_tokenizer(tokenizer) | values
    try:
        config = config_class(**values)
    except (StrictDataclassError, TypeError, ValueError, AttributeError, KeyError) as error:
        raise RecipeError(f"model.config: {config_class.__name__} refuses it: {_one_line(error)}") from error
    size = config.get_text_config().vocab_size
    if tokenizer is not None and size < len(tokenizer):
        raise RecipeError(f"model.config.vocab_size is {size}; allowed: at least the tokenizer's {len(tokenizer)}")
    return config


def _check_fields(values: Mapping[str, Any], config_class: Any, place: str) -> None:
    """RecipeError for a field that `config_class` does not have, or that is set elsewhere or below 1."""
    allowed = {field.name for field in dataclasses.fields(config_class)} | set(config_class.attribute_map)
    allowed = (allowed | set(_LEGACY)) - _NOT_SETTINGS
    for name, value in values.items():
        if name in _SET_ELSEWHERE:
            raise RecipeError(f"{place}.{name} (set to {value!r}): write it as {_SET_ELSEWHERE[name]}")
        if name not in allowed:
            raise RecipeError(f"{place}.{name}: unknown key (set to {value!r}); {did_you_mean(name, allowed)}")
        if name in _POSITIVE and isinstance(value, int | float) and value < 1:
            raise RecipeError(f"{place}.{name} is {value!r}; allowed: at least 1")


def _config_class(model_type: Any) -> Any:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    known = [*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *FAMILIES]
    if model_type not in known or model_type not in CONFIG_MAPPING:
        near = difflib.get_close_matches(str(model_type), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise RecipeError(
            f"model.config.model_type is {model_type!r}; {hint}"
            "allowed: a causal language model of transformers, such as qwen3, llama, gemma3_text, or one that reads "
            f"images: {', '.join(FAMILIES)}"
        )
    return CONFIG_MAPPING[model_type]


def _of_tokenizer(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _one_line(error: Exception) -> str:
    return " ".join(str(error.__cause__ or error).split()) or type(error).__name__
