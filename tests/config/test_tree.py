"""YAML as recipes read it: 1.2's scalars, origins, no surprises."""

import math

import pytest

from posttrain.config.tree import parse
from posttrain.errors import RecipeError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("1.", 1.0), (".5", 0.5), ("-2.5e+3", -2500.0), ("16_384", 16384), ("010", 10),
        ("0x1f", 31), ("0o17", 15), ("-3", -3), ("true", True), ("False", False), ("yes", "yes"), ("on", "on"),
        ("no", "no"), ("off", "off"), ("y", "y"), ("null", None), ("~", None), ("", None), ("1:30", "1:30"),
        ("2024-01-01", "2024-01-01"), ("1.2.3", "1.2.3"), ("'1e-5'", "1e-5"), ("e5", "e5"), ("-.inf", -math.inf),
        ("!!str 5", "5"), ("!!float 5", 5.0), ("[1, [a]]", [1, ["a"]]), ("{1: x, true: y}", {"1": "x", "true": "y"}),
        ("&a [x]", ["x"]), ("{a: &x [1], b: *x}", {"a": [1], "b": [1]}), ("Qwen/Qwen2.5-Math-1.5B",) * 2,
    ],
)  # fmt: skip
def test_values(text, expected):
    value = parse(text, "f").plain
    assert value == expected
    assert type(value) is type(expected)


def test_nan():
    assert math.isnan(parse(".nan", "f").plain)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "f:3: a: written twice, first at f:1"),
        ("a: {b: 1, b: 2}", "f:1: b: written twice"),
        ("a: !!python/object/apply:os.system [true]", "f:1: tag 'tag:yaml.org,2002:python/object/apply:os.system'"),
        ("a: !mine x", "f:1: tag '!mine' is not allowed"),
        ("a: !!set {x}", "is not allowed"),
        ("a: !!int x", "f:1: 'x' is not a YAML int"),
        ("a: &x {k: 1}\nb:\n  <<: *x\n", "f:3: merge keys (<<) are not part of recipes"),
        ("? [a]\n: 1\n", "f:1: a key is a list or a mapping"),
        ("a: &x [*x]", "f:1: an alias (*name) that contains itself"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("a:\n\t- 1\n", "f:2: not valid YAML"),
        ("a: \x00", "f: not valid YAML"),
    ],
)
def test_what_recipes_do_not_have(text, expected):
    with pytest.raises(RecipeError) as error:
        parse(text, "f")
    assert expected in str(error.value)


def test_origins():
    tree = parse("a:\n  b: 1\n\nc:\n  - x\n  - y: 2\n", "f")
    assert tree.where_of(("a",)) == "f:1"
    assert tree.where_of(("a", "b")) == "f:2"
    assert tree.where_of(("a", "missing")) == "f:1"
    assert tree.where_of(("c", 1, "y")) == "f:6"
    assert tree.where_of(("c", 5)) == "f:4"
