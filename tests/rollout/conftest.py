"""Tiny models for the rollout tests, made from configurations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.rollout.serving import Servers

VOCABULARY = 31


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads only cost time on models this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Replicas for an engine that is served; each starts when it is first asked for."""
    found = Servers(tmp_path_factory.mktemp("servers"))
    yield found
    found.stop()


@pytest.fixture
def one_owner(servers: Servers) -> Iterator[None]:
    """A replica has one engine that looks after it: what a test has made is closed after it."""
    yield
    for engine in servers.engines:
        engine.close()
    servers.engines.clear()


def _sharp(model: Any) -> Any:
    """Scale the weights so that the model's distributions are far from flat."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.mul_(6 if "embed" in name else 12)
    return model.eval()


@pytest.fixture(scope="session")
def tiny_qwen3() -> Any:
    """2 layers, 4 heads over 2, window 64, tied embeddings."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=0,
    )
    return _sharp(Qwen3ForCausalLM(config))


@pytest.fixture(scope="session")
def tiny_sliding() -> Any:
    """A model whose layers attend to the last 6 tokens only."""
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    return _sharp(MistralForCausalLM(config))
