"""Every algorithm of the catalogue, as it comes: tests that run over them need no edit for a new one."""

from __future__ import annotations

import pytest

from posttrain import catalog

NAMES = [member.name for member in catalog.members("algorithms") if member.name != "terms"]  # test_terms.py has it
EACH = pytest.mark.parametrize("name", NAMES)
