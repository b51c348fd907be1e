"""Loads a data source of a recipe: a hub dataset, a local file, a reasoning-gym dataset, or tasks of an environment.

Local files are read and checked whole at load. Hub and generated rows are made when they are asked for; of these the
first row is checked at load (their columns are typed, so it stands for the others), and every row where bad rows are
to be skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.hub import hub_reachable
from posttrain.config.schema import SourceSettings
from posttrain.data import reasoning_gym, tasks
from posttrain.data.examples import Example, Examples
from posttrain.data.formats import BadRowError, RowFormat
from posttrain.data.readers import READERS, read_rows
from posttrain.data.recorded import shards
from posttrain.data.trajectories import RECORDED, by_prompt, from_store, rollout_files
from posttrain.errors import DataError, did_you_mean

REASONING_GYM = "reasoning_gym"
TASKS = "tasks"
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_source(settings: SourceSettings, kind: str) -> Examples:
    """The examples of one source. kind: "prompts", "demonstrations", "preferences" or one of `RECORDED`.

    An example's id is "<source>#<row number, from 0>"; trajectories are gathered by prompt, and a run directory is a
    source of them: its trajectory store, or else its `rollouts/`. Raises DataError, naming the file and line (or the
    row), for a source that cannot be read, holds no usable row, or has a bad row where `settings.on_bad_row` is
    "error".
    """
    path = Path(settings.path).expanduser()
    if kind == "trajectories" and path.is_dir() and (stored := shards(path)):
        return _from_store(settings, stored)
    if settings.path == REASONING_GYM:
        _reject(settings, "does not apply to reasoning_gym", name=None, split="train", revision=None)
        defaults = reasoning_gym.COLUMNS.get(kind, {"prompt": "question", "completion": "answer"})
        settings = settings.model_copy(update={"columns": {**defaults, **settings.columns}, "chat": True})
        num_rows, row = reasoning_gym.rows(settings.config, kind)
        examples = _indexed(settings, kind, reasoning_gym.describe(settings.config), num_rows, row)
    elif settings.path == TASKS:
        _reject(settings, "does not apply to tasks", name=None, split="train", revision=None, template=None, chat=False)
        num_rows, row = tasks.rows(settings.config)
        examples = _indexed(settings, kind, tasks.describe(settings.config), num_rows, row)
    elif path.suffix in READERS or path.is_file() or (kind == "trajectories" and rollout_files(path)):
        _reject(settings, "applies to hub datasets, not to files", name=None, split="train", revision=None)
        _reject(settings, "applies to reasoning_gym and tasks, not to files", config={})
        examples = _local(settings, kind, path)
    elif kind == "trajectories" and (path / "recipe.yaml").is_file():
        raise DataError(f"{path}: this run left no rollouts to read; allowed: one that did, or a file of trajectories")
    else:
        _reject(settings, "applies to reasoning_gym and tasks, not to hub datasets", config={})
        dataset = _hub(settings)
        examples = _indexed(settings, kind, f"{settings.path}[{settings.split}]", len(dataset), dataset.__getitem__)
    if kind in RECORDED:
        examples = by_prompt(examples, kind)
    if not examples:
        raise DataError(f"no usable rows in {examples.description}; {examples.num_skipped} bad rows")
    return examples


def _from_store(settings: SourceSettings, files: Sequence[Path]) -> Examples:
    """The examples of a trajectory store; nothing that would change its texts applies, since tokens are read."""
    _reject(settings, "applies to hub datasets, not to the rollouts of a run", name=None, split="train", revision=None)
    why = "does not apply to the rollouts of a run, whose tokens are trained on as they were sampled"
    _reject(settings, why, config={}, columns={}, template=None, system=None, chat=False)
    examples = from_store(settings.path, files, settings.limit)
    if not examples:
        raise DataError(f"no usable rows in {examples.description}; {examples.num_skipped} failed rollouts")
    return examples


def _local(settings: SourceSettings, kind: str, path: Path) -> Examples:
    """The examples of a file or of a run's rollouts, all of them checked; reading stops at `settings.limit` of them."""
    files = rollout_files(path) if kind == "trajectories" and path.is_dir() else [path]
    if not all(file.is_file() for file in files):
        siblings = [file.name for file in path.parent.glob("*") if file.suffix in READERS]
        raise DataError(f"{path}: no such file; in {path.parent.resolve()}: {did_you_mean(path.name, siblings)}")
    row_format = RowFormat.of(settings, kind)
    found: list[Example] = []
    problems = Problems(settings)
    for number, row in enumerate(row for file in files for row in read_rows(file)):
        try:
            if row.problem is not None:
                raise BadRowError(row.problem)
            found.append(row_format.example(row.columns, f"{settings.path}#{number}"))
        except BadRowError as error:
            problems.add(row.place, error)
        if len(found) == settings.limit:
            break
    return Examples(str(path), len(found), found.__getitem__, problems.count, problems.first)


