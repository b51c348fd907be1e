"""Comparisons with peers. Each is a test and a row of posttrain/algorithms/parity.json, which scripts/parity writes."""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import Distribution, version
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

PUBLISHED = Path(__file__).parents[2] / "posttrain" / "algorithms" / "parity.json"
ORACLES = Path(sys.prefix) / "oracles"
LARGEST = 1e-6
STUBBED = {"ray", "tensordict", "omegaconf", "codetiming", "hydra", "torchdata", "orjson"}
"""What verl imports and its pure functions do not use: empty modules where it is not installed."""


def largest_difference(ours: Tensor, theirs: Tensor) -> float:
    """max |ours - theirs| / max |theirs|; AssertionError where theirs is 0 everywhere, as that compares nothing."""
    assert ours.shape == theirs.shape
    assert theirs.abs().max() > 0
    return float((ours - theirs).abs().max() / theirs.abs().max())


@dataclass
class Parity:
    """What was compared so far: (algorithm, peer, what) -> the largest relative difference."""

    writing: bool
    found: dict[tuple[str, str, str], float] = field(default_factory=dict)

    def __call__(self, algorithm: str, peer: str, what: str, ours: Tensor, theirs: Tensor) -> None:
        """One comparison; several of one key, as of several seeds, are one row."""
        key, difference = (algorithm, peer, what), largest_difference(ours, theirs)
        self.found[key] = max(difference, self.found.get(key, 0.0))
        assert difference <= LARGEST, f"{algorithm}, {what}: {difference:.1e} from {peer}; allowed: {LARGEST:g}"
        assert self.writing or key in published(), f"{PUBLISHED.name} lacks {key}; run scripts/parity"

    def gradients(
        self,
        algorithm: Any,
        peer: str,
        what: str,
        world: Any,
        theirs: Callable[[Tensor], Tensor],
        batch: Callable[[Tensor], Any] | None = None,
    ) -> None:
        """The gradients with respect to the logprobs of `world`, in float32; theirs: the peer's loss of them."""
        flat = torch.cat(world.logprobs()).detach().float().requires_grad_()
        losses = algorithm((batch or world.batch)(flat)).loss, theirs(flat)
        self(algorithm.name, peer, what, *(torch.autograd.grad(loss, flat)[0] for loss in losses))

    def write(self) -> None:
        """The rows, sorted, to the published file."""
        rows = [
            {"algorithm": name, "peer": peer, "version": peer_version(peer), "what": what}
            | {"largest_difference": float(f"{difference:.1e}")}
            for (name, peer, what), difference in sorted(self.found.items())
        ]
        PUBLISHED.write_text("[\n  " + ",\n  ".join(json.dumps(row) for row in rows) + "\n]\n")


def published() -> dict[tuple[str, str, str], float]:
    """What the published file says."""
    rows = json.loads(PUBLISHED.read_text()) if PUBLISHED.is_file() else []
    return {(row["algorithm"], row["peer"], row["what"]): row["largest_difference"] for row in rows}


def peer_version(peer: str) -> str:
    """The installed version of trl or verl."""
    if peer != "verl":
        return version(peer)
    (found,) = Distribution.discover(name="verl", path=[str(ORACLES)])
    return found.version


def load_verl(name: str) -> ModuleType:
    """A module of verl, which lies beside the environment, without its dependencies; AssertionError where missing."""
    assert (ORACLES / "verl").is_dir(), f"verl is not in {ORACLES}; run scripts/setup dev"
    with _stubs():
        return importlib.import_module(name)


class _Stub(ModuleType):
    """Any attribute is an empty class, any submodule another stub."""

    __path__: ClassVar[list[str]] = []

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        known = name.partition(".")[0] in STUBBED
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if known else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Stub(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextmanager
def _stubs() -> Iterator[None]:
    """verl and stubs of its dependencies are importable; afterwards only what was imported is left."""
    finder, handlers = _Stubs(), logging.root.handlers[:]
    sys.meta_path.append(finder)
    sys.path.append(str(ORACLES))
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(str(ORACLES))
        logging.root.handlers[:] = handlers
        for name in [name for name, module in sys.modules.items() if isinstance(module, _Stub)]:
            del sys.modules[name]
