"""What each process knows of a mailbox: up to where it has read it, and when.

By it a save is judged: what came after the part its writer knows is kept behind it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import trio

from mailfs.sessions.session import Base

if TYPE_CHECKING:
    from mailfs.locking.model import Process


@dataclass(slots=True)
class Seen:
    """What a process has read of the mailbox, and when (seconds, trio's clock)."""

    base: Base
    at: float


class Readers:
    """The readers of one mailbox; those that are gone are forgotten."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Process, Seen] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._seen)

    def saw(self, process: Process, now: Base) -> None:
        """It has read all there is."""
        self._seen[process] = Seen(now, trio.current_time())

    def saved(self, process: Process | None, rewrites: int, size: int) -> None:
        """It has put its own ``size`` bytes in the mailbox's place; what follows them it does not know."""
        if process is not None:
            self.saw(process, Base(rewrites, size, size))

    def appended(self, process: Process | None, before: Base, now: Base) -> None:
        """It has appended; what it knows grows by that, unless others had appended before it.

        Then its own bytes are somewhere behind theirs: all that is between what it knew and the end is compared message
        by message if it ever saves.
        """
        seen = self._seen.get(process) if process is not None else None
        if process is None or seen is None or seen.base.rewrites != now.rewrites:
            return
        known = now.size if seen.base.size == before.size else seen.base.size
        self.saw(process, Base(now.rewrites, known, now.size))

    def base_for(
        self, process: Process | None, locked: float | None, now: Base
    ) -> tuple[Base, bool]:
        """The state a process builds on when it writes, and whether it is trusted to know what it does.

        Whoever holds an explicit exclusive lock and has read the mailbox under it is trusted as it is. A process that
        never read the mailbox to its end means the mailbox as it is now.

        Args:
            process: who writes.
            locked: since when it has the lock; None if it has none.
            now: the mailbox as it is.
        """
        seen = self._seen.get(process) if process is not None else None
        if seen is None or (locked is not None and seen.at >= locked):
            return now, locked is not None
        return seen.base, False
