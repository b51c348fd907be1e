"""A plain Hugging Face model directory: what transformers and vLLM load."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from posttrain.models.lora import adapter_weights, has_lora, save_adapter
from posttrain.models.quantised import is_quantised, plain_shell
from posttrain.models.quiet import no_progress_bars
from posttrain.models.sharded import is_sharded
from posttrain.models.weights import named_weights


def save_model(
    model: Any, tokenizer: Any, directory: Path | str, *, writes: bool = True, beside: Mapping[str, str] | None = None
) -> Path:
    """Write safetensors, config, generation config, tokenizer (with chat template) and image processor to `directory`.

    A model with an adapter is merged, and the adapter is written beside it, to `directory`/adapter, as peft stores one
    (not a reward model's, which would lack its head);
    a quantised one is written as what its weights stand for. Where weights are spread over ranks every rank must call,
    and one of them `writes`. The same weights give the same bytes. The files appear together: they are written beside
    it and then renamed; a former `directory` is replaced. beside: further files of it, name -> text.
    """
    directory = Path(directory)
    sharded = is_sharded(model)
    given: dict[str, Any] = {}
    if sharded or has_lora(model) or is_quantised(model):
        weights = ((name, tensor.cpu() if sharded else tensor) for name, tensor in named_weights(model))
        given = {"state_dict": {name: tensor for name, tensor in weights if writes}}
    adapted = has_lora(model) and hasattr(model, "peft_config")
    adapter = adapter_weights(model) if adapted else None
    if not writes:
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        written = work / "new"
        with no_progress_bars():
            (plain_shell(model) if is_quantised(model) else model).save_pretrained(written, **given)
        if adapter is not None:
            save_adapter(model, adapter, written / "adapter")
        tokenizer.save_pretrained(written)
        images = getattr(model, "images", None)
        if images is not None:
            images.save(written)
        for name, text in (beside or {}).items():
            (written / name).write_text(text)
        mode = (written / "config.json").stat().st_mode
        for file in written.iterdir():  # weights come out readable by their owner only
            file.chmod(mode)
        if directory.exists():
            directory.rename(work / "old")
        written.rename(directory)
    finally:
        shutil.rmtree(work)
    return directory
