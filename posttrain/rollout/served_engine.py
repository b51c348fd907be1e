"""vLLM in other processes, here or on other machines: the engine that the trainer sees, over HTTP.

Weights go out as the recipe says (`served_transfer`), tokens go out and come in over vLLM's own route, and every answer
says which weights have sampled it. All waiting is done in one thread with an event loop; `generate` may be called from
any thread, and `sync` waits for the requests that are in progress.

With several ranks each asks for its own prompts; all take part in a sync, and the main one hands out the weights and
looks after the replicas. Not covered: transfer over CUDA IPC, answers that several versions have sampled.
"""

from __future__ import annotations

import asyncio
import hashlib
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel

from posttrain.config.schema import RolloutSettings
from posttrain.errors import RunError, UserError
from posttrain.models.weights import named_weights
from posttrain.rollout.engine import Completion, Request, Sampling, length_error, prompt_error
from posttrain.rollout.ranks import Ranks
from posttrain.rollout.served_pool import Pool
from posttrain.rollout.served_replica import Replica, ReplicaError
from posttrain.rollout.served_transfer import FileTransfer, Transfer, Version
from posttrain.rollout.server_command import command, environment, flags, write_config
from posttrain.rollout.server_process import ServerProcess
from posttrain.rollout.vllm_settings import sampling_fields, scoring_fields, window_of
from posttrain.rollout.weights import DTYPES, WeightNames
from posttrain.trajectory import StopReason

_NOT_A_NUMBER = -9999.0  # what vLLM's route says for a logprob that is -inf or nan
_T = TypeVar("_T")


