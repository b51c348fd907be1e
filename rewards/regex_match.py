"""Does the completion match a regular expression?"""

from __future__ import annotations

import re

from posttrain.errors import RecipeError


def regex_match(completion: str, pattern: str = "", *, expression: str = r"(?s).*\S.*", whole: bool = True) -> float:
    """1.0 where the completion matches, else 0.0.

    pattern: the row's column of that name where it has one, else the setting `expression`. whole: the match must cover
    the completion without white space around it. A pattern that takes for ever ends at the worker's deadline.
    RecipeError for one that is not valid.
    """
    try:
        compiled = re.compile(pattern or expression)
    except re.error as error:
        raise RecipeError(
            f"regex_match: {pattern or expression!r:.100} is not a regular expression: {error}"
        ) from error
    text = completion.strip()
    return float((compiled.fullmatch(text) if whole else compiled.search(text)) is not None)
