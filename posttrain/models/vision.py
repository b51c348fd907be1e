"""Pictures in a forward pass: the vision tower's features in place of the placeholders' embeddings.

Where a picture stands is known from `Rows.pictures`, not from token ids, so that a placeholder which the policy sampled
is a token like any other. An image that occurs several times is computed once. Features come from the model that is
read (policy, reference, teacher); a critic, which has a decoder but no tower, reads the policy's, detached.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.utils.deterministic
from torch import Tensor

from posttrain.errors import UserError
from posttrain.images import Images
from posttrain.rows import Rows, Seen

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""Types of models whose pictures are computed here: grids of patches, multimodal rotary positions."""
TOKENS = {
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
}
"""The special tokens of these families by the fields of their configs."""
_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")


def is_vision(config: Any) -> bool:
    """Whether a model of `config` reads images here."""
    return config.model_type in FAMILIES


def tower_of(model: Any) -> Any:
    """The module that makes features of pixels."""
    return model.base_model.visual


def freeze_tower(model: Any) -> None:
    """Train the language model alone."""
    tower_of(model).requires_grad_(False)


def images_of_config(config: Any, tokenizer: Any, source: str | None, revision: str | None = None) -> Images:
    """What reads images for a model of `config`: the processor at `source`, or, of None, a new one that fits.

    source: a directory or hub id. UserError where it has no image processor, or the tokenizer no placeholder.
    """
    token = tokenizer.convert_ids_to_tokens(config.image_token_id)
    if token is None or token == tokenizer.unk_token:
        raise UserError(
            f"tokenizer '{tokenizer.name_or_path}' has no token {config.image_token_id}, which stands for an image's "
            f"cells in a {config.model_type} model; allowed: the model's own tokenizer"
        )
    if source is None:
        return Images(_new_processor(config.vision_config), config.image_token_id, token, tokenizer)
    from transformers import AutoImageProcessor

    try:
        processor = AutoImageProcessor.from_pretrained(source, revision=revision, backend="pil")
        files = _files(source, revision)
    except (OSError, ValueError, ImportError) as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(f"model {source!r} reads images, but its image processor cannot be loaded: {cause}") from error
    return Images(processor, config.image_token_id, token, tokenizer, files)


def _files(source: str, revision: str | None) -> dict[str, str]:
    """The files of a processor, name -> text, of those that are there."""
    from transformers.utils import cached_file

    quietly = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    places = {name: cached_file(source, name, revision=revision, **quietly) for name in _FILES}
    return {name: Path(place).read_text(encoding="utf-8") for name, place in places.items() if place is not None}


def _new_processor(vision: Any) -> Any:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    cell = vision.patch_size * vision.spatial_merge_size
    return Qwen2VLImageProcessorPil(
        patch_size=vision.patch_size,
        temporal_patch_size=vision.temporal_patch_size,
        merge_size=vision.spatial_merge_size,
        size={"shortest_edge": cell**2, "longest_edge": 1024 * cell**2},
    )


def see(model: Any, rows: Rows) -> Rows:
    """The rows with what `model`'s tower says of their images; rows without any as they are.

    Where several ranks train, a rank whose rows have no picture has the tower read an empty one, at weight 0: weights
    that are spread over ranks are gathered by all of them together. UserError where the model has no tower.
    """
    reader: Images | None = getattr(model, "images", None)
    if reader is None:
        if rows.pictures:
            raise UserError(
                f"{type(model).__name__} reads text alone, and the sequences have pictures; allowed: an "
                "image-text-to-text model with the policy's placeholders"
            )
        return rows
    if not rows.pictures and not _several_ranks():
        return rows
    images = list(dict.fromkeys(one.image for one in rows.pictures))
    return replace(rows, seen=_features(model, reader, images))


def repeat_exactly(model: Any, device: torch.device) -> None:
    """Where `model` has a tower, have CUDA sum in one order, which kernels that it uses do not of themselves.

    Without it a run that goes on after a stop differs in its last bits from one that was not stopped.
    """
    if device.type != "cuda" or getattr(model, "images", None) is None:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    warnings.filterwarnings("ignore", message=".*eterministic", category=UserWarning)


def _several_ranks() -> bool:
    ready = torch.distributed.is_available() and torch.distributed.is_initialized()
    return ready and torch.distributed.get_world_size() > 1


def _features(model: Any, reader: Images, images: Sequence[str]) -> Seen:
    """Features of images, one after the other; of none, of an empty picture that stands nowhere."""
    tower = tower_of(model)
    read = [reader.pixels(image) for image in images] or [_empty(model.config.vision_config)]
    device = model.get_input_embeddings().weight.device
    pixels = torch.cat([one for one, _ in read]).to(device)
    grids = torch.stack([grid for _, grid in read]).to(device)
    trained = any(parameter.requires_grad for parameter in tower.parameters())
    with nullcontext() if trained else torch.no_grad():
        found = model.base_model.get_image_features(pixels, grids, return_dict=True)
    ends = torch.tensor([len(one) for one in found.pooler_output]).cumsum(0).tolist()
    deep = getattr(found, "deepstack_features", None) or ()
    return Seen(
        features=torch.cat(tuple(found.pooler_output)),
        deep=tuple(torch.cat(tuple(layer)) for layer in deep),
        places=dict(zip(images, [0, *ends], strict=False)),
    )


def _empty(vision: Any) -> tuple[Tensor, Tensor]:
    """The pixels of a picture of one token, and its grid."""
    merge = vision.spatial_merge_size
    size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    return torch.zeros(merge**2, size), torch.tensor([1, merge, merge])


def inputs_of(decoder: Any, rows: Rows) -> dict[str, Any]:
    """The rows as arguments of `decoder`: token ids, or embeddings with pictures among them, and rotary positions."""
    seen = rows.seen
    if seen is None:
        if rows.pictures:
            raise ValueError("rows with pictures that no tower has read: see(model, rows)")
        return {"input_ids": rows.input_ids}
    embedded = decoder.get_input_embeddings()(rows.input_ids)
    if not rows.pictures:
        nothing = sum((layer.sum() for layer in seen.deep), seen.features.sum())
        return {"inputs_embeds": embedded + 0.0 * nothing.to(embedded.dtype)}
    pictures = sorted(rows.pictures)
    columns = torch.cat([torch.arange(one.start, one.stop) for one in pictures]).to(embedded.device)
    taken = torch.cat([torch.arange(one.num_tokens) + seen.places[one.image] for one in pictures]).to(embedded.device)
    flat = embedded.flatten(0, 1)
    flat = flat.index_copy(0, columns, seen.features.index_select(0, taken).to(flat.dtype))
    found: dict[str, Any] = {"inputs_embeds": flat.view_as(embedded), "position_ids": rows.rotary_ids}
    if seen.deep:
        places = torch.zeros(len(flat), dtype=torch.bool, device=flat.device)
        places[columns] = True
        found["visual_pos_masks"] = places.view(embedded.shape[:2])
        found["deepstack_visual_embeds"] = [layer.index_select(0, taken) for layer in seen.deep]
    return found
