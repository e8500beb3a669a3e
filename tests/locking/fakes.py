"""Processes, backing locks and a clock that exist only in tests."""

from __future__ import annotations

import functools
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from mailfs.errors import Cause, Refused
from mailfs.locking import Ending, LockEvent, LockSettings, LockTable, MailboxLock, Mode, Requester

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from mailfs.locking import Process

_pids = count(100)


class FakeProcess:
    """A process that ends when the test says so."""

    def __init__(
        self, name: str = "prog", parent: FakeProcess | None = None, uid: int = 1000
    ) -> None:
        self._pid = next(_pids)
        self._name = name
        self._uid = uid
        self.up: FakeProcess | None = parent
        self._ending: Ending | None = None
        self._over = trio.Event()

    def __repr__(self) -> str:
        return f"<{self._name} {self._pid}>"

    @property
    def pid(self) -> int:
        return self._pid

    @property
    def uid(self) -> int:
        return self._uid

    @property
    def name(self) -> str:
        return self._name

    @property
    def alive(self) -> bool:
        return self._ending is None

    @property
    def parent(self) -> Process | None:
        return self.up

    async def ended(self) -> Ending:
        await self._over.wait()
        assert self._ending is not None
        return self._ending

    def die(self, ending: Ending = Ending.NORMAL) -> None:
        self._ending = ending
        self._over.set()

    def child(self, name: str = "child", uid: int | None = None) -> FakeProcess:
        return FakeProcess(name, self, self._uid if uid is None else uid)


class FakeOutside:
    """A backing lock whose foreign holder the test controls."""

    def __init__(self) -> None:
        self.mode: Mode | None = None
        self.foreign = False
        self.error: OSError | None = None
        self.takes = 0
        self.acquiring = 0
        self._changed = trio.Event()

    def set_foreign(self, foreign: bool) -> None:
        assert not foreign or self.mode in (None, Mode.READ)
        self.foreign = foreign
        self._changed.set()
        self._changed = trio.Event()

    def try_acquire(self, mode: Mode) -> bool:
        if self.error is not None:
            raise self.error
        if self.foreign:
            return False
        assert self.mode is None or mode >= self.mode
        self.mode = mode
        self.takes += 1
        return True

    async def acquire(self, mode: Mode) -> None:
        self.acquiring += 1
        try:
            while not self.try_acquire(mode):
                await self._changed.wait()
        finally:
            self.acquiring -= 1

    def fail(self, error: OSError) -> None:
        self.error = error
        self._changed.set()
        self._changed = trio.Event()

    def weaken(self, mode: Mode) -> None:
        assert self.mode is not None
        self.mode = mode

    def release(self) -> None:
        assert self.mode is not None
        self.mode = None

    @property
    def held(self) -> bool:
        return self.mode is not None

    def holder(self) -> str | None:
        return "pid 7 on otherhost" if self.foreign else None


@dataclass
class World:
    """A lock table with everything around it."""

    nursery: trio.Nursery
    table: LockTable = field(init=False)
    outsides: dict[bytes, FakeOutside] = field(default_factory=dict)
    events: list[LockEvent] = field(default_factory=list)
    settings: LockSettings = field(default_factory=LockSettings)

    def __post_init__(self) -> None:
        self.table = LockTable(self.nursery, self.settings, self.outside, self.events.append)

    def outside(self, key: bytes) -> FakeOutside:
        return self.outsides.setdefault(key, FakeOutside())

    @property
    def lock(self) -> MailboxLock:
        return self.table.lock(b"alice")

    def seen(self) -> list[str]:
        return [event.what for event in self.events]


@asynccontextmanager
async def world(settings: LockSettings | None = None) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(nursery, settings=settings or LockSettings())
        nursery.cancel_scope.cancel()


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test under a clock that jumps to the next time anything happens."""

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        clock = trio.testing.MockClock(autojump_threshold=0)
        trio.run(functools.partial(test, *args, **kwargs), clock=clock)

    return run


def req(process: FakeProcess | None = None, *, uid: int | None = None, **more: Any) -> Requester:
    if process is None:
        return Requester(None, 1000 if uid is None else uid, 0, **more)
    return Requester(process, process.uid if uid is None else uid, process.pid, **more)


def someone(name: str = "prog", **more: Any) -> Requester:
    """A request by a process nobody is related to."""
    return req(FakeProcess(name), **more)


class Task:
    """A request running in the background, and what became of it."""

    def __init__(self, nursery: trio.Nursery, call: Callable[[], Awaitable[Any]]) -> None:
        self.value: Any = None
        self.refused: Cause | None = None
        self.done = False
        self.cancelled = False
        self.at: float | None = None
        self.over = trio.Event()
        self.scope = trio.CancelScope()
        nursery.start_soon(self._run, call)

    async def _run(self, call: Callable[[], Awaitable[Any]]) -> None:
        with self.scope:
            try:
                self.value = await call()
            except Refused as refusal:
                self.refused = refusal.cause
            self.done = True
            self.at = trio.current_time()
        self.cancelled = not self.done
        self.over.set()


async def settle() -> None:
    """Let everything happen that does not need time."""
    await trio.testing.wait_all_tasks_blocked()
