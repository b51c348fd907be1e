"""A judge that is a model directory held by the process that grades, in place of a server.

For small models on the grader's CPU, or a device of its own; a large one is served (`posttrain serve`) and asked there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from posttrain.endpoint import Answer
from posttrain.errors import RecipeError
from posttrain.trajectory import StopReason

Messages = tuple[Mapping[str, str], ...]


def answers(
    path: str, device: str, conversations: Sequence[Messages], temperature: float, max_tokens: int
) -> list[Answer]:
    """The model's answer to each conversation, in order; greedy at temperature 0, else drawn with seed 0.

    RecipeError where the directory holds no model that can be loaded, or its tokenizer has no chat template.
    """
    import torch

    model, tokenizer = _loaded(path, device)
    found = []
    for messages in conversations:
        ids = tokenizer.apply_chat_template(
            [dict(one) for one in messages], add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(device)
        torch.manual_seed(0)
        sampled = {"do_sample": True, "temperature": temperature} if temperature else {"do_sample": False}
        with torch.inference_mode():
            out = model.generate(**ids, max_new_tokens=max_tokens, pad_token_id=tokenizer.pad_token_id, **sampled)
        start = ids["input_ids"].shape[1]
        text = tokenizer.decode(out[0, start:], skip_special_tokens=True)
        stop = StopReason.LENGTH if len(out[0]) - start >= max_tokens else StopReason.STOP
        found.append(Answer(text, stop, len(out[0]) - start, start))
    return found


def identity(path: str) -> list[Any]:
    """What tells the model from another that lay there before."""
    files = sorted(Path(path).expanduser().glob("*.safetensors"))
    return [str(Path(path).expanduser().absolute()), [(file.name, file.stat().st_mtime_ns) for file in files]]


@lru_cache(maxsize=1)
def _loaded(path: str, device: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if device == "cpu":
        torch.set_num_threads(1)  # the others are the sampler's
    try:
        tokenizer = AutoTokenizer.from_pretrained(path)
        model = AutoModelForCausalLM.from_pretrained(path).to(device).eval()
    except (OSError, ValueError) as error:
        raise RecipeError(f"judge: path {path}: no model can be loaded: {error}") from error
    if tokenizer.chat_template is None:
        raise RecipeError(f"judge: path {path}: its tokenizer has no chat template to ask it with")
    return model, tokenizer
