"""The replicas of a run: who is asked, who is out of use and how it comes back, and what is counted.

A replica is asked only while it is known to run the weights that a request names, and an answer sampled by others is
not taken. One that fails is put out of use at once; whoever keeps the replicas (the main rank) looks after each of
them, starts its own anew, gives it the weights and lets it back in. A request is at one replica at a time, so that its
answer counts once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import aiohttp

from posttrain.config.schema import ServedSettings
from posttrain.errors import RunError
from posttrain.rollout.served_replica import Replica, ReplicaError, nobody_left
from posttrain.rollout.served_transfer import Transfer, Version

_log = logging.getLogger(__name__)
_MOST_TRIES = 4
_LOOK_SECONDS = 1.0
_START_SECONDS = 0.3
_NEAR = 16  # a prompt's samples stay together, where its keys and values are cached, while that replica is so far ahead


class Pool:
    """All replicas of a run."""

    def __init__(self, replicas: Sequence[Replica], settings: ServedSettings) -> None:
        self.replicas = list(replicas)
        self.counters: dict[str, float] = dict.fromkeys(
            ("requests_asked", "requests_answered", "requests_failed", "requests_retried", "replica_failures",
             "replica_restarts"), 0.0,
        )  # fmt: skip
        self._settings = settings
        self._wanted: tuple[Version, Transfer[Any] | None] | None = None
        self._locks = {replica.url: asyncio.Lock() for replica in self.replicas}
        self._changed = asyncio.Condition()
        self._slots = asyncio.Semaphore(settings.server_requests * len(self.replicas))
        self._keepers: list[asyncio.Task[None]] = []

    @property
    def num_in_use(self) -> int:
        """Replicas that run the version that is wanted."""
        wanted = self._wanted[0].label if self._wanted else None
        return sum(replica.label is not None and replica.label == wanted for replica in self.replicas)

    async def open(self) -> list[dict[str, Any]]:
        """Wait until every replica answers; what each says of itself. RunError for one that does not, in time."""
        # Kept connections are given up before the server does so, which is after 5 s.
        connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=2)
        self._session = aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout())
        found = await asyncio.gather(*map(self._started, self.replicas), return_exceptions=True)
        if failed := [one for one in found if isinstance(one, BaseException)]:
            if not isinstance(failed[0], ReplicaError):
                raise failed[0]
            waiting = [r for r, one in zip(self.replicas, found, strict=True) if isinstance(one, BaseException)]
            raise nobody_left(waiting, f"{len(waiting)} of {len(found)} replicas did not start")
        self._keepers = [asyncio.create_task(self._keep(replica)) for replica in self.replicas]
        return [one for one in found if not isinstance(one, BaseException)]

    async def close(self) -> None:
        """End what is in progress; the processes are their owner's to stop."""
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        await self._session.close()

    async def load(self, published: Version, transfer: Transfer[Any] | None) -> None:
        """Have all replicas run a version, by `transfer`; None: it is the main rank that gives it to them.

        Done when one runs it, and the others do so too or have failed.

        RunError, with the reason of each, where none does within `recovery_seconds`.
        """
        self._wanted = published, transfer
        # One that is being started again is not waited for: its keeper gives it these weights.
        free = [one for one in self.replicas if one.label is not None or not self._locks[one.url].locked()]
        errors = await asyncio.gather(*(self._tend(replica) for replica in free))
        if free == self.replicas and all(error is not None and error.refused for error in errors):
            raise nobody_left(self.replicas, f"no replica took policy version {published.version}")
        await self._usable(published.label, 0)
        if published.label not in {replica.label for replica in self.replicas}:  # given and lost again
            raise nobody_left(self.replicas, f"no replica kept policy version {published.version}")

    async def complete(self, bodies: Sequence[dict[str, Any]], label: str) -> list[dict[str, Any] | ReplicaError]:
        """The answers to requests by replicas that run `label`, in order; an error where a request cannot be answered.

        RunError where no replica is left.
        """
        tasks = [asyncio.create_task(self._answered(body, label)) for body in bodies]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def of_each(self, body: dict[str, Any], label: str) -> list[dict[str, Any]]:
        """The answers of all replicas that run `label`, of one at least; RunError where none is left."""
        while True:
            await self._usable(label, 0)
            asked = [replica for replica in self.replicas if replica.label == label]
            found = await asyncio.gather(*(self._asked(one, body, label) for one in asked), return_exceptions=True)
            for replica, one in zip(asked, found, strict=True):
                if isinstance(one, ReplicaError) and not one.refused:
                    await self._out(replica, one)
                elif isinstance(one, BaseException):
                    raise RunError(f"{replica.url}: {one}") from one
            if answers := [one for one in found if not isinstance(one, BaseException)]:
                return answers

    async def _answered(self, body: dict[str, Any], label: str) -> dict[str, Any] | ReplicaError:
        """The answer to one request, of whichever replica gives it; the last error after `_MOST_TRIES`."""
        self.counters["requests_asked"] += 1
        last: ReplicaError
        async with self._slots:
            for number in range(_MOST_TRIES):
                self.counters["requests_retried"] += number > 0
                replica = await self._usable(label, hash(tuple(body["token_ids"])))
                try:
                    answer = await self._asked(replica, body, label)
                except ReplicaError as error:
                    last = ReplicaError(f"{replica.url}: {error}")
                    if error.refused:
                        break
                    await self._out(replica, error)
                else:
                    self.counters["requests_answered"] += 1
                    return answer
        self.counters["requests_failed"] += 1
        return last

    async def _asked(self, replica: Replica, body: dict[str, Any], label: str) -> dict[str, Any]:
        answer = await replica.generate(self._session, body)
        choice: dict[str, Any] = answer["choices"][0]
        versions = {span["version"] for span in choice.get("weight_versions") or ()}
        if versions != {label}:
            raise ReplicaError(f"asked for weights {label}, it sampled with {', '.join(sorted(versions)) or 'unknown'}")
        return answer

    async def _usable(self, label: str, key: int) -> Replica:
        """The replica to ask next, once there is one that runs `label`; RunError where there is none in time."""
        settings = self._settings
        patience = settings.recovery_seconds + (settings.startup_seconds if settings.replicas else 0)
        what = f"no replica that runs policy version {label.partition('-')[0]} is left, after {patience:g} s"
        try:
            async with asyncio.timeout(patience), self._changed:
                while not (found := [replica for replica in self.replicas if replica.label == label]):
                    if all(replica.given_up for replica in self.replicas):
                        what = f"all replicas were restarted {settings.max_restarts} times, and failed again"
                        raise nobody_left(self.replicas, what)
                    await self._changed.wait()
        except TimeoutError as error:
            raise nobody_left(self.replicas, what) from error
        near = found[key % len(found)]
        return min(found, key=lambda replica: len(replica.calls) - (_NEAR if replica is near else 0))

    async def _out(self, replica: Replica, error: ReplicaError) -> None:
        """Put a replica out of use; its keeper sees to the rest."""
        if replica.label is not None:
            self.counters["replica_failures"] += 1
            _log.warning("%s is out of use: %s", replica.url, error)
        replica.drop(error)
        await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _keep(self, replica: Replica) -> None:
        """Look after one replica, for ever."""
        while not replica.given_up:
            await asyncio.sleep(_LOOK_SECONDS)
            if self._wanted is None:
                continue
            async with self._locks[replica.url]:
                error = await self._look(replica)
                if error is None or error.refused or replica.process is None:
                    continue
                # One failure may be a connection's: a process that is there is looked at twice.
                if not replica.process.alive or await self._look(replica) is not None:
                    await self._restart(replica)

    async def _tend(self, replica: Replica) -> ReplicaError | None:
        async with self._locks[replica.url]:
            return await self._look(replica)

    async def _look(self, replica: Replica) -> ReplicaError | None:
        """See that a replica is there and runs the version that is wanted; why it does not."""
        try:
            await replica.check(self._session)
            assert self._wanted is not None
            if replica.label != self._wanted[0].label:
                await self._give(replica, *self._wanted)
                await self._tell()
        except ReplicaError as error:
            await self._out(replica, error)
            return error
        return None

    async def _give(self, replica: Replica, published: Version, transfer: Transfer[Any] | None) -> None:
        """Have a replica run a version, or, where that is another rank's to do, see whether it does."""
        if await replica.running(self._session) == published.label:
            replica.label = published.label
        elif transfer is not None:
            await transfer.load(self._session, replica, published)

    async def _restart(self, replica: Replica) -> None:
        assert replica.process is not None
        if replica.restarts >= self._settings.max_restarts:
            replica.given_up = True
            await self._tell()
            return
        replica.restarts += 1
        self.counters["replica_restarts"] += 1
        _log.warning("%s is started again (%d of %d)", replica.url, replica.restarts, self._settings.max_restarts)
        await asyncio.to_thread(replica.process.stop)
        with suppress(ReplicaError):  # the next look says why, and tries again
            await self._started(replica)

    async def _started(self, replica: Replica) -> dict[str, Any]:
        """Start a replica where it is ours, and wait until it answers; what it says of itself."""
        process = replica.process
        if process is not None and not process.alive:
            process.start()
        try:
            async with asyncio.timeout(self._settings.startup_seconds):
                while True:
                    with suppress(ReplicaError):
                        await replica.check(self._session)
                        break
                    if process is not None and not process.alive:
                        raise ReplicaError("it ended while it started")
                    await asyncio.sleep(_START_SECONDS)
            return await replica.describe(self._session)
        except TimeoutError:
            error = ReplicaError(f"no answer within {self._settings.startup_seconds:g} s of its start")
        except ReplicaError as raised:
            error = raised
        replica.last_error = str(error)
        raise error
