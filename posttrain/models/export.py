"""A plain Hugging Face model directory: what transformers and vLLM load."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from posttrain.models.quiet import no_progress_bars


def save_model(model: Any, tokenizer: Any, directory: Path | str) -> Path:
    """Write safetensors, config, generation config and tokenizer (with chat template) to `directory`.

    The same weights give the same bytes. The files appear together: they are written beside it and then renamed, and
    a former `directory` is replaced.
    """
    directory = Path(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        written = work / "new"
        with no_progress_bars():
            model.save_pretrained(written)
        tokenizer.save_pretrained(written)
        mode = (written / "config.json").stat().st_mode
        for file in written.iterdir():  # weights come out readable by their owner only
            file.chmod(mode)
        if directory.exists():
            directory.rename(work / "old")
        written.rename(directory)
    finally:
        shutil.rmtree(work)
    return directory
