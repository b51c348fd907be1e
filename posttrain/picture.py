"""Pictures among tokens: where they stand, what tells them apart, and the positions that tokens have beside them.

An image takes a span of placeholder tokens, one for each cell of the grid that the model sees it in. A span is whole:
nothing cuts it, and none of its tokens is ever an action.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple


class Picture(NamedTuple):
    """`height` * `width` placeholders from position `start` on, row by row; image: a data URI."""

    start: int
    height: int
    width: int
    image: str

    @property
    def num_tokens(self) -> int:
        """Length of the span."""
        return self.height * self.width

    @property
    def stop(self) -> int:
        """The position after its last placeholder."""
        return self.start + self.height * self.width


Pictures = tuple[Picture, ...]


class Context(NamedTuple):
    """What the policy reads: tokens, and the pictures among them in the order of their positions."""

    token_ids: tuple[int, ...]
    pictures: Pictures = ()


def moved(pictures: Sequence[Picture], by: int) -> Pictures:
    """The same pictures `by` positions further on."""
    return tuple(one._replace(start=one.start + by) for one in pictures)


def pictures_before(pictures: Sequence[Picture], stop: int) -> Pictures:
    """Those that end by position `stop`."""
    return tuple(one for one in pictures if one.stop <= stop)


def whole_until(pictures: Sequence[Picture], limit: int) -> int:
    """The longest beginning of at most `limit` tokens that cuts no picture."""
    return next((one.start for one in pictures if one.start < limit < one.stop), limit)


def marked(token_ids: tuple[int, ...], pictures: Sequence[Picture]) -> tuple[int, ...]:
    """The tokens with a number below 0 in place of placeholders, the same where the image is: what can be compared."""
    if not pictures:
        return token_ids
    found = list(token_ids)
    for one in pictures:
        found[one.start : one.stop] = [-1 - mark(one.image)] * (min(one.stop, len(found)) - one.start)
    return tuple(found)


def mark(image: str) -> int:
    """A number of 62 bits that tells images apart."""
    return int.from_bytes(hashlib.blake2b(image.encode(), digest_size=8).digest(), "big") >> 2


def shift(pictures: Sequence[Picture]) -> int:
    """By how much the position of the next token differs from the number of tokens: a picture advances by its longer
    side (multimodal rotary positions, arXiv 2409.12191, sec. 2.1)."""
    return sum(max(one.height, one.width) - one.num_tokens for one in pictures)


def images_of(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    """The images of a conversation, in order: the parts {"type": "image_url", "image_url": {"url": ...}} of contents.

    {"type": "image", "image": ...} is the same.
    """
    contents = [message.get("content") for message in messages]
    parts = [part for content in contents if isinstance(content, list | tuple) for part in content]
    return [image for part in parts if (image := _image(part)) is not None]


def in_words(content: Any) -> str:
    """A message's content for people: the text, with [image] for each image."""
    if isinstance(content, str) or content is None:
        return content or ""
    if not isinstance(content, list | tuple):
        return str(content)
    return "\n".join("[image]" if _image(part) is not None else _words(part) for part in content)


def _words(part: Any) -> str:
    return str(part.get("text", "")) if isinstance(part, Mapping) else str(part)


def _image(part: Any) -> str | None:
    """The image of one part of a content; None where it is of another kind."""
    if not isinstance(part, Mapping):
        return None
    found = part.get("image_url", part.get("image"))
    if isinstance(found, Mapping):
        found = found.get("url")
    return None if found is None else str(found)
