"""Is the completion nothing but its tagged parts, in order: <think>...</think><answer>...</answer>?"""

from __future__ import annotations

import re
from collections.abc import Sequence


def format_tags(completion: str, *, tags: Sequence[str] = ("think", "answer")) -> float:
    """1.0 where the completion is every tag once, in this order, around some text, with only white space between."""
    names = [re.escape(tag) for tag in tags]
    parts = r"\s*".join(rf"<{name}>(.*?)</{name}>" for name in names)
    match = re.fullmatch(rf"\s*{parts}\s*", completion, re.DOTALL)
    once = all(completion.count(f"<{tag}>") == 1 and completion.count(f"</{tag}>") == 1 for tag in tags)
    return float(match is not None and once and all(part.strip() for part in match.groups()))
