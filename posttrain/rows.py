"""What one forward pass takes: tokens in rows, and where the outputs are that predict the action tokens.

Shapes: B rows, T tokens of the longest row, A action tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

Layout = Literal["padded", "packed", "shared"]
"""How sequences lie in rows: each in a row of its own, padded on the right; all of them behind each other in one row,
without padding; or in one row in which beginnings that several have in common are there once."""


class Branch(NamedTuple):
    """What one sequence has for itself in a packed row: the columns start to stop - 1.

    context: spans of earlier columns, (start, stop) each: the beginning that it has in common with sequences before it.
    A token sees the context of its branch, the branch's tokens before it, and itself.
    """

    start: int
    stop: int
    context: tuple[tuple[int, int], ...] = ()

    @property
    def depth(self) -> int:
        """Tokens of the context: the position of its first token."""
        return sum(stop - start for start, stop in self.context)


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows for one forward pass.

    input_ids, position_ids [B, T]. predictor_index [A]: the flat position b * T + t whose output predicts the action
    token; sequences that share a beginning may share predictors. action_ids [A]: the action tokens. temperatures [A]:
    the temperature each is scored at. branches: of a packed row (B = 1) what sees what, in the order of the columns;
    None for padded rows, where attention is plainly causal. action_index [A]: the flat position of each action token
    itself; None where rows do not hold them all.
    """

    input_ids: Tensor
    position_ids: Tensor
    predictor_index: Tensor
    action_ids: Tensor
    temperatures: Tensor
    branches: tuple[Branch, ...] | None = None
    action_index: Tensor | None = None

    def to(self, device: torch.device | str) -> Rows:
        """The rows on another device."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: one.to(device) for name, one in found.items() if isinstance(one, Tensor)}
        return replace(self, **moved)

    def unpacked(self) -> Rows:
        """The same predictors in padded rows: a row for each branch, its context before it."""
        assert self.branches is not None
        ids = self.input_ids[0]
        depths = torch.tensor([branch.depth for branch in self.branches], device=ids.device)
        sizes = torch.tensor([branch.stop - branch.start for branch in self.branches], device=ids.device)
        width = int((depths + sizes).max())
        input_ids = ids.new_zeros(len(self.branches), width)
        for row, (start, stop, context) in zip(input_ids, self.branches, strict=True):
            tokens = torch.cat([ids[slice(*span)] for span in (*context, (start, stop))])
            row[: len(tokens)] = tokens
        owner = torch.arange(len(self.branches), device=ids.device).repeat_interleave(sizes)
        moved = owner * width + self.position_ids[0]
        return replace(
            self,
            input_ids=input_ids,
            position_ids=torch.arange(width, device=ids.device).expand_as(input_ids),
            predictor_index=moved[self.predictor_index],
            action_index=None if self.action_index is None else moved[self.action_index],
            branches=None,
        )
