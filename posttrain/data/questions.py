"""The question that a judge is asked about two answers."""

from __future__ import annotations

from posttrain.picture import in_words
from posttrain.trajectory import Prompt


def question(template: str, prompt: Prompt, first: str, second: str) -> Prompt:
    """A format string of {prompt}, {first} and {second}, filled: plain text about plain text.

    About a conversation it is a user's message.
    """
    if isinstance(prompt, str):
        return template.format(prompt=prompt, first=first, second=second)
    alone = len(prompt) == 1
    said = "\n\n".join(
        in_words(m["content"]) if alone else f"{m['role']}: {in_words(m.get('content'))}" for m in prompt
    )
    return ({"role": "user", "content": template.format(prompt=said, first=first, second=second)},)
