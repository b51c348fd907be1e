"""Weights as files that other processes load: a directory a policy version, which is there whole or not at all.

A version is written under a hidden name, flushed to the disk and renamed. It holds safetensors files of at most a
gigabyte each (what is held in memory beside the model) and manifest.json with the SHA-256 of each; the SHA-256 of the
manifest is the version's digest. Who loads it verifies both before it changes anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from posttrain.durable import flush

MANIFEST = "manifest.json"
REFUSED = "weights refused:"
"""How the error of a reader begins that could not load a version."""

_FILE_BYTES = 1 << 30
_KEPT = 2  # the current version, and the one that a slow reader may still be reading


class BadWeightsError(ValueError):
    """Published weights that are not what was published: a file that is missing, cut short or changed."""


@dataclass(frozen=True)
class Published:
    """A version on disk. label: names it by number and by content; what a replica says that it runs."""

    version: int
    directory: Path
    digest: str

    @property
    def label(self) -> str:
        """As in `12-3f2a9c0d1e4b5a67`."""
        return f"{self.version}-{self.digest[:16]}"


class Publisher:
    """Writes versions into `directory`, in `dtype` where a weight is a float."""

    def __init__(self, directory: Path, dtype: torch.dtype) -> None:
        self.directory, self._dtype = directory, dtype
        directory.mkdir(parents=True, exist_ok=True)
        for left in directory.glob(".new*"):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)

    def publish(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Published:
        """Write `weights`, take the name, and remove all but the newest versions; OSError where the disk is full.

        All weights are taken even where writing fails: those of sharded models are gathered by every rank together.
        """
        taken = iter(weights)
        work = self.directory / f".new{version}.{os.getpid()}"
        try:
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            digests: dict[str, str] = {}
            for number, bucket in enumerate(_buckets(taken, self._dtype)):
                name = f"weights-{number:05}.safetensors"
                digests[name] = _write(work / name, _serialised(bucket))
            manifest = json.dumps({"version": version, "sha256": digests}, indent=1).encode()
            digest = _write(work / MANIFEST, manifest)
            published = Published(version, self.directory / f"v{version}-{digest[:16]}", digest)
            shutil.rmtree(published.directory, ignore_errors=True)
            flush(work)
            work.rename(published.directory)
            flush(self.directory)
        finally:
            for _ in taken:
                pass
            shutil.rmtree(work, ignore_errors=True)
        self._remove_old(published)
        return published

    def remove(self) -> None:
        """Remove all versions: nobody reads them any more."""
        for path in self.directory.glob("v*-*"):
            shutil.rmtree(path, ignore_errors=True)

    def _remove_old(self, newest: Published) -> None:
        found = [path for path in self.directory.glob("v*-*") if path != newest.directory]
        found.sort(key=lambda path: path.stat().st_mtime)
        for path in found[: len(found) - (_KEPT - 1)]:
            shutil.rmtree(path, ignore_errors=True)


def read_manifest(content: bytes, digest: str) -> dict[str, str]:
    """The SHA-256 of each file, from a manifest's bytes; BadWeightsError where its own is not `digest`."""
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise BadWeightsError(f"{MANIFEST} has SHA-256 {found}, published was {digest}")
    digests: dict[str, str] = json.loads(content)["sha256"]
    return digests


def verified_files(directory: Path, digest: str) -> list[Path]:
    """The weight files of a published version, every byte checked; BadWeightsError where one is not as published.

    Messages name files without their directory: vLLM's server strikes paths out of what it answers.
    """
    try:
        digests = read_manifest((directory / MANIFEST).read_bytes(), digest)
        for name, expected in digests.items():
            with (directory / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != expected:
                size = (directory / name).stat().st_size
                raise BadWeightsError(f"{name} ({size} bytes) has SHA-256 {found}, published was {expected}")
    except OSError as error:
        raise BadWeightsError(f"{Path(error.filename or directory).name}: {error.strerror or error}") from error
    return [directory / name for name in digests]


def read_weights(files: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of weight files, one at a time."""
    from safetensors import safe_open

    for path in files:
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                yield name, file.get_tensor(name)


@contextmanager
def at_hand(place: str, digest: str, seconds: float) -> Iterator[Path]:
    """The directory of a version that is at `place`: a directory, or a URL that is downloaded for the time being."""
    if not place.startswith(("http://", "https://")):
        yield Path(place)
        return
    from tempfile import TemporaryDirectory
    from urllib.request import urlopen

    with TemporaryDirectory(prefix="posttrain-weights-") as work:
        names = [MANIFEST]
        for name in names:
            with urlopen(f"{place}/{name}", timeout=seconds) as source, (Path(work) / name).open("wb") as file:
                shutil.copyfileobj(source, file)
            if name == MANIFEST:
                names += read_manifest((Path(work) / name).read_bytes(), digest)
        yield Path(work)


def _buckets(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> Iterator[dict[str, Tensor]]:
    """Copies on the host, in groups of at most `_FILE_BYTES` (or of one)."""
    bucket: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights:
        kept = tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype, copy=True).contiguous()
        if bucket and size + kept.nbytes > _FILE_BYTES:
            yield bucket
            bucket, size = {}, 0
        bucket[name] = kept
        size += kept.nbytes
    yield bucket


def _serialised(tensors: dict[str, Tensor]) -> bytes:
    from safetensors.torch import save

    return save(tensors)


def _write(path: Path, content: bytes) -> str:
    """Write and flush a file; its SHA-256."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    return hashlib.sha256(content).hexdigest()
