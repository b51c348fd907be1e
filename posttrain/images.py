"""What turns the images of messages into what a model takes: spans of placeholders, and the pixels behind them.

The image processor of the model (transformers', on Pillow: no torchvision), for architectures that see an image as a
grid of patches, `merge_size` x `merge_size` of them a token: Qwen2-VL, Qwen2.5-VL, Qwen3-VL. Images travel as they are
in messages, as data URIs; pixels are made where a model is about to read them. Not covered: videos.
"""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from posttrain.errors import DataError
from posttrain.picture import Context, Picture, mark

if TYPE_CHECKING:
    from torch import Tensor

_KEPT = 64
"""Images whose pixels are kept: those of a few steps of an episode, read by sampler and trainer."""


@dataclass(frozen=True, eq=False)
class Images:
    """The image processor of a model, and the token that stands for a cell of an image.

    tokenizer: what it goes with. files: the processor's own, name -> text, which are written beside saved weights.
    """

    processor: Any
    placeholder: int
    token: str
    tokenizer: Any
    files: Mapping[str, str] = field(default_factory=dict)
    _grids: dict[int, tuple[int, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "pixels", lru_cache(maxsize=_KEPT)(self.pixels))

    def __deepcopy__(self, memo: dict[int, Any]) -> Images:
        """Itself: a model's copies read images as it does."""
        return self

    def pixels(self, image: str) -> tuple[Tensor, Tensor]:
        """The patches of an image [patches, values], and their grid [3] (time, height, width).

        DataError where it is no data URI of an image, or one that the processor refuses.
        """
        import torch

        picture = opened(image)
        try:
            found = self.processor(images=[picture], return_tensors="pt")
        except ValueError as error:
            raise DataError(f"an image of {picture.width} x {picture.height} pixels cannot be read: {error}") from error
        pixels: Tensor = found["pixel_values"]
        return pixels, torch.as_tensor(found["image_grid_thw"][0])

    def grid(self, image: str) -> tuple[int, int]:
        """The height and width of an image in tokens; DataError as `pixels`."""
        key = mark(image)
        if key not in self._grids:
            _, height, width = self.pixels(image)[1].tolist()
            merge = self.processor.merge_size
            self._grids[key] = height // merge, width // merge
        return self._grids[key]

    def resized(self, image: str) -> Any:
        """A `PIL.Image` of the size that the model sees it in, which any backend of the processor leaves as it is."""
        _, height, width = self.pixels(image)[1].tolist()
        size = self.processor.patch_size
        return opened(image).resize((width * size, height * size), resample=self.processor.resample)

    def place(self, token_ids: Sequence[int], images: Sequence[str]) -> Context:
        """Tokens of a rendered text, where one placeholder stands for each image, with a span for each.

        DataError where there are not as many placeholders as images.
        """
        found = sum(token == self.placeholder for token in token_ids)
        if found != len(images):
            raise DataError(
                f"a conversation has {len(images)} images, its text as the chat template writes it {found} of "
                f"{self.token}; allowed: one for each image, and none in texts"
            )
        given = iter(images)
        ids: list[int] = []
        pictures = []
        for token in token_ids:
            number = 1
            if token == self.placeholder:
                image = next(given)
                pictures.append(Picture(len(ids), *self.grid(image), image))
                number = pictures[-1].num_tokens
            ids += [token] * number
        return Context(tuple(ids), tuple(pictures))

    def save(self, directory: Path) -> None:
        """Write the processor's files."""
        for name, text in self.files.items():
            (directory / name).write_text(text, encoding="utf-8")
        if not self.files:
            self.processor.save_pretrained(directory)


def opened(image: str) -> Any:
    """A data URI as a `PIL.Image`, in RGB; DataError where it is not one of an image."""
    from PIL import Image, UnidentifiedImageError

    head, _, data = image.partition(",")
    if not (head.startswith("data:image/") and head.endswith(";base64")):
        raise DataError(f"an image in a message is {image[:40]!r}; allowed: a data URI, data:image/png;base64,...")
    try:
        return Image.open(io.BytesIO(base64.b64decode(data, validate=True))).convert("RGB")
    except (binascii.Error, UnidentifiedImageError, OSError) as error:
        raise DataError(f"an image in a message ({image[:40]}...) cannot be read: {error}") from error


def png(picture: Any) -> str:
    """A `PIL.Image` as a data URI."""
    written = io.BytesIO()
    picture.save(written, format="PNG")
    return "data:image/png;base64," + base64.b64encode(written.getvalue()).decode()


def place(token_ids: tuple[int, ...], images: Sequence[str], tokenizer: Any) -> Context:
    """The tokens with a span for each image; DataError where `tokenizer` goes with a model that reads no images."""
    if not images:
        return Context(token_ids)
    reader = getattr(tokenizer, "images", None)
    if reader is None:
        raise DataError(
            "a conversation has an image, and the model reads text alone; allowed: an image-text-to-text model, such "
            "as Qwen/Qwen3-VL-2B-Instruct, or observations without images"
        )
    context: Context = reader.place(token_ids, images)
    return context
