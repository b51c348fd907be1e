"""`posttrain serve`: a replica for a trainer elsewhere, of a recipe's model or of any other."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from posttrain import catalog
from posttrain.config.load import load_recipe
from posttrain.config.schema import ModelSettings, RolloutSettings, TokenizerSettings
from posttrain.errors import UnknownNameError, UserError
from posttrain.rollout.engines import check_engine
from posttrain.rollout.server_command import as_line, command, environment, flags, write_config


def serve(name: str, words: Sequence[str], *, host: str, port: int) -> None:
    """Become the server of a replica: this process's image is replaced.

    name: a recipe, or a model's directory or hub id. words: overrides of the recipe (`key=value`), then flags of vLLM,
    from the first that begins with a dash. UserError where they do not fit; MissingDependencyError without vLLM.
    """
    check_engine("vllm")
    split = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    model, tokenizer, rollout = _settings(name, words[:split])
    config, arguments, variables = _line(model, tokenizer, rollout)
    line = command(config, [*arguments, "--host", host, "--port", str(port), *words[split:]])
    os.execve(line[0], line, os.environ | variables)


def plain_line(model: ModelSettings, tokenizer: TokenizerSettings, rollout: RolloutSettings) -> str:
    """The shell's line that starts a replica with vLLM's own command."""
    return as_line(*_line(model, tokenizer, rollout))


def _settings(name: str, overrides: Sequence[str]) -> tuple[ModelSettings, TokenizerSettings, RolloutSettings]:
    if not Path(name).is_dir():
        try:
            path = catalog.recipe_path(name)
        except UnknownNameError:
            if name.endswith((".yaml", ".yml")):
                raise
        else:
            recipe = load_recipe(path, overrides, stop_at_warnings=False).recipe
            return recipe.model, recipe.tokenizer, recipe.rollout
    if overrides:
        raise UserError(f"serve: {overrides[0]!r} changes a recipe, and {name!r} is a model; allowed: flags of vLLM")
    return ModelSettings(path=name), TokenizerSettings(), RolloutSettings(engine="vllm", mode="served")


def _line(
    model: ModelSettings, tokenizer: TokenizerSettings, rollout: RolloutSettings
) -> tuple[str, list[str], dict[str, str]]:
    """The directory of the model's config, vLLM's flags, and the environment. Weights are the trainer's to bring."""
    import torch

    from posttrain.models.load import empty_model
    from posttrain.models.tokenizer import load_tokenizer

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    empty = empty_model(model, load_tokenizer(tokenizer, model) if model.config is not None else None)
    name = sha256(empty.config.to_json_string().encode()).hexdigest()[:12]
    directory = Path(tempfile.gettempdir()) / f"posttrain-config-{os.getuid()}-{name}"
    config = write_config(empty.config, type(empty).__name__, directory)
    return config, flags(rollout, empty.config, device), environment(device)
