"""Locks of files that are not mailboxes, flock(2) and fcntl(2), as on a local filesystem.

The two protocols know nothing of each other. Within flock the open file description (``handle``)
owns, within fcntl the lock owner and the byte range. A request that will not wait is refused only
by what is held. Waiters are granted in order of arrival, each as soon as nothing held denies it: as
on Linux, one that could be granted does not wait behind one that cannot. fcntl waits that would
close a cycle of lock owners, over all files, are refused (EDEADLK); flock has no such error.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Cause, Refused
from mailfs.locking.mailbox import Conflict
from mailfs.locking.ranges import OFFSET_MAX, Range, carve, clash
from mailfs.locking.waiting import Parked

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from mailfs.locking.model import Mode


@dataclass(slots=True, eq=False)
class _Wait:
    """A parked request; ``owner`` is a handle for flock."""

    file: _File
    posix: bool
    owner: Hashable
    mode: Mode
    start: int
    end: int
    pid: int
    uid: int
    place: Parked[None] = field(default_factory=Parked)


@dataclass(slots=True, eq=False)
class _File:
    """What is held and waited for on one file."""

    key: Hashable
    flocks: dict[Hashable, tuple[Mode, int]] = field(default_factory=dict)
    records: dict[Hashable, list[Range]] = field(default_factory=dict)
    pids: dict[Hashable, int] = field(default_factory=dict)
    waiters: dict[_Wait, None] = field(default_factory=dict)

    def blockers(self, wait: _Wait) -> Iterator[Hashable]:
        """The owners that deny a request."""
        if wait.posix:
            for owner, held in self.records.items():
                if owner != wait.owner and clash(held, wait.mode, wait.start, wait.end):
                    yield owner
        else:
            for handle, (mode, _) in self.flocks.items():
                if handle != wait.owner and mode.conflicts(wait.mode):
                    yield handle

    def grant(self, wait: _Wait) -> None:
        """Put a lock in force. Raises Refused for too many ranges."""
        if wait.posix:
            held = carve(self.records.get(wait.owner, ()), wait.mode, wait.start, wait.end)
            self.records[wait.owner] = held
            self.pids[wait.owner] = wait.pid
        else:
            self.flocks[wait.owner] = (wait.mode, wait.pid)


class FileLocks:
    """Locks on any number of files; a file without locks costs nothing.

    Args:
        max_waiters: parked requests in all.
        max_waiters_per_uid: parked requests of one user; root is exempt.
    """

    def __init__(self, max_waiters: int = 10_000, max_waiters_per_uid: int = 1_000) -> None:
        self._files: dict[Hashable, _File] = {}
        self._waiting: dict[_Wait, None] = {}
        self._per_uid: Counter[int] = Counter()
        self._max = max_waiters
        self._max_per_uid = max_waiters_per_uid

    def __repr__(self) -> str:
        return f"<FileLocks {len(self._files)} files; {len(self._waiting)} waiting>"

    def waiting(self, uid: int | None = None) -> int:
        """How many requests are parked, of one user or of all."""
        return len(self._waiting) if uid is None else self._per_uid[uid]

    # The flock protocol

    def flock(
        self, key: Hashable, handle: Hashable, mode: Mode | None, *, pid: int = 0, uid: int = 0
    ) -> None:
        """Lock, convert or (None) unlock without waiting; a refused conversion loses the old lock.

        Raises:
            Refused: LOCK_HELD.
        """
        wait = self._flock(key, handle, mode, pid, uid)
        if wait is not None:
            self._try(wait)

    async def flock_wait(
        self, key: Hashable, handle: Hashable, mode: Mode | None, *, pid: int = 0, uid: int = 0
    ) -> None:
        """As `flock`, but wait.

        Raises:
            Refused: TOO_MANY_WAITERS.
        """
        wait = self._flock(key, handle, mode, pid, uid)
        if wait is not None:
            await self._wait(wait)

    def _flock(
        self, key: Hashable, handle: Hashable, mode: Mode | None, pid: int, uid: int
    ) -> _Wait | None:
        """What is left to be asked for after a conversion gave up the old lock."""
        held = self._files.get(key)
        old = held.flocks.get(handle) if held is not None else None
        if old is not None and old[0] is mode:
            return None
        if mode is None or (old is not None and mode > old[0]):
            self.drop_handle(key, handle)
        if mode is None:
            return None
        file = self._file(key)
        return _Wait(file, False, handle, mode, 0, OFFSET_MAX, pid, uid)

    def drop_handle(self, key: Hashable, handle: Hashable) -> None:
        """The last descriptor of a handle was closed."""
        file = self._files.get(key)
        if file is not None and file.flocks.pop(handle, None) is not None:
            self._serve(file)

    # The fcntl protocol

    def setlk(
        self,
        key: Hashable,
        owner: Hashable,
        mode: Mode | None,
        start: int = 0,
        end: int = OFFSET_MAX,
        *,
        pid: int = 0,
        uid: int = 0,
    ) -> None:
        """Lock or (None) unlock the bytes ``start`` to ``end`` without waiting.

        Raises:
            Refused: LOCK_HELD; TOO_MANY_WAITERS (ENOLCK) for too many ranges.
        """
        if mode is None:
            self._unlock(key, owner, start, end)
        else:
            self._try(_Wait(self._file(key), True, owner, mode, start, end, pid, uid))

    async def setlk_wait(
        self,
        key: Hashable,
        owner: Hashable,
        mode: Mode | None,
        start: int = 0,
        end: int = OFFSET_MAX,
        *,
        pid: int = 0,
        uid: int = 0,
    ) -> None:
        """As `setlk`, but wait, keeping what the owner holds.

        Raises:
            Refused: DEADLOCK; TOO_MANY_WAITERS.
        """
        if mode is None:
            self._unlock(key, owner, start, end)
        else:
            wait = _Wait(self._file(key), True, owner, mode, start, end, pid, uid)
            await self._wait(wait)

    def getlk(
        self, key: Hashable, owner: Hashable, mode: Mode, start: int = 0, end: int = OFFSET_MAX
    ) -> Conflict | None:
        """The first record lock that would refuse this one."""
        file = self._files.get(key)
        if file is None:
            return None
        for other, held in file.records.items():
            if other != owner and (hit := clash(held, mode, start, end)) is not None:
                return Conflict(hit.mode, hit.start, hit.end, file.pids[other])
        return None

    def drop_owner(self, key: Hashable, owner: Hashable) -> None:
        """A process closed a descriptor of the file: all its record locks go."""
        self._unlock(key, owner, 0, OFFSET_MAX)

    def _unlock(self, key: Hashable, owner: Hashable, start: int, end: int) -> None:
        file = self._files.get(key)
        held = file.records.get(owner) if file is not None else None
        if file is None or held is None:
            return
        left = carve(held, None, start, end)
        if left:
            file.records[owner] = left
        else:
            del file.records[owner], file.pids[owner]
        self._serve(file)

    # Granting and waiting

    def _file(self, key: Hashable) -> _File:
        file = self._files.get(key)
        if file is None:
            file = self._files[key] = _File(key)
        return file

    def _try(self, wait: _Wait) -> None:
        file = wait.file
        try:
            if next(file.blockers(wait), None) is not None:
                raise Refused(Cause.LOCK_HELD)
            file.grant(wait)
        finally:
            self._serve(
                file
            )  # a weaker lock may let others in; a refused one may have been the last

    async def _wait(self, wait: _Wait) -> None:
        file = wait.file
        try:
            await trio.lowlevel.checkpoint_if_cancelled()
            if next(file.blockers(wait), None) is None:
                file.grant(wait)
                return
            self._line_up(wait)
        finally:
            self._serve(file)
        await wait.place.park(lambda: self._abandon(wait))

    def _line_up(self, wait: _Wait) -> None:
        if wait.posix and self._closes_cycle(wait):
            raise Refused(Cause.DEADLOCK)
        if len(self._waiting) >= self._max or (
            wait.uid != 0 and self._per_uid[wait.uid] >= self._max_per_uid
        ):
            raise Refused(Cause.TOO_MANY_WAITERS)
        wait.file.waiters[wait] = None
        self._waiting[wait] = None
        self._per_uid[wait.uid] += 1

    def _leave(self, wait: _Wait) -> None:
        """Take a waiter out; it never kept anybody else waiting."""
        del wait.file.waiters[wait], self._waiting[wait]
        self._per_uid[wait.uid] -= 1
        if not self._per_uid[wait.uid]:
            del self._per_uid[wait.uid]

    def _abandon(self, wait: _Wait) -> None:
        """A waiter was cancelled."""
        self._leave(wait)
        self._forget(wait.file)

    def _serve(self, file: _File) -> None:
        for wait in tuple(file.waiters):
            if next(file.blockers(wait), None) is None:
                self._leave(wait)
                try:
                    file.grant(wait)
                except Refused as refusal:
                    wait.place.refuse(refusal)
                else:
                    wait.place.grant(None)
        self._forget(file)

    def _forget(self, file: _File) -> None:
        if not (file.flocks or file.records or file.waiters):
            self._files.pop(file.key, None)

    def _closes_cycle(self, wait: _Wait) -> bool:
        """Whether an owner this request would wait for waits, directly or not, for its own."""
        waits: dict[Hashable, list[_Wait]] = {}
        for parked in self._waiting:
            if parked.posix:
                waits.setdefault(parked.owner, []).append(parked)
        stack = [wait]
        seen: set[Hashable] = set()
        while stack:
            current = stack.pop()
            for owner in current.file.blockers(current):
                if owner == wait.owner:
                    return True
                if owner not in seen:
                    seen.add(owner)
                    stack += waits.get(owner, ())
        return False
