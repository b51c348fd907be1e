"""A language model as a judge: asked over HTTP or held here, its answers kept on the disk, within a budget.

Answers are found again by everything that was asked (server or directory, model, messages, sampling), so that the same
question is paid for once, in this run or another. The budget is that of one run: all workers of a trainer share its
count.
"""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypedDict

import psutil

from posttrain.endpoint import KEY, Answer, Endpoint, EndpointError, find_endpoint
from posttrain.errors import RecipeError
from posttrain.reward import local_judge

Messages = tuple[Mapping[str, str], ...]


class JudgeBudgetError(Exception):
    """The run has asked as much as it may."""


class Judging(TypedDict, total=False):
    """Settings of every judge; see `Judge`."""

    url: str
    path: str
    device: str
    model: str
    key_variable: str
    temperature: float
    max_tokens: int
    max_characters: int
    request_seconds: float
    attempts: int
    concurrency: int
    directory: str
    max_calls: int
    max_total_tokens: int
    over_budget: Literal["ungraded", "stop"]


@dataclass(frozen=True)
class Judge:
    """A model at an OpenAI-compatible server, or in a directory here.

    url: up to and with its version (http://host:8000/v1). path: in its place, a model directory or hub id that each
    grading process holds itself, on `device` (`local_judge`; memory as for the reward `reward_model`). model: "" is the
    only one that it lists. key_variable: the environment variable that holds its key. temperature, max_tokens: of an
    answer. max_characters: of each text that is judged; the middle of a longer one is cut out. request_seconds,
    attempts: of one request. concurrency: requests at a time, of each worker. directory: where answers are kept
    (default: posttrain/judge in the user's cache). max_calls, max_total_tokens: of one run, answers that are kept not
    among them; 0: no limit. over_budget: what is then asked stays ungraded, or stops the run.
    """

    url: str = "http://127.0.0.1:8000/v1"
    path: str = ""
    device: str = "cpu"
    model: str = ""
    key_variable: str = KEY
    temperature: float = 0.0
    max_tokens: int = 512
    max_characters: int = 20_000
    request_seconds: float = 60.0
    attempts: int = 3
    concurrency: int = 16
    directory: str = ""
    max_calls: int = 0
    max_total_tokens: int = 0
    over_budget: Literal["ungraded", "stop"] = "ungraded"

    @property
    def secret(self) -> bytes:
        """What nonces are made of; made once for a directory, and read by nobody else."""
        return _secret(self._home)

    def ask(self, conversations: Sequence[Messages]) -> list[str | None]:
        """The judge's answer to each, in order; None where a request came to nothing.

        EndpointError where all of them did. JudgeBudgetError, or with over_budget: stop a RecipeError, where the budget
        does not hold what is asked. UserError where the server refuses the key or does not know the model.
        """
        fields = {"temperature": self.temperature, "max_tokens": self.max_tokens, "seed": 0}
        endpoint = None if self.path else self._endpoint()
        who = local_judge.identity(self.path) if endpoint is None else [endpoint.url, endpoint.model]
        places = [self._place(who, messages, fields) for messages in conversations]
        kept = [json.loads(place.read_text())["text"] if place.is_file() else None for place in places]
        asked = zip(places, conversations, kept, strict=True)
        new = {place: messages for place, messages, text in asked if text is None}
        if not new:
            return kept
        self._reserve(len(new))
        answers: Sequence[Answer | EndpointError] = (
            local_judge.answers(self.path, self.device, [*new.values()], self.temperature, self.max_tokens)
            if endpoint is None
            else asyncio.run(endpoint.ask([(messages, fields) for messages in new.values()]))
        )
        failed = [one for one in answers if isinstance(one, EndpointError)]
        if len(failed) == len(conversations):
            raise failed[0]
        made = {place: one for place, one in zip(new, answers, strict=True) if isinstance(one, Answer)}
        for place, one in made.items():
            _write(place, {"text": one.text})
        self._spend(sum(one.num_tokens + one.num_prompt_tokens for one in made.values()))
        texts = {place: one.text for place, one in made.items()}
        return [texts.get(place) if text is None else text for place, text in zip(places, kept, strict=True)]

    def _endpoint(self) -> Endpoint:
        url, model = self.url.rstrip("/"), self.model or _only_model(self.url, self.key_variable)
        return Endpoint(url, model, self.concurrency, self.request_seconds, self.attempts, key=self.key_variable)

    @property
    def _home(self) -> Path:
        cache_home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        return Path(self.directory).expanduser() if self.directory else cache_home / "posttrain" / "judge"

    def _place(self, who: Sequence[Any], messages: Messages, fields: Mapping[str, Any]) -> Path:
        asked = [*who, [dict(message) for message in messages], fields]
        digest = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        return self._home / digest[:2] / f"{digest}.json"

    def _reserve(self, calls: int) -> None:
        """Count the calls, or say that they are too many."""
        with _counts(self._home) as counts:
            over_calls = self.max_calls and counts["calls"] + calls > self.max_calls
            over_tokens = self.max_total_tokens and counts["tokens"] >= self.max_total_tokens
            if not over_calls and not over_tokens:
                counts["calls"] += calls
                return
            limit = f"max_calls {self.max_calls}" if over_calls else f"max_total_tokens {self.max_total_tokens}"
            text = f"judge: {calls} more calls after {counts['calls']} with {counts['tokens']} tokens; allowed: {limit}"
        raise RecipeError(text) if self.over_budget == "stop" else JudgeBudgetError(text)

    def _spend(self, tokens: int) -> None:
        with _counts(self._home) as counts:
            counts["tokens"] += tokens


@cache
def _only_model(url: str, key: str) -> str:
    """The server's only model; it is asked once."""
    return find_endpoint(url, None, key=key).model


@cache
def _secret(home: Path) -> bytes:
    home.mkdir(parents=True, exist_ok=True)
    path = home / "secret"
    made = home / f"secret.{os.getpid()}"
    descriptor = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.write(descriptor, secrets.token_bytes(32))
    os.close(descriptor)
    try:
        os.link(made, path)  # the first of all workers wins
    except FileExistsError:
        pass
    finally:
        made.unlink()
    return path.read_bytes()


@contextmanager
def _counts(home: Path) -> Iterator[dict[str, int]]:
    """The run's counts of calls and tokens, held by this process alone; a run is the process that started this one."""
    parent = os.getppid()
    home.mkdir(parents=True, exist_ok=True)
    path = home / f"spent-{parent}-{psutil.Process(parent).create_time():.2f}.json"
    with path.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        counts: dict[str, int] = json.loads(file.read() or '{"calls": 0, "tokens": 0}')
        yield counts
        file.seek(0)
        file.truncate()
        json.dump(counts, file)


def _write(place: Path, content: Mapping[str, Any]) -> None:
    """All of it or nothing, whoever writes beside."""
    place.parent.mkdir(parents=True, exist_ok=True)
    beside = place.with_suffix(f".{os.getpid()}")
    beside.write_text(json.dumps(content))
    beside.replace(place)
