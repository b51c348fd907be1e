"""The process that plays episodes of a verifiers environment: all at once, on one event loop, calling the policy."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from posttrain.children import die_with_parent
from posttrain.environments.calls import MODEL, Ended
from posttrain.errors import PosttrainError, RecipeError

_NO_KEY = "POSTTRAIN_NO_KEY"
_BRIEF = 300
_LIMITS = ("max_turns", "max_input_tokens", "max_output_tokens", "max_total_tokens", "compaction_failed")


@dataclass(frozen=True)
class Setup:
    """What the process is told first: a taskset, the settings of verifiers' [env] block, and of its TrainClient."""

    taskset: str
    settings: Mapping[str, Any]
    train_client: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Ready:
    """The environment is loaded. error: why it is not."""

    error: PosttrainError | None = None


@dataclass(frozen=True)
class Play:
    """Play a task, calling the policy at `url`."""

    episode: int
    task: int
    url: str


@dataclass(frozen=True)
class Cancel:
    """Stop an episode; nobody asks how it ended."""

    episode: int


@dataclass(frozen=True)
class Speaks:
    """A speaker of an episode, before its first call: whether what it says is trained on."""

    episode: int
    speaker: str
    trained: bool


@dataclass(frozen=True)
class Over:
    """An episode ended."""

    episode: int
    ended: Ended


def main(descriptor: int) -> None:
    """Serve the pipe `descriptor` until it closes, or None comes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    logging.disable(logging.CRITICAL)
    die_with_parent()
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # where uv is
    pipe: Connection[Any, Any] = Connection(descriptor)
    try:
        setup: Setup = pipe.recv()
        try:
            environment = _load(setup)
        except PosttrainError as error:
            pipe.send(Ready(error))
            return
        except (Exception, SystemExit) as error:  # the environment's package runs here
            pipe.send(Ready(RecipeError(f"environment verifiers: {setup.taskset}: {_line(error)}")))
            return
        asyncio.run(_serve(_Worker(environment, setup, pipe)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone


def _load(setup: Setup) -> Any:
    """The environment. RecipeError where it would run the policy's code unasked, or play anything twice."""
    from verifiers.v1.configs.agent import agent_config_fields
    from verifiers.v1.utils.loaders import env_config_type, load_environment

    given = {name: dict(value) if isinstance(value, Mapping) else value for name, value in setup.settings.items()}
    kind = env_config_type(setup.taskset, str(given.get("id", "")))
    roles = [name for name, field_ in kind.model_fields.items() if _is_role(field_.default)]
    stated = [name for name in roles if _states_runtime(kind.model_fields[name].default, given.get(name))]
    for name in {*roles} - {*stated}:
        given[name] = {**(given.get(name) or {}), "runtime": {"type": "subprocess"}}
    given["taskset"] = {**(given.get("taskset") or {}), "id": setup.taskset}
    config = kind.model_validate(given)
    environment = load_environment(config)
    _client(setup, {"base_url": "http://127.0.0.1/v1", "api_key_var": _NO_KEY})
    for name, role in agent_config_fields(config).items():
        harness = environment._harnesses[name]
        if harness.EXECUTES_CODE and name not in stated:
            raise RecipeError(
                f"environment verifiers: the harness {harness.config.id!r} of {name!r} runs what the policy writes; "
                f"say where: args: {{{name}: {{runtime: {{type: docker}}}}}} (subprocess: on this machine, without a "
                f"sandbox), or name a harness that runs nothing: args: {{{name}: {{harness: {{id: 'null'}}}}}}"
            )
        if role.retries.max_retries or role.retries.rules:
            raise RecipeError(f"environment verifiers: {name}.retries is set; allowed: 0 (use rollout.attempts)")
    if config.retries.max_retries or config.retries.rules:
        raise RecipeError("environment verifiers: retries is set; allowed: 0 (use rollout.attempts)")
    return environment


def _is_role(default: Any) -> bool:
    from verifiers.v1.configs.agent import AgentConfig

    return isinstance(default, AgentConfig)


def _states_runtime(default: Any, given: Any) -> bool:
    return "runtime" in default.model_fields_set or (isinstance(given, Mapping) and "runtime" in given)


def _client(setup: Setup, where: Mapping[str, str]) -> Any:
    """How verifiers calls the policy: in messages, or in tokens."""
    import verifiers.v1 as vf

    if setup.train_client is None:
        return vf.EvalClientConfig.model_validate(where)
    return vf.TrainClientConfig.model_validate({**setup.train_client, **where})


