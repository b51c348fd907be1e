"""A tiny model and its tokenizer, for tests that need any."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.models.tokenizer import load_tokenizer


def tiny_model(**changes: int) -> tuple[Qwen3ForCausalLM, Any]:
    """A random Qwen3 over characters, the same at every call; changes: of its config."""
    tokenizer = load_tokenizer(TokenizerSettings(path="characters"), ModelSettings())
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "max_position_embeddings": 512,
    }
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen3Config(vocab_size=len(tokenizer), **sizes | ends | changes)
    return Qwen3ForCausalLM(config), tokenizer
