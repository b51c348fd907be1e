"""Files and directories that a recipe names and that are not there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from posttrain.catalog import Mistake
from posttrain.config.overrides import SOURCES
from posttrain.config.tree import Node
from posttrain.errors import did_you_mean

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def missing_files(tree: Node) -> Iterator[Mistake]:
    """Data files, model and tokenizer directories, chat templates; anything that reads as a hub id is left alone."""
    for section in SOURCES:
        sources = tree.get(section)
        for index, _ in enumerate(sources.value if sources and isinstance(sources.value, list) else []):
            allowed = "a file, a run's directory, or a hub id" if section == "trajectories" else "a file, or a hub id"
            yield from _missing(tree, (section, index, "path"), DATA_SUFFIXES, f"{allowed} (owner/name)")
    for section in ("model", "teacher", "critic", "tokenizer", "partner"):
        yield from _missing(tree, (section, "path"), (), "a directory, or a hub id (owner/name)")
    yield from _missing(tree, ("tokenizer", "corpus"), (".jsonl",), "a .jsonl file")
    template = tree.get("tokenizer", "chat_template")
    if template and isinstance(template.value, str) and not any(mark in template.value for mark in "{\n"):
        path = ("tokenizer", "chat_template")
        yield from _missing(tree, path, (template.value,), "a file, or the template itself (which contains '{')")


def looks_local(path: str, suffixes: tuple[str, ...] = DATA_SUFFIXES) -> bool:
    """Whether `path` can only be a local path: by its beginning, its suffix, or more slashes than a hub id has.

    So is what begins with `runs/`, where runs are written.
    """
    return path.startswith((".", "/", "~", "runs/")) or path.lower().endswith(suffixes) or path.count("/") > 1


def _missing(tree: Node, path: tuple[Any, ...], suffixes: tuple[str, ...], allowed: str) -> Iterator[Mistake]:
    node = tree.get(*path)
    if node is None or not isinstance(node.value, str) or not looks_local(node.value, suffixes):
        return
    file = Path(node.value).expanduser()
    if file.exists():
        return
    beside = sorted(item.name for item in file.parent.iterdir()) if file.parent.is_dir() else []
    near = did_you_mean(file.name, beside).partition("allowed: ")[0].strip()
    yield Mistake(path, f"{node.value!r} does not exist; {near + ' ' if near else ''}allowed: {allowed}")