def _indexed(
    settings: SourceSettings, kind: str, source: str, num_rows: int, row: Callable[[int], dict[str, Any]]
) -> Examples:
    """The examples of rows that are read by number: made on demand, all of them checked where bad ones are skipped."""
    row_format = RowFormat.of(settings, kind)

    limit = settings.limit or num_rows

    def example(number: int) -> Example:
        try:
            return row_format.example(row(number), f"{source}#{number}")
        except BadRowError as error:
            raise _bad_row(f"{source}: row {number}", error) from error

    if settings.on_bad_row == "error":
        if num_rows:
            example(0)
        return Examples(source, min(num_rows, limit), example)
    good: list[int] = []
    problems = Problems(settings)
    for number in range(num_rows):
        try:
            row_format.example(row(number), "")
            good.append(number)
        except BadRowError as error:
            problems.add(f"{source}: row {number}", error)
        if len(good) == limit:
            break
    return Examples(source, len(good), lambda index: example(good[index]), problems.count, problems.first)


@dataclass
class Problems:
    """Bad rows so far: the first stops the load where the recipe says so, else they are counted."""

    settings: SourceSettings
    count: int = 0
    first: str = ""

    def add(self, place: str, error: BadRowError) -> None:
        """Count a bad row. Raises DataError where `on_bad_row` is "error"."""
        if self.settings.on_bad_row == "error":
            raise _bad_row(place, error) from error
        self.count += 1
        self.first = self.first or f"{place}: {error}"


def _hub(settings: SourceSettings) -> Sequence[dict[str, Any]]:
    """A split of a hub dataset (or of a dataset in a local directory)."""
    path, directory = settings.path, Path(settings.path).expanduser()
    if not directory.is_dir() and not _HUB_ID.fullmatch(path):
        raise DataError(f"{path}: no such file or directory, and not a hub dataset id ('owner/name')")
    import datasets

    offline = not directory.is_dir() and not hub_reachable()
    cache = Path(datasets.config.HF_DATASETS_CACHE) / path.replace("/", "___")
    if offline and not cache.is_dir():
        raise DataError(
            f"{path}: no such file or directory here, the Hugging Face Hub cannot be reached, and its cache does not "
            f"hold this dataset; give a local {', '.join(READERS)} file as path, or check the network (HF_ENDPOINT, "
            "HTTPS_PROXY, HF_HUB_OFFLINE)"
        )
    source = str(directory) if directory.is_dir() else path
    try:
        dataset: Sequence[dict[str, Any]] = datasets.load_dataset(
            source, settings.name, split=settings.split, revision=settings.revision
        )
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{path} (name {settings.name}, split {settings.split}): cannot be loaded: {error}") from error
    return dataset


def _reject(settings: SourceSettings, why: str, **defaults: Any) -> None:
    """Stop at a field that this source would ignore."""
    for field, default in defaults.items():
        value = getattr(settings, field)
        if value != default:
            raise DataError(f"{settings.path}: {field}: {value!r} {why}; leave it out")


def _bad_row(place: str, error: BadRowError) -> DataError:
    return DataError(f"{place}: {error} (on_bad_row: skip leaves bad rows out)")
