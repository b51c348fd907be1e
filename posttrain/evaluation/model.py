"""The model that is evaluated: a directory, a hub id, an adapter, or an OpenAI-compatible endpoint."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from posttrain.config.schema import ModelSettings, RolloutSettings, TokenizerSettings
from posttrain.errors import RecipeError, did_you_mean
from posttrain.models.action_values import FILE as VALUES_FILE
from posttrain.rollout.engine import Engine
from posttrain.rollout.engines import check_engine, make_engine

ENGINES = ("transformers", "vllm")


@dataclass(frozen=True)
class NamedModel:
    """A model as the command line names it.

    path: a directory, a hub id, or an endpoint's address. name: which of an endpoint's models. engine: what samples
    from weights. concurrency: requests to an endpoint at a time. value_weight: of the action values beside the policy
    (ILQL's) in what is sampled; 0: the policy alone.
    """

    path: str
    engine: str = "transformers"
    name: str | None = None
    concurrency: int = 32
    value_weight: float = 0.0

    @property
    def is_endpoint(self) -> bool:
        """Whether it is a server's address."""
        return self.path.startswith(("http://", "https://"))

    @property
    def title(self) -> str:
        """Its name for people and for directories."""
        led = f" led by values, weight {self.value_weight:g}" if self.value_weight else ""
        return (f"{self.path}/{self.name}" if self.name else self.path) + led

    def check(self) -> None:
        """RecipeError, MissingDependencyError where the options do not fit together, or the engine is not installed."""
        if self.engine not in ENGINES:
            raise RecipeError(f"--engine {self.engine!r}: not an engine; {did_you_mean(self.engine, ENGINES)}")
        if self.is_endpoint and self.engine != "transformers":
            raise RecipeError(f"--engine {self.engine}: {self.path} samples by itself; leave --engine out")
        if self.name is not None and not self.is_endpoint:
            raise RecipeError(f"--model-name {self.name}: it is for an endpoint, and --model is {self.path}")
        check_engine(self.engine)
        if self.value_weight and (self.engine != "transformers" or not (Path(self.path) / VALUES_FILE).is_file()):
            raise RecipeError(
                f"--value-weight {self.value_weight:g}: needs --engine transformers and a model with {VALUES_FILE}, "
                "such as final/ of a run of ilql"
            )

    def resolved(self) -> NamedModel:
        """With the name of the model that an endpoint has, where none was given; UserError as `open_model`."""
        if not self.is_endpoint or self.name is not None:
            return self
        from posttrain.endpoint import find_endpoint

        return replace(self, name=find_endpoint(self.path, None).model)

    def identity(self) -> dict[str, Any]:
        """What tells its completions from those of another model: JSON."""
        directory = Path(self.path)
        if not directory.is_dir():
            return {"model": self.title, "weights": [], "engine": self.engine}
        led = {"value_weight": self.value_weight} if self.value_weight else {}
        files = [*directory.glob("*.safetensors"), *directory.glob("adapter_config.json")]
        weights = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)]
        return {"model": str(directory.resolve()), "weights": weights, "engine": self.engine, **led}


@dataclass(frozen=True)
class Opened:
    """An engine that is ready, the tokenizer that goes with it, and the tokens that end a completion."""

    engine: Engine
    tokenizer: Any
    stop_ids: frozenset[int]


def open_model(asked: NamedModel, seed: int = 0) -> Opened:
    """Load the weights, or ask the endpoint for its models; UserError where they cannot be used."""
    if asked.is_endpoint:
        from posttrain.endpoint import find_endpoint
        from posttrain.rollout.endpoint_engine import EndpointEngine

        remote = EndpointEngine(find_endpoint(asked.path, asked.name, asked.concurrency))
        return Opened(remote, remote.tokenizer, frozenset())
    import torch

    from posttrain.data.chat import stop_token_ids
    from posttrain.models.action_values import load_values
    from posttrain.models.adapter import find_adapter, has_tokenizer, merge_adapter
    from posttrain.models.load import check_model, load_model
    from posttrain.models.tokenizer import load_tokenizer
    from posttrain.rollout.weights import engine_dtype

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = str(engine_dtype("auto", device)).removeprefix("torch.")
    adapter = find_adapter(asked.path)
    base, revision = (asked.path, None) if adapter is None else (adapter.base, adapter.revision)
    settings = ModelSettings.model_validate({"path": base, "revision": revision, "dtype": dtype})
    check_model(settings)
    own = adapter.path if adapter is not None and has_tokenizer(adapter.path) else None
    tokenizer = load_tokenizer(TokenizerSettings(path=own), settings)
    loaded: Any = load_model(settings, tokenizer, seed)
    if adapter is not None:
        loaded = merge_adapter(loaded, adapter)
    stop_ids = stop_token_ids(tokenizer, loaded.generation_config)
    if asked.value_weight:
        from posttrain.rollout.guide import ValueGuide
        from posttrain.rollout.transformers_engine import TransformersEngine

        guide = ValueGuide(load_values(loaded, Path(asked.path)), asked.value_weight)
        return Opened(TransformersEngine(loaded, dtype=dtype, device=device, guide=guide), tokenizer, stop_ids)
    rollout = RolloutSettings.model_validate({"engine": asked.engine, "dtype": dtype})
    return Opened(make_engine(rollout, loaded.to(device), device), tokenizer, stop_ids)
