"""What each process knows of a mailbox: up to where it has read it, and when.

By it a save is judged: what came after the part its writer knows is kept behind it. There are two kinds of readers.

Those whose reads we see: what a process knows is what was there when it last read *to the end*.

Those whose reads we do not see (the kernel reads the real file for them): what such a process knows lies between the
mailbox at its open and the mailbox at its close, or now. That is its *window*. What was there at the open it has
surely read, what came after the close it cannot have read, and messages between are compared one by one with what it
saves. Several windows of one process count as one from the first open to the last close: an editor opens the mailbox
once more to make its backup, and has not read what that copies. A window that saw a rewrite tells nothing: a save from
it is stale, unless the process has opened the mailbox again since.

Who takes a lock, has the mailbox open and gives the lock back without a change has read what there was: what else did
it lock for? So a mail reader that looks at new mail under its lock (mutt) knows it for sure.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import trio

from mailfs.sessions.session import Base

if TYPE_CHECKING:
    from mailfs.locking.model import Process


GONE = -1
"""Stands for the number of rewrites where what was read is a file that another was renamed over."""


@dataclass(slots=True)
class Seen:
    """What a process has read of the mailbox, and when (seconds, trio's clock)."""

    base: Base
    at: float

    def __or__(self, other: Seen) -> Seen:
        """It may know either: what was read after a rewrite counts, else all that it may have read."""
        if self.base.rewrites != other.base.rewrites:
            return max(self, other, key=lambda seen: seen.base.rewrites)
        size = min(self.base.size, other.base.size)
        horizon = max(self.base.horizon, other.base.horizon)
        return Seen(Base(self.base.rewrites, size, horizon), max(self.at, other.at))


@dataclass(eq=False, slots=True)
class Window:
    """An open file whose reads we do not see.

    Attributes:
        process: who opened it.
        since: what it knew when it opened it, or what it has been known to know since; ``at`` is when.

    """

    process: Process
    since: Seen

    def until(self, now: Base) -> Seen:
        """What may have been read through it if it ends now."""
        base, at = self.since.base, self.since.at
        if base.rewrites == now.rewrites:
            base = base._replace(horizon=max(base.horizon, now.size))
        return Seen(base, at)


class Readers:
    """The readers of one mailbox; those that are gone are forgotten."""

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Process, Seen] = WeakKeyDictionary()
        self._windows: WeakKeyDictionary[Process, list[Window]] = WeakKeyDictionary()

    def __len__(self) -> int:
        return len(self._seen) + len(self._windows)

    # Unseen reads

    def opened(self, process: Process, now: Base) -> Window:
        """It has opened the mailbox, and we shall not see what it reads."""
        window = Window(process, Seen(now, trio.current_time()))
        self._windows.setdefault(process, []).append(window)
        return window

    def closed(self, window: Window, now: Base) -> None:
        """It cannot read any more through this file."""
        process = window.process
        windows = self._windows.get(process)
        if windows is None or window not in windows:
            return
        windows.remove(window)
        if not windows:
            del self._windows[process]
        read, seen = window.until(now), self._seen.get(process)
        self._seen[process] = read if seen is None else seen | read

    def unlocked(self, process: Process, locked: float, now: Base) -> None:
        """It gives back a lock that it has had since ``locked`` (seconds, trio's clock)."""
        known = self._known(process, now)
        if process in self._windows and known is not None and known.at < locked:
            self._knows(process, now)

    # Reads that are seen, and writes

    def saw(self, process: Process, now: Base) -> None:
        """It has read all there is."""
        self._knows(process, now)

    def saved(self, process: Process | None, rewrites: int, size: int) -> None:
        """It has put its own ``size`` bytes in the mailbox's place; what follows them it does not know."""
        if process is not None:
            self._knows(process, Base(rewrites, size, size))

    def appended(self, process: Process | None, before: Base, now: Base) -> None:
        """It has appended; what it knows grows by that, unless others had appended before it.

        Then its own bytes are somewhere behind theirs: all that is between what it knew and the end is compared message
        by message if it ever saves.
        """
        seen = self._known(process, before)
        if process is None or seen is None or seen.base.rewrites != now.rewrites:
            return
        known = now.size if seen.base.size == before.size else seen.base.size
        self._knows(process, Base(now.rewrites, known, now.size))

    # What follows

    def base_for(
        self, process: Process | None, locked: float | None, now: Base
    ) -> tuple[Base, bool]:
        """The state a process builds on when it writes, and whether it is trusted to know what it does.

        Whoever holds an explicit exclusive lock and has read the mailbox under it, or opened it to read unseen, is
        trusted as it is, unless it was another file: who opens the mailbox, waits for its lock, and meanwhile a new
        file takes its place, reads the old one under the lock (Python's mailbox). A process that never read the mailbox
        to its end means the mailbox as it is now.

        Args:
            process: who writes.
            locked: since when it has the lock; None if it has none.
            now: the mailbox as it is.
        """
        seen = self._known(process, now)
        if seen is None:
            return now, locked is not None
        if locked is not None and seen.at >= locked and seen.base.rewrites != GONE:
            return now, True
        return seen.base, False

    def _known(self, process: Process | None, now: Base) -> Seen | None:
        if process is None:
            return None
        seen = self._seen.get(process)
        for window in self._windows.get(process, ()):
            read = window.until(now)
            seen = read if seen is None else seen | read
        return seen

    def _knows(self, process: Process, base: Base) -> None:
        """Where it is known for sure what a process knows, its windows begin anew."""
        seen = Seen(base, trio.current_time())
        self._seen[process] = seen
        for window in self._windows.get(process, ()):
            window.since = seen
