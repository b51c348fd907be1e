"""A model to evaluate."""

from __future__ import annotations

import pytest

from tests.tiny import tiny_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The directory of a tiny random model, as transformers saves it."""
    directory = tmp_path_factory.mktemp("model")
    for part in tiny_model():
        part.save_pretrained(directory)
    return str(directory)
