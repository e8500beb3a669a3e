"""Being told when a lock file disappears from the spool.

One inotify descriptor serves all waiters. A directory is watched only while somebody waits for a
lock file in it, so that a spool without waiters causes no events, however busy it is. An event is a
hint and never more: whoever waits also polls, because kernel locks send no events, a network
filesystem reports only what this host does, and the kernel may refuse a watch or drop events.
"""

from __future__ import annotations

import contextlib
import logging
import os
from typing import TYPE_CHECKING

import trio
from inotify_simple import INotify, flags

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailfs.spool.door import Door, Path

_log = logging.getLogger(__name__)

_REMOVALS = flags.DELETE | flags.MOVED_FROM | flags.ONLYDIR


class Bell:
    """Rings when a lock file may have gone. A ring before the wait counts for it."""

    __slots__ = ("_rung",)

    def __init__(self) -> None:
        self._rung = trio.Event()

    def ring(self) -> None:
        """Wake the waiter, or let its next wait return at once."""
        self._rung.set()

    async def wait(self, seconds: float) -> bool:
        """Wait for a ring, at most ``seconds``; say whether there was one."""
        with trio.move_on_after(seconds):
            await self._rung.wait()
        rung = self._rung.is_set()
        if rung:
            self._rung = trio.Event()
        return rung


class _Directory:
    """A watched directory and who waits for which name in it."""

    __slots__ = ("bells", "watch")

    def __init__(self, watch: int) -> None:
        self.watch = watch
        self.bells: dict[bytes, set[Bell]] = {}


class SpoolWatch:
    """Rings bells for removed lock files, as long as `run` runs."""

    def __init__(self, door: Door) -> None:
        """Open the inotify descriptor; without one (EMFILE) nothing ever rings."""
        self._door = door
        self._directories: dict[Path, _Directory] = {}
        self._inotify: INotify | None = None
        try:
            self._inotify = INotify(nonblocking=True)
        except OSError as error:
            _log.warning("no inotify, foreign locks are polled only: %s", error)

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        inotify, self._inotify = self._inotify, None
        if inotify is not None:
            inotify.close()

    @contextlib.contextmanager
    def removals(self, path: Path) -> Iterator[Bell]:
        """Give a bell that rings whenever ``path`` is removed or renamed away, inside the block."""
        bell = Bell()
        directory = self._watched(path[:-1])
        if directory is None:
            yield bell
            return
        directory.bells.setdefault(path[-1], set()).add(bell)
        try:
            yield bell
        finally:
            bells = directory.bells[path[-1]]
            bells.discard(bell)
            if not bells:
                del directory.bells[path[-1]]
            if not directory.bells:
                self._unwatch(path[:-1], directory)

    def _watched(self, path: Path) -> _Directory | None:
        if self._inotify is None:
            return None
        if (known := self._directories.get(path)) is not None:
            return known
        try:
            with self._door.held((*path, b"any")) as (fd, _):
                watch = self._inotify.add_watch(f"/proc/self/fd/{fd}", _REMOVALS)
        except OSError as error:  # ENOSPC: max_user_watches
            _log.debug("cannot watch %r: %s", path, error)
            return None
        directory = self._directories[path] = _Directory(watch)
        return directory

    def _unwatch(self, path: Path, directory: _Directory) -> None:
        if self._directories.get(path) is directory:
            del self._directories[path]
            with contextlib.suppress(OSError):  # the kernel drops the watch of a removed directory
                if self._inotify is not None:
                    self._inotify.rm_watch(directory.watch)

    async def run(self) -> None:
        """Deliver events until cancelled."""
        if self._inotify is None:
            await trio.sleep_forever()
            return
        while True:
            await trio.lowlevel.wait_readable(self._inotify.fileno())
            self._deliver(self._inotify)

    def _deliver(self, inotify: INotify) -> None:
        by_watch = {directory.watch: directory for directory in self._directories.values()}
        for event in inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                gone = list(self._directories.values())
            else:
                gone = [by_watch[event.wd]] if event.wd in by_watch else []
            name = os.fsencode(event.name)
            for directory in gone:
                if event.mask & (flags.Q_OVERFLOW | flags.IGNORED):
                    waiting = [bell for bells in directory.bells.values() for bell in bells]
                else:
                    waiting = list(directory.bells.get(name, ()))
                for bell in waiting:
                    bell.ring()
