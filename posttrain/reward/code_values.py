"""Plain Python values as JSON and back, exactly: numbers, text, bytes, None, and containers of these."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_SCALARS: dict[type, tuple[str, Callable[[Any], Any], Callable[[Any], Any]]] = {
    int: ("int", lambda value: hex(int(value)), lambda held: int(held, 16)),
    float: ("float", lambda value: float(value).hex(), float.fromhex),
    complex: (
        "complex",
        lambda value: [value.real.hex(), value.imag.hex()],
        lambda held: complex(*map(float.fromhex, held)),
    ),
    bytes: ("bytes", lambda value: bytes(value).hex(), bytes.fromhex),
    bytearray: ("bytearray", lambda value: bytes(value).hex(), bytearray.fromhex),
}
_CONTAINERS: dict[type, str] = {list: "list", tuple: "tuple", set: "set", frozenset: "frozenset"}


def encode(value: Any) -> Any:
    """The value as JSON; subclasses become their plain type. TypeError for any other object."""
    if value is None or type(value) is bool:
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, dict):
        return {"dict": [[encode(key), encode(item)] for key, item in dict.items(value)]}
    for kind, (name, write, _) in _SCALARS.items():
        if isinstance(value, kind):
            return {name: write(value)}
    for kind, name in _CONTAINERS.items():
        if isinstance(value, kind):
            return {name: [encode(item) for item in kind.__iter__(value)]}  # type: ignore[attr-defined]
    raise TypeError(f"a {type(value).__name__} cannot leave the sandbox")


def decode(value: Any) -> Any:
    """The value of its JSON."""
    if not isinstance(value, dict):
        return value
    ((name, held),) = value.items()
    if name == "dict":
        return {decode(key): decode(item) for key, item in held}
    readers = {known: read for known, _, read in _SCALARS.values()}
    if name in readers:
        return readers[name](held)
    kinds: dict[str, Any] = {known: kind for kind, known in _CONTAINERS.items()}
    return kinds[name](decode(item) for item in held)
