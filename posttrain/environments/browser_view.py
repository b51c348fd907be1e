"""An accessibility tree as text for the policy, and what each of its lines says."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

View = Literal["tree", "compact", "screenshot", "tree+screenshot", "compact+screenshot"]
"""What of a page the policy is given: its tree in full or in short lines, a picture of it, or both."""

_LINE = re.compile(r"(?:\[(?P<id>\w+)\] )?(?P<role>\w+)(?: (?P<name>'.*?'|\".*?\"))?(?P<rest>(?: value=|, ).*)?")
_CONTAINERS = frozenset({"LabelText", "MenuListPopup", "dialog", "generic", "group", "list", "listitem", "paragraph"})
_CONTAINERS |= {"RootWebArea", "row", "table", "tablist", "tabpanel"}
_SHOWN = (("checked='true'", "checked"), ("selected=True", "selected"), ("focused", "focused"))


@dataclass(frozen=True)
class Element:
    """A line of the tree. id: what actions call it, "" where it has none; value: what a field holds, None without."""

    id: str
    role: str
    name: str
    value: str | None = None
    states: tuple[str, ...] = ()


def tree_text(tree: Mapping[str, Any]) -> str:
    """BrowserGym's text of a tree, a line a node, without what depends on the machine or says nothing new."""
    from browsergym.utils.obs import IGNORED_AXTREE_PROPERTIES, IGNORED_AXTREE_ROLES, flatten_axtree_to_str  # type: ignore[import-untyped]

    text: str = flatten_axtree_to_str(
        tree,
        ignored_roles=[*IGNORED_AXTREE_ROLES, "InlineTextBox"],
        ignored_properties=[*IGNORED_AXTREE_PROPERTIES, "url"],
    )
    return text


def elements(text: str) -> list[Element]:
    """What the lines of `tree_text` say, in order."""
    return [_element(line.strip()) for line in text.splitlines() if line.strip()]


def compact_text(found: Sequence[Element]) -> str:
    """Short lines for small models: `[13] button "ONE"`, `[14] textbox "" = "typed", focused`, `text "Username"`.

    Quoted as goals quote, so that a name reads the same in both. Left out: containers, text that names or fills the
    element before it, and states that say that nothing was done.
    """
    lines: list[str] = []
    before: tuple[str | None, ...] = ()
    for one in found:
        if one.role in _CONTAINERS or (one.role == "StaticText" and one.name in ("", *before)):
            continue
        before = one.name, one.value
        head = f'text "{one.name}"' if one.role == "StaticText" else f'[{one.id}] {one.role} "{one.name}"'
        value = "" if not one.value else f' = "{one.value}"'
        lines.append(", ".join((head + value, *one.states)))
    return "\n".join(lines)


def _element(line: str) -> Element:
    match = _LINE.fullmatch(line)
    if match is None:
        return Element("", "StaticText", line)
    rest = match["rest"] or ""
    value = re.search(r"value=('.*?'|\".*?\")(?:, |$)", rest)
    states = tuple(shown for written, shown in _SHOWN if f", {written}" in rest)
    return Element(
        match["id"] or "", match["role"], _unquoted(match["name"]), _unquoted(value[1]) if value else None, states
    )


def _unquoted(text: str | None) -> str:
    return "" if text is None else text[1:-1]
