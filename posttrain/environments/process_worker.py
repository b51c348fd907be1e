"""The process that holds episodes: started by `environments.processes`, one call at a time, over one pipe."""

from __future__ import annotations

import importlib
import logging
import os
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from posttrain.children import die_with_parent
from posttrain.errors import PosttrainError


@dataclass(frozen=True)
class Setup:
    """What the process is told first: the class of an episode, "module:Class", and its settings."""

    make: str
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """A method of one episode; "reset" makes the episode first, "close" forgets it."""

    episode: int
    method: str
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class Answer:
    """What a call returned."""

    value: Any = None


@dataclass(frozen=True)
class Raised:
    """What a call raised: an error of ours as it is, any other as text."""

    text: str
    error: PosttrainError | None = None


def main(descriptor: int) -> None:
    """Serve the pipe `descriptor` until it closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(descriptor, False)
    logging.disable(logging.CRITICAL)
    die_with_parent()
    pipe: Connection[Any, Any] = Connection(descriptor)
    episodes: dict[int, Any] = {}
    try:
        setup: Setup = pipe.recv()
        try:
            module, name = setup.make.split(":")
            make: Callable[[], Any] = partial(getattr(importlib.import_module(module), name), **setup.settings)
        except Exception as error:  # the environment's file runs here
            pipe.send(_raised(error))
            return
        pipe.send(Answer())
        while True:
            call: Call = pipe.recv()
            pipe.send(_answer(call, episodes, make))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent is gone
    finally:
        for episode in episodes.values():
            _quietly(episode.close)


def _answer(call: Call, episodes: dict[int, Any], make: Callable[[], Any]) -> Answer | Raised:
    try:
        if call.method == "reset":
            episodes[call.episode] = make()
        if call.method == "close":
            episode = episodes.pop(call.episode, None)
            return Answer(None if episode is None else episode.close())
        method = getattr(episodes[call.episode], call.method, None)
        return Answer(None if method is None else method(*call.arguments))
    except Exception as error:  # the boundary of environments: their code runs here
        return _raised(error)


def _raised(error: Exception) -> Raised:
    text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return Raised(text, error if isinstance(error, PosttrainError) else None)


def _quietly(close: Callable[[], Any]) -> None:
    try:
        close()
    except Exception as error:  # the process ends anyway
        logging.getLogger(__name__).debug("%s", error)
