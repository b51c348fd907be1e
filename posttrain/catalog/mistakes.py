"""What is wrong with a value, in words: the errors of pydantic as sentences of ours."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from posttrain.errors import RecipeError, did_you_mean

if TYPE_CHECKING:
    from pydantic import ValidationError

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """A field, as the keys and indices that lead to it, and what is wrong with it."""

    path: Path
    text: str

    @property
    def field(self) -> str:
        """The dotted path."""
        return ".".join(str(key) for key in self.path)

    def __str__(self) -> str:
        return f"{self.field}: {self.text}"


class SettingsError(RecipeError):
    """A part's settings cannot be used as written; `found` are the mistakes, with paths below the part."""

    def __init__(self, found: Iterable[Mistake]) -> None:
        self.found = list(found)
        super().__init__("\n".join(map(str, self.found)))


def show(value: Any) -> str:
    """A value as a recipe would write it, cut at 60 characters."""
    words = {True: "true", False: "false", None: "null"}
    text = words[value] if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def unknown_key(key: str, value: Any, allowed: Iterable[str]) -> str:
    """The sentence about a key that nothing reads."""
    return f"unknown key (set to {show(value)}); {did_you_mean(key, allowed)}"


def from_validation(
    error: ValidationError, unknown: Callable[[Path, Any], str], *, within: Path = (), unions: bool = False
) -> list[Mistake]:
    """One mistake per field of a ValidationError, under the path `within`.

    unknown: makes the sentence about an unknown key from its path and value. unions: the error is about one value
    whose alternatives all failed; what each allows is joined.
    """
    options: dict[Path, list[str]] = {}
    found: dict[Path, Mistake] = {}
    for item in error.errors(include_url=False):
        path: Path = within if unions else within + item["loc"]
        if item["type"] == "extra_forbidden":
            found[path] = Mistake(path, unknown(path, item["input"]))
        elif item["type"] == "missing" and isinstance(item["input"], list | tuple):
            whole, length = within + item["loc"][:-1], int(item["loc"][-1]) + 1
            found[whole] = Mistake(whole, f"{show(item['input'])} is not allowed; allowed: a list of {length}")
        elif item["type"] == "missing":
            found[path] = Mistake(path, "missing: it has no default")
        else:
            options.setdefault(path, []).append(_allowed(item))
            found[path] = Mistake(path, _not_allowed(item["input"], options[path]))
    return list(found.values())


def _not_allowed(value: Any, options: list[str]) -> str:
    words = {"yes": "true", "on": "true", "no": "false", "off": "false"}
    if "true or false" in options and str(value).lower() in words:
        return f"{show(value)} is not allowed; did you mean {words[str(value).lower()]}? allowed: true or false"
    literals = re.findall(r"'([^']*)'", " ".join(options)) if isinstance(value, str) else []
    if literals:
        return f"{show(value)} is not allowed; {did_you_mean(value, literals)}"
    return f"{show(value)} is not allowed; allowed: {' or '.join(dict.fromkeys(options))}"


_TYPES = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping (key: value)",
    "model_type": "a mapping (key: value)",
    "greater_than": "above {gt:g}",
    "greater_than_equal": "at least {ge:g}",
    "less_than": "below {lt:g}",
    "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}",
    "too_short": "a list of {min_length} or more",
    "too_long": "a list of {max_length}",
}


def _allowed(item: Any) -> str:
    """What pydantic would have accepted instead."""
    template = _TYPES.get(item["type"])
    if template is None:
        return str(item["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return template.format(**item.get("ctx", {}))
