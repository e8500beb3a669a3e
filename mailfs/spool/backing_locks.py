"""The backing locks of a whole spool.

Ten thousand mailboxes may be known and a few be locked: the object of a mailbox exists while
somebody refers to it, costs descriptors while it is held, and a busy one is found again by its
path, so that there are never two that fight each other.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import trio

from mailfs.spool.backing_lock import BackingLock, BackingSettings
from mailfs.spool.foreign import MayWrite, owner_may_write
from mailfs.spool.spool_watch import SpoolWatch

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.spool.door import Door, Path


class BackingLocks:
    """One `BackingLock` for each mailbox of a spool, and what keeps the held ones fresh.

    Args:
        door: the way to the spool.
        settings: which locks to take.
        may_write: whose lock files count.
        clock: monotonic seconds.

    """

    def __init__(
        self,
        door: Door,
        settings: BackingSettings | None = None,
        may_write: MayWrite = owner_may_write,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._door = door
        self.settings = settings or BackingSettings()
        self._may_write = may_write
        self._clock = clock
        self._watch = SpoolWatch(door)
        self._known: WeakValueDictionary[Path, BackingLock] = WeakValueDictionary()
        self.held: set[BackingLock] = set()

    def lock_for(self, path: Path) -> BackingLock:
        """Give the one lock of a mailbox; it is forgotten when nobody refers to it or holds it."""
        lock = self._known.get(path)
        if lock is None:
            lock = self._known[path] = BackingLock(
                self._door,
                path,
                self.settings,
                self._may_write,
                self._clock,
                watch=self._watch,
                among=self.held,
            )
        return lock

    async def run(self) -> None:
        """Watch the spool and keep held locks fresh, until cancelled; nothing is released then."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch.run)
            nursery.start_soon(self.keep_fresh)

    async def keep_fresh(self) -> None:
        """Touch every held lock each ``touch_every`` seconds, until cancelled."""
        while True:
            await trio.sleep(self.settings.touch_every)
            for lock in list(self.held):
                lock.touch()
                await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Release what is still held and stop watching; after `run` has ended."""
        for lock in list(self.held):
            lock.release()
        self._watch.close()
