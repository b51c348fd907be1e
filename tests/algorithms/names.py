"""Every algorithm of the catalogue, as it comes: tests that run over them need no edit for a new one."""

from __future__ import annotations

from typing import Any

import pytest

from posttrain import catalog

NAMES = [member.name for member in catalog.members("algorithms") if member.name != "terms"]  # test_terms.py has it
EACH = pytest.mark.parametrize("name", NAMES)


def label(value: Any) -> str:
    """A parameter in a test's name, the same in every process."""
    if callable(value):
        return value.__qualname__.split(".")[0]
    return str(value) if value != {} else "default"
