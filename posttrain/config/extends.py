"""`extends: NAME`: a recipe written on top of another.

Mappings merge key by key, whatever their depth; everything else (numbers, text, lists, and a section in its short form)
replaces what the base has. Null takes the base's value away, so that the default holds. A section that names a part
(`algorithm: {name: ..., settings}`) is replaced as a whole where the name is another, as the settings belong to the
part. Every value keeps the file and line where it is written.
"""

from __future__ import annotations

from pathlib import Path

from posttrain import catalog
from posttrain.config.overrides import NAMED, expand
from posttrain.config.tree import Node, parse
from posttrain.errors import RecipeError, UserError

EXTENDS = "extends"


def read_recipe(path: Path) -> Node:
    """The tree of a recipe's file, short forms written out, merged over the recipes that it extends.

    RecipeError: a file that cannot be read or holds no mapping, a base that is not there, a circle.
    """
    return _read(path, ())


def _read(path: Path, below: tuple[Path, ...]) -> Node:
    """As `read_recipe`; `below` are the files that led here, the recipe's own first."""
    written = _parse(path)
    base = written.get(EXTENDS)
    if base is None:
        return expand(written)
    own = Node({key: node for key, node in written.items() if key != EXTENDS}, written.where)
    file = _find(base, path)
    way = (*below, path)
    if any(file.resolve() == other.resolve() for other in way):
        raise RecipeError(f"{base.where}: extends: a circle: {' -> '.join(str(one) for one in (*way, file))}")
    return merge(_read(file, way), own)


def _parse(path: Path) -> Node:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read: {error}") from error
    written = parse(text, str(path))
    if not isinstance(written.value, dict):
        found = "is empty" if written.value is None else "holds no mapping"
        raise RecipeError(f"{path}: {found}; allowed: sections such as model, algorithm, training")
    return written


def _find(base: Node, path: Path) -> Path:
    """The base's file: a name of the catalogue, or a path to a YAML file from the folder of the recipe at `path`."""
    if not isinstance(base.value, str):
        allowed = "allowed: one recipe, by name or path (that one may extend another)"
        raise RecipeError(f"{base.where}: extends: {catalog.show(base.plain)} is not allowed; {allowed}")
    beside = path.parent / Path(base.value).expanduser()
    try:
        return beside if beside.suffix in (".yaml", ".yml") and beside.is_file() else catalog.recipe_path(base.value)
    except UserError as error:
        raise RecipeError(f"{base.where}: extends: {error}") from error


def merge(base: Node, own: Node) -> Node:
    """`own`, as it is written, on top of `base`, whose short forms are written out."""
    sections = dict(base.items())
    for key, node in expand(own).items():
        written = own.get(key)
        short = written is None or not isinstance(written.value, dict)
        sections = _put(sections, key, node, whole=short or (key in NAMED and _renamed(sections.get(key), node)))
    return Node(sections, own.where)


def _put(mapping: dict[str, Node], key: str, node: Node, *, whole: bool = False) -> dict[str, Node]:
    """`mapping` with `node` at `key`: merged where both are mappings and not `whole`."""
    old = mapping.get(key)
    if node.value is None and old is not None:
        return {name: value for name, value in mapping.items() if name != key}
    if whole or old is None or not isinstance(old.value, dict) or not isinstance(node.value, dict):
        return mapping | {key: node}
    merged = dict(old.value)
    for name, inner in node.value.items():
        merged = _put(merged, name, inner)
    return mapping | {key: Node(merged, node.where)}


def _renamed(old: Node | None, new: Node) -> bool:
    """Whether `new` names another part than `old`."""
    names = [node.get("name") if node is not None else None for node in (old, new)]
    return names[1] is not None and (names[0] is None or names[0].plain != names[1].plain)
