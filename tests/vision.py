"""A tiny model that reads images, images for it, and an environment that shows some."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import torch

from posttrain.config.schema import ModelSettings, TokenizerSettings
from posttrain.environments import Observation, Step, shown
from posttrain.images import png
from posttrain.models.load import load_model
from posttrain.models.tokenizer import load_tokenizer
from posttrain.trajectory import Prompt

TEXT: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
QWEN3_VL: dict[str, Any] = {
    "model_type": "qwen3_vl",
    "text_config": TEXT
    | {
        "head_dim": 16,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [4, 2, 2],
            "mrope_interleaved": True,
        },
    },
    "vision_config": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "out_hidden_size": 32,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0],
    },
    "tie_word_embeddings": True,
}
QWEN25_VL: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "text_config": TEXT
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [2, 1, 1]}},
    "vision_config": {
        "depth": 2,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 4,
        "window_size": 16,
        "out_hidden_size": 32,
        "fullatt_block_indexes": [1],
    },
    "tie_word_embeddings": True,
}
CELL = 8
"""Pixels of a side of what becomes one token."""


def tiny_vision(config: dict[str, Any] = QWEN3_VL, **settings: Any) -> tuple[Any, Any]:
    """A random model that reads images and characters, the same at every call, and its tokenizer."""
    model_settings = ModelSettings(config=config, **settings)
    tokenizer = load_tokenizer(TokenizerSettings(path="characters"), model_settings)
    model = load_model(model_settings, tokenizer, seed=1)
    with torch.no_grad():  # so that what an image shows makes a difference that tests can see
        model.base_model.visual.merger.apply(_louder)
    return model, tokenizer


def _louder(module: torch.nn.Module) -> None:
    if isinstance(module, torch.nn.Linear):
        module.weight.mul_(20)


def picture(seed: int, height: int = 2, width: int = 3) -> str:
    """An image of height x width cells of random pixels."""
    from PIL import Image

    generator = random.Random(seed)
    pixels = bytes(generator.randrange(256) for _ in range(3 * height * width * CELL**2))
    return png(Image.frombytes("RGB", (width * CELL, height * CELL), pixels))


class Slides:
    """Shows a new image after every answer, four in all; longer answers earn more."""

    capacity: int | None = None

    async def reset(self, prompt: Prompt, columns: Mapping[str, Any], seed: int) -> tuple[Observation, Show]:
        show = Show(seed)
        first = show.observe()
        return Observation(({"role": "system", "content": "look"}, *first.messages)), show

    def close(self) -> None:
        """Nothing is held."""


class Show:
    """One episode of `Slides`."""

    def __init__(self, seed: int) -> None:
        self.seed, self.number = seed % 1000, 0

    def observe(self) -> Observation:
        """The next image, of a shape of its own."""
        shape = 1 + (self.seed + self.number) % 3, 1 + self.number % 4
        return Observation(shown(picture(self.seed + self.number, *shape), f"slide {self.number}"))

    async def step(self, action: str) -> Step:
        """The next, or the end."""
        self.number += 1
        over = self.number == 4
        found = Observation() if over else self.observe()
        return Step(found, reward=len(action) / 10, terminated=over, solved=len(action) > 3 if over else None)

    async def close(self) -> None:
        """Nothing is held."""
