"""The signature is the schema: settings are the keyword-only parameters of the part's function or class.

`**name: Unpack[SomeTypedDict]` stands for settings that several parts share; one that is not given is not
passed. Any other `**name` takes no settings.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

from posttrain.catalog.lookup import find, requirements_of
from posttrain.catalog.mistakes import Mistake, from_validation, show, unknown_key
from posttrain.catalog.paths import NOUNS
from posttrain.errors import RecipeError

SPELLINGS = {"as": "preset"}
"""Settings that may be written in another word, which Python keeps for itself."""


def check(kind: str, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """`settings` with their types checked and the signature's defaults filled in.

    RecipeError: an unknown or missing setting or a wrong type, all of them in one message. UnknownNameError,
    MissingDependencyError: as `find`.
    """
    checked, mistakes = validate(kind, name, settings)
    if mistakes:
        raise RecipeError("\n".join(f"{NOUNS[kind]} {name!r}: {mistake}" for mistake in mistakes))
    return checked


def build(kind: str, name: str, settings: Mapping[str, Any]) -> Any:
    """The member called with its checked settings; errors as `check`, and the member's own ValueError."""
    checked = check(kind, name, settings)
    with requirements_of(f"{NOUNS[kind]} {name!r}"):
        return find(kind, name)(**checked)


def validate(kind: str, name: str, settings: Mapping[str, Any]) -> tuple[dict[str, Any], list[Mistake]]:
    """The checked settings, and every mistake with the path below the part; errors as `find`."""
    return validate_call(find(kind, name), settings, f"{NOUNS[kind]} {name!r}")


def validate_call(
    part: Any, settings: Mapping[str, Any], described: str, *, keyword_only: bool = True
) -> tuple[dict[str, Any], list[Mistake]]:
    """As `validate`, for the function or class `part` itself; without `keyword_only`, any parameter is a setting."""
    signature = inspect.signature(part)
    parameters = {p.name: p for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY or not keyword_only}
    further = next((p for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    shared = {} if further is None else _shared(part, further)
    hints = _hints(part, parameters) | shared
    defaults = {key: p.default for key, p in parameters.items() if p.default is not p.empty and _is_plain(p.default)}
    checked = {key: _as_read(key, value, hints.get(key, Any)) for key, value in defaults.items()}
    mistakes = []
    for key, value in settings.items():
        own = SPELLINGS.get(key, key)
        if own in [*parameters, *shared] and (own == key or own not in settings):
            checked[own], wrong = _check_value(key, value, hints.get(own, Any))
            mistakes += wrong
        else:
            mistakes.append(Mistake((key,), unknown_key(key, value, [*parameters, *shared])))
    for key, parameter in parameters.items():
        if parameter.default is parameter.empty and key not in settings:
            mistakes.append(Mistake((key,), f"missing: {described} has no default for it"))
    return checked, mistakes


def _shared(part: Any, further: inspect.Parameter) -> dict[str, Any]:
    """The settings, and their types, of the TypedDict that `further` unpacks; none where it takes anything."""
    if further.annotation is further.empty:
        return {}
    unpacked = get_args(_hints(part, {further.name: further})[further.name])
    return get_type_hints(unpacked[0], include_extras=True) if unpacked else {}


def _hints(part: Any, parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """The resolved annotations of `parameters` alone: those of the others may name what only type checkers import."""
    annotations = {key: p.annotation for key, p in parameters.items() if p.annotation is not p.empty}
    names = vars(sys.modules[part.__module__])
    return get_type_hints(SimpleNamespace(__annotations__=annotations), globalns=names, include_extras=True)


def _check_value(key: str, value: Any, hint: Any) -> tuple[Any, list[Mistake]]:
    """The value as the hint's type: strictly, as JSON has types (text is no number, a list may be a tuple).

    Without pydantic, as where the estimator is a library beside torch alone, a value is taken as it is.
    """
    try:
        from pydantic import PydanticSchemaGenerationError, TypeAdapter, ValidationError
        from pydantic_core import to_json
    except ImportError:
        return value, []
    try:
        adapter = TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return value, [Mistake((key,), f"{show(value)} is not allowed; a recipe cannot hold a {hint}")]
    try:
        return adapter.validate_json(to_json(value), strict=True), []
    except ValidationError as error:
        return value, from_validation(error, lambda path, _: f"unknown key {path[-1]!r}", within=(key,), unions=True)


def _as_read(key: str, default: Any, hint: Any) -> Any:
    """A default as the same value in a recipe is read: a tuple is a list, unless its type says tuple."""
    return _check_value(key, default, hint)[0] if isinstance(default, tuple) else default


def _is_plain(value: Any) -> bool:
    """Whether a recipe can hold the value."""
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or type(value) in (bool, int, float, str)