class ServedEngine:
    """An `Engine` over replicas that run `model`'s architecture, with the model's weights as version 0.

    directory: where logs go, and weights unless the recipe says otherwise. UserError where a setting or a server does
    not fit; RunError where a replica does not start.
    """

    def __init__(
        self, model: PreTrainedModel, settings: RolloutSettings, device: torch.device, directory: Path
    ) -> None:
        self.policy_version = 0
        self._label = ""
        self._settings, self._names, self._ranks = settings, WeightNames(model), Ranks()
        self._limit = window_of(model.config, settings.max_model_len)
        self._idle, self._in_use, self._syncing = threading.Condition(), 0, False
        self._transfer: Transfer[Any] | None = None
        self.processes: list[ServerProcess] = []
        urls = self._ranks.of_main(lambda: self._urls(model, device, directory))
        owned = {process.url: process for process in self.processes}
        replicas = [Replica(url.rstrip("/"), settings, owned.get(url)) for url in urls]
        self._pool = Pool(replicas, settings)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="replicas", daemon=True)
        self._thread.start()
        try:
            told = self._ranks.of_main(lambda: self._call(self._pool.open()))
            self._dtype = self._agreed(told)
            self.window: int | None = self._limit
            weights = Path(settings.weights_directory or directory / "weights").absolute()
            self._ranks.of_main(lambda: self._open(weights, device))
            self.sync(named_weights(model), 0)
        except BaseException:
            self.close()
            raise

    @property
    def dtype(self) -> torch.dtype:
        """The precision it samples in."""
        return self._dtype

    @property
    def servers(self) -> list[str]:
        """The replicas' addresses."""
        return [replica.url for replica in self._pool.replicas]

    @property
    def counters(self) -> Mapping[str, float]:
        """What became of this rank's requests so far; asked = answered + failed, while none is in flight."""
        return dict(self._pool.counters)

    @property
    def num_in_use(self) -> int:
        """How many replicas run this engine's version at the moment."""
        return self._pool.num_in_use

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[Completion]:
        """One completion per request, in order; see `Engine.generate`.

        Logprobs are those of the processed distribution (temperature, top_k, top_p). A request that no replica could
        answer in several tries is an ERROR. RunError where no replica is left, or the model's logits are not finite.
        """
        with self._using():
            version, label = self.policy_version, self._label
            errors = [prompt_error(len(request.prompt_ids), self.window) for request in requests]
            asked = [request for request, error in zip(requests, errors, strict=True) if error is None]
            bodies = [_body(one, sampling_fields(one, sampling, self._limit), label) for one in asked]
            answers = iter(self._call(self._pool.complete(bodies, label)) if asked else [])
        return [
            _completion(next(answers), version)
            if error is None
            else Completion((), (), StopReason.ERROR, version, error)
            for error in errors
        ]

    def score(self, token_ids: Sequence[int]) -> list[float]:
        """Logprobs (nats, temperature 1) of tokens 1.. of a sequence: the mean over all replicas in use.

        UserError beyond the window; RunError where no replica is left.
        """
        error = length_error(len(token_ids), self.window)
        if error is not None:
            raise UserError(error)
        if len(token_ids) < 2:
            return []
        # A prompt's logprobs come along with one more token, which a sequence as long as the window has no room for:
        # its last logprob is then looked up among those of all tokens.
        full = len(token_ids) == self._limit
        prompt = Request(tuple(token_ids[:-1] if full else token_ids), 0)
        with self._using():
            body = _body(prompt, scoring_fields() | ({"logprobs": -1} if full else {}), self._label)
            answers = self._call(self._pool.of_each(body, self._label))
        found = [_prompt_logprobs(answer, token_ids) for answer in answers]
        return [sum(values) / len(found) for values in zip(*found, strict=True)]

    def sync(self, weights: Iterable[tuple[str, Tensor]], version: int) -> None:
        """Take over weights named as in the model's `state_dict()`: write them, and have every replica load them.

        RunError where names or shapes do not match, where they cannot be written, and where no replica takes them.
        """
        with self._alone():
            published = self._ranks.of_main(lambda: self._published(weights, version))
            assert published is not None, "the main rank has written them"
            # Every rank has come here, so nothing is in flight when the weights change.
            self._ranks.of_main(lambda: self._load(published) if self._ranks.is_main else None)
            if not self._ranks.is_main:
                self._load(published)
            self.policy_version, self._label = version, published.label

    def release(self) -> None:
        """Nothing: the replicas have devices of their own."""

    def close(self) -> None:
        """Stop what was started here: the replicas of this run, the file server, the thread."""
        for process in self.processes:
            process.stop()
        if self._loop.is_running():
            self._call(self._pool.close())
            if self._transfer is not None:
                self._call(self._transfer.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _urls(self, model: PreTrainedModel, device: torch.device, directory: Path) -> list[str]:
        """The replicas' addresses; on the main rank, with the processes of those that the run starts."""
        if not self._settings.replicas or not self._ranks.is_main:
            return self._settings.servers
        self.processes = self._own(model, device, directory)
        return [process.url for process in self.processes]

    def _open(self, weights: Path, device: torch.device) -> None:
        """On the main rank, what weights are handed out by."""
        if not self._ranks.is_main:
            return
        way = self._settings.weights_transfer
        if way == "nccl":
            from posttrain.rollout.served_nccl import nccl_transfer

            self._transfer = nccl_transfer(self._dtype, self._settings, device)
        else:
            self._transfer = FileTransfer(weights, self._dtype, http=way == "http")
        self._call(self._transfer.open())

    def _own(self, model: PreTrainedModel, device: torch.device, directory: Path) -> list[ServerProcess]:
        """The processes of the recipe's replicas, not started yet."""
        settings, place = self._settings, directory / "replicas"
        config = write_config(model.config, type(model).__name__, place / "model")
        line, variables = command(config, flags(settings, model.config, device)), environment(device)
        devices = settings.replica_devices
        return [
            ServerProcess(
                line,
                variables | ({"CUDA_VISIBLE_DEVICES": devices[number]} if devices else {}),
                place / f"replica-{number}.log",
            )
            for number in range(settings.replicas or 0)
        ]

    def _agreed(self, told: Sequence[Mapping[str, Any]]) -> torch.dtype:
        """What all replicas compute in; UserError where they differ, or are not what the recipe says."""
        asked = self._settings.dtype
        allowed = told[0]["dtype"] if asked == "auto" else asked
        for url, one in zip(self.servers, told, strict=True):
            if one["dtype"] != allowed:
                raise UserError(f"{url} computes in {one['dtype']}; allowed: {allowed} (--dtype {allowed})")
            if one["window"] < self._limit:
                raise UserError(
                    f"{url} takes sequences of {one['window']} tokens; allowed: at least {self._limit} "
                    f"(rollout.max_model_len, or --max-model-len {self._limit})"
                )
        return DTYPES[allowed]

    def _published(self, weights: Iterable[tuple[str, Tensor]], version: int) -> Version | None:
        given = self._names.checked(weights)
        if self._transfer is not None:
            published: Version = self._transfer.publish(given, version)
            return published
        for _ in given:  # sharded weights are gathered by all ranks together
            pass
        return None

    def _load(self, published: Version) -> None:
        self._call(self._pool.load(published, self._transfer))

    def _call(self, work: Coroutine[Any, Any, _T]) -> _T:
        """The result of `work`, done in the event loop's thread; interrupted here, it is cancelled there."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()

    @contextmanager
    def _using(self) -> Iterator[None]:
        with self._idle:
            self._idle.wait_for(lambda: not self._syncing)
            self._in_use += 1
        try:
            yield
        finally:
            with self._idle:
                self._in_use -= 1
                self._idle.notify_all()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        with self._idle:
            self._idle.wait_for(lambda: not self._syncing and not self._in_use)
            self._syncing = True
        try:
            yield
        finally:
            with self._idle:
                self._syncing = False
                self._idle.notify_all()


def _body(request: Request, fields: Mapping[str, Any], label: str) -> dict[str, Any]:
    """A request of vLLM's route. Its id says what is asked of which weights; the cache's key is the weights' label."""
    ids = list(request.prompt_ids)
    name = hashlib.blake2b(repr((label, ids, sorted(fields.items()))).encode(), digest_size=16).hexdigest()
    return {"request_id": name, "token_ids": ids, "cache_salt": label, "sampling_params": dict(fields)}


def _completion(answer: dict[str, Any] | ReplicaError, version: int) -> Completion:
    if isinstance(answer, ReplicaError):
        return Completion((), (), StopReason.ERROR, version, str(answer))
    choice = answer["choices"][0]
    logprobs = tuple(one["logprob"] for one in choice["logprobs"]["content"])
    if not all(logprob > _NOT_A_NUMBER for logprob in logprobs):
        raise RunError(f"the policy's logits are not finite (policy version {version})")
    reason = StopReason.STOP if choice["finish_reason"] == "stop" else StopReason.LENGTH
    return Completion(tuple(choice["token_ids"]), logprobs, reason, version)


def _prompt_logprobs(answer: Mapping[str, Any], token_ids: Sequence[int]) -> list[float]:
    """Of tokens 1.., the last of them among the drawn token's where the prompt ends before it."""
    prompt = answer["prompt_logprobs"][1:]
    found = [one[str(token)]["logprob"] for one, token in zip(prompt, token_ids[1:], strict=False)]
    if len(found) < len(token_ids) - 1:
        (drawn,) = answer["choices"][0]["logprobs"]["content"]
        found.append(next(one["logprob"] for one in drawn["top_logprobs"] if one["token_id"] == token_ids[-1]))
    return [float(value) for value in found]
