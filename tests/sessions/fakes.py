"""A mailbox whose file is in memory, and everything a session needs around it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

import trio
import trio.testing

from mailfs.locking import LockSettings, LockTable, Requester
from mailfs.sessions.mailbox import Mailbox
from mailfs.sessions.record import FREE, Record, State
from mailfs.sessions.storage import FileState, Times
from mailfs.sessions.surroundings import Surroundings
from tests.locking.fakes import FakeOutside, FakeProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

T = TypeVar("T")


class FakeStore:
    """A file in memory; ``failing`` is raised by the next write."""

    def __init__(self, text: bytes = b"") -> None:
        self.text: bytearray | None = bytearray(text)
        self.inode = 1
        self.changes = 0
        self.synced = 0
        self.times: list[Times] = []
        self.failing: OSError | None = None
        self.owner: tuple[int, int, int] | None = None

    @property
    def content(self) -> bytes:
        assert self.text is not None
        return bytes(self.text)

    def state(self) -> FileState | None:
        if self.text is None:
            return None
        return FileState(self.inode, len(self.text), self.changes)

    def read(self, offset: int, size: int) -> bytes:
        return self.content[offset : offset + size]

    def write(self, offset: int, data: bytes) -> None:
        if self.failing is not None:
            assert self.text is not None
            self.text[offset : offset + 1] = data[:1]  # a short write comes first
            raise self.failing
        assert self.text is not None
        if len(self.text) < offset:
            self.text.extend(bytes(offset - len(self.text)))
        self.text[offset : offset + len(data)] = data
        self.changes += 1

    def reserve(self, offset: int, size: int) -> None:
        assert offset >= 0
        assert size > 0
        self.changes += 1  # fallocate(2) sets mtime

    def truncate(self, size: int) -> None:
        assert self.text is not None
        del self.text[size:]
        self.text.extend(bytes(size - len(self.text)))
        self.changes += 1

    def sync(self) -> None:
        self.synced += 1

    def set_times(self, times: Times) -> None:
        self.times.append(times)
        self.changes += 1

    def create_again(self) -> None:
        self.text = bytearray()
        self.inode += 1

    def rest(self) -> None:
        pass


class FakeSlot:
    """A journal file in memory."""

    def __init__(self, journal: FakeJournal) -> None:
        self.journal = journal
        self.text = bytearray()
        self.record = FREE
        self.marks: list[Record] = []
        self.synced = 0
        self.closed = False
        self.failing: OSError | None = None

    def write(self, position: int, data: bytes) -> None:
        if self.failing is not None:
            raise self.failing
        if len(self.text) < position:
            self.text.extend(bytes(position - len(self.text)))
        self.text[position : position + len(data)] = data

    def read(self, position: int, size: int) -> bytes:
        return bytes(self.text[position : position + size])

    def mark(self, record: Record) -> None:
        if self.failing is not None:
            raise self.failing
        self.record = record
        self.marks.append(record)

    def sync(self) -> None:
        self.synced += 1

    def leave(self) -> None:
        self.closed = True

    def close(self, *, synced: bool = False) -> None:
        self.synced += synced
        self.record = FREE
        self.closed = True
        self.journal.slots.remove(self)


class FakeJournal:
    """Journal files in memory."""

    boot = "this boot"

    def __init__(self) -> None:
        self.slots: list[FakeSlot] = []
        self.last = 0

    def slot(self) -> FakeSlot:
        self.slots.append(FakeSlot(self))
        return self.slots[-1]

    def sequence(self) -> int:
        self.last += 1
        return self.last

    @property
    def records(self) -> list[Record]:
        """What a daemon that comes after us would find."""
        return [slot.record for slot in self.slots if slot.record.state is not State.FREE]


class World:
    """One mailbox called ``alice``, and what came of it."""

    def __init__(self, nursery: trio.Nursery, text: bytes) -> None:
        self.store = FakeStore(text)
        self.outside = FakeOutside()
        self.journal = FakeJournal()
        self.rescued: list[tuple[bytes, str]] = []
        self.notes: list[tuple[str, str]] = []
        self.locks = LockTable(nursery, LockSettings(), lambda _: self.outside)
        around = Surroundings(
            nursery=nursery,
            offload=self.offload,
            journal=self.journal,
            spill_limit=64,
            durable=False,
            rescue=self._rescue,
            note=lambda _, event, detail: self.notes.append((event, detail)),
        )
        self.mailbox = Mailbox(b"alice", self.store, self.locks.lock(b"alice"), around)

    async def offload(self, function: Callable[[], T]) -> T:
        await trio.sleep(0.01)
        return function()

    def _rescue(self, _name: bytes, _uid: int, content: Iterator[bytes], why: str) -> bool:
        self.rescued.append((b"".join(content), why))
        return True

    def client(self, name: str = "prog") -> Requester:
        process = FakeProcess(name)
        return Requester(process=process, uid=process.uid, pid=process.pid)

    def append(self, client: Requester, *texts: bytes) -> None:
        for text in texts:
            session = self.mailbox.draft(client.process, client)
            self.mailbox.write(session, session.size, text)
            self.mailbox.claim_for(session, client.process)

    def save(self, client: Requester, text: bytes) -> None:
        """Truncate and write, as an editor does."""
        session = self.mailbox.draft(client.process, client)
        self.mailbox.check_stale(session)
        session.truncate(0)
        self.mailbox.write(session, 0, text)

    def read(self, client: Requester) -> bytes:
        assert client.process is not None
        self.mailbox.saw(client.process)
        return self.store.content

    async def settled(self) -> None:
        """What was deferred is committed."""
        await trio.testing.wait_all_tasks_blocked()

    async def close(self, client: Requester, patience: float = 2) -> None:
        await self.mailbox.commit(client.process, patience=patience)


@asynccontextmanager
async def world(text: bytes = b"") -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(nursery, text)
        nursery.cancel_scope.cancel()
