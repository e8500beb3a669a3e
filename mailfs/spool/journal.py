"""The journal on disk: ``.mailfs/journal/``, one file for each draft that must survive us (docs/journal.md).

A file that is not needed any more is marked free and used again: then a commit costs a few writes and no work on
directories. The first file is made, with room for a message, when the journal is opened, so that a full disk does not
keep a commit from its entry.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from typing import TYPE_CHECKING

from mailfs.sessions.record import DATA, FREE, PLACE, Damaged, Record, State, encode, newest
from mailfs.spool.fileio import allocate, read_all, write_all
from mailfs.spool.private import JOURNAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailfs.spool.door import Door

log = logging.getLogger(__name__)

ROOM = 256 * 1024
"""Bytes kept allocated in a file that waits for its next use: most messages fit."""

SPARE = 8
"""Files kept for their next use."""


class JournalFile:
    """Implements `mailfs.sessions.storage.Slot` on one file of the journal.

    Args:
        journal: where it belongs; None if it is only looked at.
        name: of the file.
        fd: it, open.

    """

    def __init__(self, journal: JournalDirectory | None, name: bytes, fd: int) -> None:
        self.name = name
        self._journal = journal
        self._fd = fd
        self._generation = 0
        self._state = State.FREE
        self._end = 0  # of what was written to the log, bytes
        self._known = False  # its directory entry is on the disk

    def __repr__(self) -> str:
        return f"<journal file {self.name!r}, generation {self._generation}, {self._state.value}>"

    def header(self) -> tuple[int, Record] | Damaged:
        """What it says of itself, and with which generation. Raises OSError."""
        found = newest(os.pread(self._fd, DATA, 0))
        if not isinstance(found, Damaged):
            self._generation, self._state = found[0], found[1].state
        self._end = max(0, os.fstat(self._fd).st_size - DATA)
        return found

    def write(self, position: int, data: bytes) -> None:
        """Write all of ``data`` to the log."""
        self._end = max(self._end, position + len(data))
        write_all(self._fd, data, DATA + position)

    def read(self, position: int, size: int) -> bytes:
        """Read from the log; fewer bytes only if it is shorter."""
        return read_all(self._fd, size, DATA + position)

    def mark(self, record: Record) -> None:
        """Write the header's other place."""
        generation = self._generation + 1
        if record.state is not State.FREE:
            self._state = record.state  # even if that fails: then who knows what is there
        write_all(self._fd, encode(record, generation), PLACE * (generation % 2))
        self._generation, self._state = generation, record.state

    def sync(self) -> None:
        """Log, header and, the first time, the file's name."""
        os.fdatasync(self._fd)
        if not self._known and self._journal is not None:
            self._journal.sync_names()
            self._known = True

    def close(self, *, synced: bool = False) -> None:
        """Mark it free and give it back; a file that cannot even be marked goes away, now or later."""
        try:
            if self._state is not State.FREE:
                self.mark(FREE)
            if synced:
                self.sync()
            if self._end > ROOM:
                os.ftruncate(self._fd, DATA + ROOM)
            self._end = 0
        except OSError as error:
            log.error("a file of the journal cannot be given back: %s", error)  # noqa: TRY400
            self.remove()
            return
        if self._journal is not None:
            self._journal.give_back(self)

    def leave(self) -> None:
        """Close the descriptor; the record stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def remove(self) -> None:
        """Remove the file, record and all. Never raises."""
        self.leave()
        if self._journal is not None:
            self._journal.forget(self.name)


class JournalDirectory:
    """Implements `mailfs.sessions.storage.Journal`. Its methods may be called from threads.

    Args:
        door: the spool; ``.mailfs`` is there.

    """

    def __init__(self, door: Door) -> None:
        self._door = door
        self.boot = boot_id()
        self._spare: list[JournalFile] = []
        self._to_remove: list[bytes] = []
        taken = [int(name) for name in names(door)]
        self._names = itertools.count(max(taken, default=0) + 1)
        self._sequence = itertools.count(1)

    def left(self) -> list[tuple[JournalFile, Record | Damaged]]:
        """The files of earlier daemons, in the order in which their drafts were journalled. Raises OSError."""
        found: list[tuple[JournalFile, Record | Damaged]] = []
        for name in names(self._door):
            file = JournalFile(self, name, self._door.open((*JOURNAL, name), os.O_RDWR))
            header = file.header()
            found.append((file, header if isinstance(header, Damaged) else header[1]))
        found.sort(key=_order)
        last = max((_order(each)[0] for each in found), default=0)
        self._sequence = itertools.count(last + 1)
        return found

    def prepare(self) -> None:
        """Have a file in reserve. Raises OSError."""
        self.give_back(self.slot())

    def slot(self) -> JournalFile:
        """A free file; raises OSError if there is none and none can be made.

        Nor is there one as long as a record that counts no more cannot be removed: what is written to its mailbox now
        would be undone by it.
        """
        self._remove_again()
        with contextlib.suppress(IndexError):
            return self._spare.pop()
        name = b"%08d" % next(self._names)
        fd = self._door.open((*JOURNAL, name), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            allocate(fd, 0, DATA + ROOM)
        except OSError:
            os.close(fd)
            self.forget(name)
            raise
        return JournalFile(self, name, fd)

    def sequence(self) -> int:
        """The next number."""
        return next(self._sequence)

    def sync_names(self) -> None:
        """Bring the directory to the disk. Raises OSError."""
        fd = self._door.open(JOURNAL, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def give_back(self, file: JournalFile) -> None:
        """A file is free again."""
        if len(self._spare) < SPARE:
            self._spare.append(file)
        else:
            file.remove()

    def forget(self, name: bytes) -> None:
        """Remove a file, if not now then as soon as it can be. Never raises."""
        try:
            self._door.unlink((*JOURNAL, name))
        except OSError as error:
            log.error("a file of the journal cannot be removed: %s", error)  # noqa: TRY400
            self._to_remove.append(name)

    def _remove_again(self) -> None:
        """What could not be removed still says that something is to be done."""
        while self._to_remove:
            name = self._to_remove[-1]
            with contextlib.suppress(FileNotFoundError):
                self._door.unlink((*JOURNAL, name))
            self._to_remove.remove(name)

    def close(self) -> None:
        """Remove what is free; a record that is still needed stays."""
        try:
            self._remove_again()
        except OSError as error:
            log.error("files %r of the journal cannot be removed: %s", self._to_remove, error)  # noqa: TRY400
        while self._spare:
            self._spare.pop().remove()


def boot_id() -> str:
    """What tells one boot of the host from another. Raises OSError."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


def look(door: Door) -> Iterator[tuple[JournalFile, Record | Damaged]]:
    """The files of a journal that may be in use, for reading, in the order of their drafts. Raises OSError."""
    found = []
    for name in names(door):
        try:
            file = JournalFile(None, name, door.open((*JOURNAL, name), os.O_RDONLY))
        except FileNotFoundError:  # given back this moment
            continue
        header = file.header()
        found.append((file, header if isinstance(header, Damaged) else header[1]))
    yield from sorted(found, key=_order)


def names(door: Door) -> Iterator[bytes]:
    """The journal's files. Raises OSError."""
    try:
        entries = door.listdir(JOURNAL)
    except FileNotFoundError:
        return
    yield from sorted(entry.name for entry in entries if entry.name.isdigit())


def _order(each: tuple[JournalFile, Record | Damaged]) -> tuple[int, bytes]:
    file, header = each
    return (header.sequence if isinstance(header, Record) else 0, file.name)
