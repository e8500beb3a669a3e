"""A message to the end of a real mailbox, whole or not at all; and making a mailbox.

For whoever holds the mailbox's lock (`backing_lock`). Space is reserved first, so that a full disk
is noticed before anything is written. If writing fails, or the caller wants to stop, the file is
cut back, unless somebody who does not lock has written behind us meanwhile: his mail stays. What
SIGKILL or a power failure leaves behind cannot be helped here; through a mount it can.

A program that does not lock may also rename another file over the mailbox, with our message in the
old one. So the name is looked at afterwards, and the message written again if need be.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple, Protocol

from mailfs.spool.dotlock import remove_quietly, temporary_name
from mailfs.spool.fileio import allocate

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.spool.door import Door, Path

CHUNK = 1 << 20  # bytes written between two looks whether to stop
_REPLACEMENTS = 8  # how often the mailbox may turn into another file under our hands


class Message(Protocol):
    """Bytes that can be read more than once; any binary file."""

    def seek(self, offset: int, /) -> object:
        """Go to an offset."""

    def read(self, size: int, /) -> bytes:
        """Read, b"" at the end."""


class Owner(NamedTuple):
    """Whose a new mailbox is."""

    uid: int
    gid: int
    mode: int


def owner_in(directory: os.stat_result, uid: int, gid: int) -> Owner:
    """Say how a mailbox of a user is made in a spool.

    As useradd(8) and procmail(1) do: where a group serves the spool (it is set-gid, or writable for
    its group and not for all), that group's and 0660, else the user's alone.
    """
    mode = directory.st_mode
    served = mode & stat.S_ISGID or (mode & stat.S_IWGRP and not mode & stat.S_IWOTH)
    return Owner(uid, directory.st_gid, 0o660) if served else Owner(uid, gid, 0o600)


def make_mailbox(door: Door, name: bytes, owner: Owner, host: str) -> None:
    """Make an empty mailbox that belongs to its owner from its first moment, as procmail does.

    Somebody else may have made it first; that is as good.

    Raises:
        OSError: it cannot be made.

    """
    temporary = (temporary_name(host),)
    fd = door.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        if os.geteuid() == 0:
            os.fchown(fd, owner.uid, owner.gid)
        os.fchmod(fd, owner.mode)
        with contextlib.suppress(FileExistsError):
            door.link(temporary, (name,))
    finally:
        os.close(fd)
        remove_quietly(door, temporary)
    with contextlib.suppress(OSError):  # not every filesystem can; the message is synced anyway
        os.fsync(door.fileno)


def append(door: Door, path: Path, message: Message, check: Callable[[], None]) -> None:
    """Append a message to a mailbox that the caller holds, and sync it to the disk.

    Args:
        door: the way to the spool.
        path: the mailbox; it must exist.
        message: what to append, beginning with its separator line.
        check: called often; what it raises stops the append, and nothing of it remains.

    Raises:
        OSError: nothing is appended. EMLINK if the mailbox has other names, as it is then not sure
            whose file it is (Postfix does the same).

    """
    for _ in range(_REPLACEMENTS):
        fd = door.open(path, os.O_RDWR | os.O_APPEND)
        try:
            _append(fd, message, check)
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), door.stat(path)):
                    return
        finally:
            os.close(fd)
    raise OSError(errno.ESTALE, "the mailbox is replaced again and again")


def _append(fd: int, message: Message, check: Callable[[], None]) -> None:
    before = os.fstat(fd)
    if not stat.S_ISREG(before.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
    if before.st_nlink > 1:
        raise OSError(errno.EMLINK, "it has another name, so it may be another file")
    message.seek(0)
    end = before.st_size
    try:
        chunk = _line_break(fd, end) + message.read(CHUNK)
        while chunk:
            allocate(fd, end, len(chunk))
            view = memoryview(chunk)
            while view:
                check()
                written = os.write(fd, view)
                end += written
                view = view[written:]
            chunk = message.read(CHUNK)
        check()
        os.fsync(fd)
    except BaseException:
        if os.fstat(fd).st_size == end:
            os.ftruncate(fd, before.st_size)
            with contextlib.suppress(OSError):
                os.fsync(fd)
        raise
    after = os.fstat(fd)
    if after.st_atime_ns >= after.st_mtime_ns:  # our look at the last byte must not pass for a
        with contextlib.suppress(OSError):  # mail reader's: new mail is told by atime < mtime
            os.utime(fd, ns=(min(before.st_atime_ns, after.st_mtime_ns - 1), after.st_mtime_ns))


def _line_break(fd: int, end: int) -> bytes:
    """What makes the separator stand on a line of its own (`sessions.merge.line_break_before`)."""
    return b"\n" if end and os.pread(fd, 1, end - 1) != b"\n" else b""
