"""Models as the command line names them: an adapter is its base changed by it, an endpoint is the model behind it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from posttrain.endpoint import KEY as VARIABLE
from posttrain.errors import TooManyFailuresError, UserError
from posttrain.evaluation.command import run_evaluations
from posttrain.evaluation.model import NamedModel, open_model
from tests.openai_server import KEY, NAME, OpenAIServer
from tests.tiny import tiny_model

CHAIN_SUM = ("dataset=chain_sum", "size=12", "config.min_terms=2", "config.max_terms=2", "max_tokens=6")


@pytest.fixture(scope="module")
def serving() -> Iterator[OpenAIServer]:
    server = OpenAIServer(*tiny_model())
    yield server
    server.close()


@pytest.fixture
def server(serving: OpenAIServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> OpenAIServer:
    monkeypatch.setenv(VARIABLE, KEY)
    monkeypatch.chdir(tmp_path)
    serving.faults, serving.seen = [], []
    return serving


@pytest.fixture(scope="module")
def adapter(model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of `model` that changes what it says."""
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=128, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    directory = tmp_path_factory.mktemp("adapter")
    adapted.save_pretrained(directory)
    return directory


def test_an_adapter_is_merged_into_its_base(model: str, adapter: Path) -> None:
    found, base = open_model(NamedModel(str(adapter))), open_model(NamedModel(model))
    ids = [5, 9, 12, 40]
    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model), adapter).eval()
    with torch.no_grad():
        logprobs = torch.log_softmax(whole(torch.tensor([ids])).logits[0, :-1], -1)
    expected = logprobs[range(3), ids[1:]].tolist()
    assert found.engine.score(ids) == pytest.approx(expected, abs=0.02)  # it samples in bfloat16
    assert base.engine.score(ids) != pytest.approx(expected, abs=0.06)
    assert found.tokenizer.get_vocab() == base.tokenizer.get_vocab()


def test_an_adapter_finds_its_base_beside_it_and_must_fit_it(model: str, adapter: Path, tmp_path: Path) -> None:
    own = tmp_path / "adapter"
    own.mkdir()
    for file in adapter.iterdir():
        (own / file.name).write_bytes(file.read_bytes())
    config = json.loads((own / "adapter_config.json").read_text())
    (own / "base").symlink_to(model)
    (own / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "base"}))
    assert open_model(NamedModel(str(own))).engine.score([5, 9]) == open_model(NamedModel(str(adapter))).engine.score(
        [5, 9]
    )
    (own / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": None}))
    with pytest.raises(UserError, match="base_model_name_or_path is missing"):
        open_model(NamedModel(str(own)))
    other, tokenizer = tiny_model(hidden_size=48)
    other.save_pretrained(tmp_path / "other")
    tokenizer.save_pretrained(tmp_path / "other")
    (own / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(tmp_path / "other")}))
    with pytest.raises(UserError, match="does not fit"):
        open_model(NamedModel(str(own)))


def test_an_endpoint_scores_as_the_model_behind_it(server: OpenAIServer, model: str, tmp_path: Path) -> None:
    (here,) = run_evaluations(["reasoning_gym"], CHAIN_SUM, model=NamedModel(model))
    server.faults = [503, 429, 500]
    (there,) = run_evaluations(["reasoning_gym"], CHAIN_SUM, model=NamedModel(server.url, name=NAME))
    assert there.completions == here.completions  # texts, rewards, and the numbers of tokens
    assert len({body["seed"] for body in server.seen}) == 12
    before = len(server.seen)
    (again,) = run_evaluations(["reasoning_gym"], CHAIN_SUM, model=NamedModel(server.url, name=NAME))
    assert (again.completions, len(server.seen)) == (there.completions, before)


def test_what_an_endpoint_refuses_is_counted(server: OpenAIServer) -> None:
    server.faults = [400] * 8  # two attempts
    arguments = (["reasoning_gym"], CHAIN_SUM)
    named = NamedModel(server.url, concurrency=1)
    (result,) = run_evaluations(*arguments, model=named, fresh=True)
    assert (result.num_ungraded, result.first_error) == (0, None)
    server.faults = [400] * 13  # all items, and the first in the second attempt too
    (failed,) = run_evaluations(*arguments, model=named, fresh=True)
    assert failed.num_ungraded == 1
    (again,) = run_evaluations(*arguments, model=named)
    assert again.completions == result.completions  # what failed is asked again
    server.faults = [400] * 24
    with pytest.raises(TooManyFailuresError, match=r"12 x engine: .*status 400: as told: 400"):
        run_evaluations(*arguments, model=named, fresh=True)
