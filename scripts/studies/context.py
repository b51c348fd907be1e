"""Where a seed's files and models are kept: made when first asked for, and named by what made them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Made(Protocol):
    """Something in a recipe that is made first, and stands there as a path."""

    def path(self, context: Context) -> str:
        """Where it lies, made where it is missing."""
        ...


@dataclass(frozen=True)
class Context:
    """One seed, and the folder of everything that is made for it."""

    folder: Path
    seed: int

    def file(self, key: object, suffix: str, write: Callable[[Path], None]) -> str:
        """The file (or, without a suffix, the directory) of `key`; whoever finishes first leaves it there."""
        digest = hashlib.blake2b(json.dumps(key, sort_keys=True, default=str).encode(), digest_size=6).hexdigest()
        path = self.folder / f"seed{self.seed}" / (f"{digest}.{suffix}" if suffix else digest)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f"{os.getpid()}-{path.name}")
            write(partial)
            with contextlib.suppress(OSError):
                partial.rename(path)
            if partial.is_dir():  # another process was faster
                shutil.rmtree(partial)
        return str(path)

    def text(self, key: object, suffix: str, text: str) -> str:
        """The file of `key` that holds `text`."""

        def write(path: Path) -> None:
            path.write_text(text)

        return self.file(key, suffix, write)

    def resolve(self, tree: Any) -> Any:
        """The tree with every `Made` in it replaced by its path."""
        if isinstance(tree, dict):
            return {key: self.resolve(value) for key, value in tree.items()}
        if isinstance(tree, list | tuple):
            return [self.resolve(value) for value in tree]
        return tree.path(self) if hasattr(tree, "path") and not isinstance(tree, Path) else tree


def merge(*trees: dict[str, Any]) -> dict[str, Any]:
    """The trees one over the other; None removes what is below it."""
    merged: dict[str, Any] = {}
    for tree in trees:
        for key, value in tree.items():
            if isinstance(value, dict) and isinstance(merged.get(key), dict) and "name" not in value:
                merged[key] = merge(merged[key], value)
            elif value is None:
                merged.pop(key, None)
            else:
                merged[key] = value
    return merged
