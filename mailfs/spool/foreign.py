"""What a lock file that is not ours means, and how it is removed when it means nothing.

A lock file in the spool is judged anew at each look:

1. No file: the way is free.
2. Its owner may not write the mailbox: it does not count. Whoever may not write a mailbox may not
   lock it either, or ``touch alice.lock`` by a stranger would stop alice's mail.
3. It says ``PID:HOST``, the host is this one, and there is no such process: its holder is dead. A
   bare pid is not believed in: containers that share a spool number their processes themselves,
   and give themselves different host names.
4. Neither it nor the mailbox has changed for ``stale_after`` seconds: it was left behind, provided
   that nobody holds a kernel lock either, which the caller tries. "Has changed" is what this object
   saw, on its own monotonic clock; time stamps are compared with each other only, never with a
   clock, so that neither a backdated file nor another host's wrong clock breaks a live lock.
5. Otherwise somebody holds the mailbox.

Removal must never hit a lock that took the judged one's place a moment ago, so the file is renamed
aside first, then looked at once more. Is it still the one that was judged (inode, times, content),
it is unlinked; if not, it is linked back to its name, its owner none the wiser. After the removal
of a dead or abandoned lock the caller pauses: another program may have judged the same file and be
about to unlink whatever now has its name.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mailfs.spool.dotlock import alive, is_held_here, lock_path, remove_quietly, temporary_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.spool.door import Door, Path

_log = logging.getLogger(__name__)

_CONTENT_LIMIT = 512  # bytes; more than any pid and host name
_PID_AND_HOST = re.compile(rb"(\d{1,10}):([^\n]+)\n?")


class MayWrite(Protocol):
    """Whether somebody may write a mailbox, and so may lock it."""

    def __call__(self, mailbox: Path, uid: int, gid: int, file: os.stat_result | None, /) -> bool:
        """Answer for the owner and group of a lock file; ``file`` is None: no such mailbox yet."""


def owner_may_write(_mailbox: Path, uid: int, gid: int, file: os.stat_result | None, /) -> bool:
    """Judge by the mailbox's mode alone, without asking for anybody's groups.

    Root, the mailbox's owner, and anybody if the mode says so. For a group-writable mailbox the
    lock file's own group is taken for a group of its owner, which is wrong in a directory that is
    set-gid *and* world-writable. Where there is no mailbox, every lock counts. A daemon that knows
    accounts and groups passes a better rule.
    """
    if uid == 0 or file is None or uid == file.st_uid:
        return True
    if file.st_mode & stat.S_IWOTH:
        return True
    return bool(file.st_mode & stat.S_IWGRP) and gid == file.st_gid


class Verdict(enum.Enum):
    """What a look at the lock file says; the value completes "the lock file ..."."""

    FREE = "does not exist"
    HELD = "is somebody's lock"
    VOID = "does not count, its owner may not write the mailbox"
    DEAD = "names a process of this host that is dead"
    UNCHANGED = "has not changed for long"


@dataclass(frozen=True, slots=True)
class Sighting:
    """A lock file at one moment. Two equal sightings are of one file, unchanged."""

    device: int
    inode: int
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    ctime_ns: int
    content: bytes

    def same_file(self, other: Sighting) -> bool:
        """Whether both are of one file, a rename apart (which sets the ctime)."""
        return (self.device, self.inode, self.mtime_ns, self.content) == (
            other.device,
            other.inode,
            other.mtime_ns,
            other.content,
        )

    @property
    def pid_and_host(self) -> tuple[int, str] | None:
        """What the content names, if it is ``PID:HOST``."""
        match = _PID_AND_HOST.fullmatch(self.content)
        return (int(match[1]), os.fsdecode(match[2])) if match else None


@dataclass(frozen=True, slots=True)
class _Mailbox:
    """What of the mailbox must stay the same for a lock to look abandoned."""

    inode: int
    size: int
    mtime_ns: int


class ForeignLock:
    """The lock file of one mailbox as long as it is not ours, and what was seen of it.

    Args:
        door: the way to the spool.
        mailbox: its path; it need not exist.
        host: our host's name, as it stands in lock files.
        stale_after: seconds without a change after which a lock file looks abandoned.
        may_write: whose lock files count.
        clock: monotonic seconds.

    """

    __slots__ = (
        "_clock",
        "_complained",
        "_door",
        "_host",
        "_mailbox",
        "_may_write",
        "_seen",
        "_since",
        "_stale_after",
    )

    def __init__(
        self,
        door: Door,
        mailbox: Path,
        *,
        host: str,
        stale_after: float,
        may_write: MayWrite,
        clock: Callable[[], float],
    ) -> None:
        self._door = door
        self._mailbox = mailbox
        self._host = host
        self._stale_after = stale_after
        self._may_write = may_write
        self._clock = clock
        self._seen: tuple[Sighting, _Mailbox | None] | None = None
        self._since = 0.0
        self._complained: Sighting | None = None

    def judge(self) -> tuple[Verdict, Sighting | None]:
        """Look at the lock file and say what it means; the sighting is None only for FREE.

        Raises:
            OSError: the spool cannot be looked at.

        """
        sighting = sight(self._door, lock_path(self._mailbox))
        if sighting is None:
            self._seen = None
            return (Verdict.FREE, None)
        file = None
        with contextlib.suppress(FileNotFoundError):
            file = self._door.stat(self._mailbox)
        now = self._clock()
        seen = (sighting, file and _Mailbox(file.st_ino, file.st_size, file.st_mtime_ns))
        if seen != self._seen:
            self._seen, self._since = seen, now
        return (self._verdict(sighting, file, now - self._since), sighting)

    def _verdict(
        self, sighting: Sighting, file: os.stat_result | None, unchanged: float
    ) -> Verdict:
        if not self._may_write(self._mailbox, sighting.uid, sighting.gid, file):
            return Verdict.VOID
        if (named := sighting.pid_and_host) and named[1] == self._host:
            pid = named[0]
            left_by_our_pid = pid == os.getpid() and not is_held_here(
                sighting.device, sighting.inode
            )
            if left_by_our_pid or not alive(pid):
                return Verdict.DEAD
        return Verdict.UNCHANGED if unchanged >= self._stale_after else Verdict.HELD

    def remove(self, judged: Sighting) -> bool:
        """Remove the lock file if it is still the one that was judged.

        Returns:
            False if it is not, or may not be removed by us (the log says so): it holds us off.

        """
        path = lock_path(self._mailbox)
        aside = (*path[:-1], temporary_name(self._host))
        try:
            if sight(self._door, path) != judged:
                return False
            self._door.rename(path, aside)
        except OSError as error:
            if judged != self._complained:  # once a file, not once a poll
                self._complained = judged
                _log.warning("cannot remove the lock file %r: %s", path[-1], error)
            return False
        self._seen = None
        try:
            moved = sight(self._door, aside)
        except OSError as error:
            _log.warning("cannot look at %r, moved aside as %r: %s", path[-1], aside[-1], error)
            moved = None
        if moved is not None and moved.same_file(judged):
            self._discard(aside, judged)
            return True
        self._put_back(aside, path)
        return False

    def _discard(self, aside: Path, judged: Sighting) -> None:
        if not stat.S_ISDIR(judged.mode):
            remove_quietly(self._door, aside)
            return
        try:  # a stranger's idea of a lock file; only out of the way if it is not empty
            self._door.rmdir(aside)
        except OSError as error:
            _log.warning("a directory in a lock file's place is now %r: %s", aside[-1], error)

    def _put_back(self, aside: Path, path: Path) -> None:
        """Give a fresh lock its name again; link() cannot replace one made in the meantime."""
        try:
            self._door.link(aside, path)
        except OSError as error:
            _log.warning("a lock taken this moment, %r, cannot be restored: %s", path[-1], error)
        remove_quietly(self._door, aside)

    def describe(self) -> str | None:
        """Say for people who holds the lock file; None if there is none or it does not count."""
        try:
            verdict, sighting = self.judge()
        except OSError as error:
            return f"unknown: {error.strerror}"
        if sighting is None or verdict is Verdict.VOID:
            return None
        who = f"uid {sighting.uid}"
        if named := sighting.pid_and_host:
            who = f"pid {named[0]} on {_printable(named[1])}, {who}"
        elif match := re.match(rb"\s*([1-9]\d{0,9})\s*\Z", sighting.content):
            who = f"pid {int(match[1])}, {who}"
        return f"dotlock of {who}"


def sight(door: Door, path: Path) -> Sighting | None:
    """Look at a lock file, whatever it is, without following or waiting; None if there is none.

    Raises:
        OSError: the directory cannot be looked at.

    """
    try:
        file = door.stat(path)
    except FileNotFoundError:
        return None
    return Sighting(
        file.st_dev, file.st_ino, file.st_mode, file.st_uid, file.st_gid,
        file.st_mtime_ns, file.st_ctime_ns,
        _content(door, path, file.st_ino) if stat.S_ISREG(file.st_mode) else b"",
    )  # fmt: skip


def _content(door: Door, path: Path, inode: int) -> bytes:
    """Read the start of a lock file; nothing if we may not, or if it is another file by now."""
    try:
        fd = door.open(path, os.O_RDONLY)
    except OSError:  # Postfix makes its lock files with mode 0
        return b""
    try:
        return os.read(fd, _CONTENT_LIMIT) if os.fstat(fd).st_ino == inode else b""
    except OSError:
        return b""
    finally:
        os.close(fd)


def _printable(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text[:64])
