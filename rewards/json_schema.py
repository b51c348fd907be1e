"""Is the completion JSON, and does it fit a schema?"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from posttrain.errors import RecipeError
from posttrain.reward import Graded

_FENCED = re.compile(r"```(?:json)?\s*\n(.*?)\n\s*```", re.DOTALL)


def json_schema(
    completion: str, schema: Mapping[str, Any] | str | None = None, *, required: Mapping[str, Any] | None = None
) -> float:
    """1.0 where the completion is one JSON value that is valid under the schema, else 0.0.

    The value is the completion, or the text of its last ``` fence; a thought up to "</think>" is not looked at. schema:
    the row's column of that name (an object or its JSON text) where it has one, else the setting `required`, else any
    JSON value will do. References to other documents are not followed. RecipeError for a schema that is not valid.
    """
    from jsonschema import Draft202012Validator
    from jsonschema.exceptions import SchemaError
    from referencing import Registry
    from referencing.exceptions import Unresolvable

    wanted = json.loads(schema) if isinstance(schema, str) else (schema if schema is not None else required or {})
    try:
        Draft202012Validator.check_schema(wanted)
    except SchemaError as error:
        raise RecipeError(f"json_schema: the schema is not valid: {error.message:.200}") from error
    text = completion.rpartition("</think>")[2].strip()
    fenced = _FENCED.findall(text)
    try:
        value = json.loads(fenced[-1] if fenced else text)
        valid = Draft202012Validator(wanted, registry=Registry()).is_valid(value)
    except (ValueError, RecursionError):
        return Graded(0.0, None)
    except Unresolvable as error:
        raise RecipeError(f"json_schema: the schema refers to another document: {error}") from error
    return Graded(valid, text)
