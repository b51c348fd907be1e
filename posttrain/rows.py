"""What one forward pass takes: tokens in rows, and where the outputs are that predict the action tokens.

Shapes: B rows, T tokens of the longest row, A action tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from posttrain.picture import Picture, Pictures

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


class Seen(NamedTuple):
    """What a vision tower says of images: features [N, H] of the tokens of each, one image after the other.

    deep: the same of each decoder layer that takes features besides (DeepStack, arXiv 2406.04334). places: where each
    image's begin.
    """

    features: Tensor
    deep: tuple[Tensor, ...]
    places: Mapping[str, int]

    def detached(self) -> Seen:
        """The same without gradient."""
        return Seen(self.features.detach(), tuple(one.detach() for one in self.deep), self.places)


def rotary_positions(num_tokens: int, pictures: Sequence[Picture]) -> Tensor:
    """The time, row and column [3, T] of each token of a sequence with pictures (arXiv 2409.12191, sec. 2.1).

    Of text all three are its position; of a picture's cell (r, c) they are p, p + r, p + c, where p is the position of
    its first cell; the text after it goes on at p + max(height, width).
    """
    positions = torch.arange(num_tokens).repeat(3, 1)
    for one in pictures:
        first = int(positions[0, one.start])
        cells = torch.arange(one.num_tokens)
        at = torch.stack([torch.zeros_like(cells), cells // one.width, cells % one.width])
        positions[:, one.start : one.stop] = first + at
        positions[:, one.stop :] += max(one.height, one.width) - one.num_tokens
    return positions


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows for one forward pass.

    input_ids, position_ids [B, T]. predictor_index [A]: the flat position b * T + t whose output predicts the action
    token; sequences that share a beginning may share predictors. action_ids [A]: the action tokens. temperatures [A]:
    the temperature each is scored at. branches: of a packed row (B = 1) what sees what, in the order of the columns;
    None for padded rows, where attention is plainly causal. action_index [A]: the flat position of each action token
    itself; None where rows do not hold them all. allowed [A, K]: the tokens that each action was one of, -1 beyond
    their number (-1 alone: any token); None where all could be any. pictures: the spans of placeholders, start being
    flat positions; rotary_ids [3, B, T]: time, row and column of each token where there are some (`rotary_positions`).
    seen: what a model's tower says of the images (`models.vision`).
    """

    input_ids: Tensor
    position_ids: Tensor
    predictor_index: Tensor
    action_ids: Tensor
    temperatures: Tensor
    branches: tuple[Branch, ...] | None = None
    action_index: Tensor | None = None
    allowed: Tensor | None = None
    pictures: Pictures = ()
    rotary_ids: Tensor | None = None
    seen: Seen | None = None

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
        rotary = None if self.rotary_ids is None else self.rotary_ids.new_zeros(3, *input_ids.shape)
        pictures: list[Picture] = []
        for row, (start, stop, context) in enumerate(self.branches):
            spans = (*context, (start, stop))
            columns = torch.cat([torch.arange(*span) for span in spans]).to(ids.device)
            input_ids[row, : len(columns)] = ids[columns]
            if rotary is not None and self.rotary_ids is not None:
                rotary[:, row, : len(columns)] = self.rotary_ids[:, 0, columns]
                pictures += _placed(self.pictures, spans, row * width)
        owner = torch.arange(len(self.branches), device=ids.device).repeat_interleave(sizes)
        moved = owner * width + self.position_ids[0]
        return replace(
            self,
            input_ids=input_ids,
            position_ids=torch.arange(width, device=ids.device).expand_as(input_ids),
            predictor_index=moved[self.predictor_index],
            action_index=None if self.action_index is None else moved[self.action_index],
            branches=None,
            pictures=tuple(pictures),
            rotary_ids=rotary,
        )


def _placed(pictures: Sequence[Picture], spans: Sequence[tuple[int, int]], first: int) -> Pictures:
    """The pictures within spans of columns that stand behind each other from column `first` on."""
    found: list[Picture] = []
    for start, stop in spans:
        found += [one._replace(start=first + one.start - start) for one in pictures if start <= one.start < stop]
        first += stop - start
    return tuple(found)
