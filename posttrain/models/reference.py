"""A frozen copy of the policy, for KL penalties and implicit rewards."""

from __future__ import annotations

import copy
from typing import Any

from posttrain.models.policy import Policy


def reference_of(model: Any) -> Policy:
    """A policy over a copy of `model`'s weights as they are now: eval mode, no gradients."""
    reference = Policy(copy.deepcopy(model))
    reference.requires_grad_(False)
    return reference.eval()
