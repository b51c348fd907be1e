"""LoRA adapters as peft stores them: a directory or hub id whose adapter_config.json names the base model.

The adapter is merged into the base's weights, so that every engine takes the model as any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.config.hub import hub_reachable
from posttrain.errors import UserError

CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Adapter:
    """Where an adapter is, and the base model (a directory or hub id, and its revision) that it was trained on."""

    path: str
    base: str
    revision: str | None = None


def find_adapter(path: str) -> Adapter | None:
    """The adapter at `path`; None where there is another model, or none. UserError where it does not name its base.

    A base that is no directory from here is looked for beside the adapter.
    """
    config = _config_file(path)
    if config is None:
        return None
    from peft import PeftConfig

    found = PeftConfig.from_pretrained(str(config.parent))
    if not found.base_model_name_or_path:
        raise UserError(f"{config}: base_model_name_or_path is missing; allowed: the base model's directory or hub id")
    base = str(found.base_model_name_or_path)
    beside = config.parent / base
    if not Path(base).is_dir() and beside.is_dir():
        base = str(beside)
    return Adapter(str(config.parent), base, found.revision)


def merge_adapter(model: Any, adapter: Adapter) -> Any:
    """The base `model` with the adapter in its weights; UserError where it does not fit."""
    from peft import PeftModel

    try:
        merged = PeftModel.from_pretrained(model, adapter.path).merge_and_unload(safe_merge=True)
    except (ValueError, RuntimeError, KeyError, OSError) as error:
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"{adapter.path}: does not fit {adapter.base}: {line}; allowed: an adapter of that base"
        ) from error
    return merged.eval()


def has_tokenizer(path: str) -> bool:
    """Whether a tokenizer was saved with the adapter, as with one whose training added tokens."""
    return any((Path(path) / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json"))


def _config_file(path: str) -> Path | None:
    """adapter_config.json, of a directory or of the hub (its cache, where the hub cannot be reached)."""
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError

    directory = Path(path).expanduser()
    if directory.exists():
        return directory / CONFIG if (directory / CONFIG).is_file() else None
    offline = not hub_reachable()
    try:
        hf_hub_download(path, CONFIG, local_files_only=offline)
        return Path(snapshot_download(path, local_files_only=offline)) / CONFIG
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None