@dataclass
class _Worker:
    environment: Any
    setup: Setup
    pipe: Connection[Any, Any]
    playing: dict[int, asyncio.Task[None]] = field(default_factory=dict)
    ending: set[asyncio.Task[None]] = field(default_factory=set)
    _read: list[Any] = field(default_factory=list)
    _unread: Iterator[Any] | None = None

    def task(self, number: int) -> Any:
        """The task of that number; the taskset is read as far as that."""
        if self._unread is None:
            self._unread = iter(self.environment.taskset)
        while len(self._read) <= number:
            try:
                self._read.append(next(self._unread))
            except StopIteration:
                raise RecipeError(
                    f"environment verifiers: {self.setup.taskset} has {len(self._read)} tasks, and a row asks for that "
                    f"of seed {number}; allowed: seeds from 0 to {len(self._read) - 1} (prompts: {{path: tasks, "
                    f"config: {{size: {len(self._read)}}}}})"
                ) from None
        return self._read[number]

    def begin(self, play: Play) -> None:
        """Start an episode; it reports its end itself."""
        self.playing[play.episode] = asyncio.create_task(self._play(play))

    def cancel(self, episode: int) -> None:
        """Stop an episode; it does not report how it ended."""
        task = self.playing.pop(episode, None)
        if task is not None:
            self.ending.add(task)
            task.add_done_callback(self.ending.discard)
            task.cancel()

    async def _play(self, play: Play) -> None:
        try:
            ended = await self._episode(play)
        except RecipeError as error:
            ended = Ended(mistake=error)
        except (Exception, SystemExit) as error:  # the boundary of environments: their code runs here
            ended = Ended(error=_line(error))
        if self.playing.pop(play.episode, None) is None:
            return  # cancelled meanwhile
        self.pipe.send(Over(play.episode, ended))

    async def _episode(self, play: Play) -> Ended:
        import verifiers.v1 as vf

        where = {"base_url": f"{play.url}/v1", "api_key_var": _NO_KEY}
        client = _client(self.setup, where)

        def speaks(trace: Any) -> None:
            self.pipe.send(Speaks(play.episode, trace.id, bool(trace.agent.trainable)))

        (slot,) = self.environment.slots(self.task(play.task))
        context = vf.ModelContext(model=MODEL, client=client, sampling=vf.SamplingConfig())
        return outcome(await self.environment.run_slot(slot, context, on_trace=speaks))


def outcome(episode: Any) -> Ended:
    """How a verifiers episode ended.

    reward: the mean of what its trained speakers earned, None where none of them has a reward. truncated: where a limit
    of verifiers cut one of them off. info: their named rewards and metrics, the mean where several have one of a name.
    """
    if not episode.ok:
        errors = [*episode.errors, *(error for trace in episode.traces if not trace.ok for error in trace.errors)]
        last = errors[-1] if errors else None
        return Ended(error="it failed" if last is None else f"{last.type}: {_brief(last.message)}")
    trained = [trace for trace in episode.traces if trace.agent.trainable]
    rewards = [trace.reward for trace in trained if any(one is not None for one in trace.rewards.values())]
    named: dict[str, list[float]] = {}
    for trace in trained:
        earned = {name: None if one is None else one.score for name, one in trace.rewards.items()}
        for name, value in {**trace.metrics, **earned}.items():
            named.setdefault(name, []).extend([] if value is None else [float(value)])
    return Ended(
        reward=sum(rewards) / len(rewards) if rewards else None,
        truncated=any(trace.is_timeout or trace.stop_condition in _LIMITS for trace in trained),
        info={name: sum(values) / len(values) for name, values in named.items() if values},
    )


async def _serve(worker: _Worker) -> None:
    """Take messages until None or the pipe's end; then stop what runs."""
    loop = asyncio.get_running_loop()
    over = loop.create_future()

    def receive() -> None:
        try:
            message = worker.pipe.recv()
        except (EOFError, OSError):
            message = None
        if isinstance(message, Play):
            worker.begin(message)
        elif isinstance(message, Cancel):
            worker.cancel(message.episode)
        elif not over.done():
            loop.remove_reader(worker.pipe.fileno())
            over.set_result(None)

    async with worker.environment.serving():
        worker.pipe.send(Ready())
        loop.add_reader(worker.pipe.fileno(), receive)
        await over
        for episode in [*worker.playing]:
            worker.cancel(episode)
        await asyncio.gather(*worker.ending, return_exceptions=True)


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {_brief(str(error))}"


def _brief(text: str) -> str:
    return " ".join(text.split())[:_BRIEF]
