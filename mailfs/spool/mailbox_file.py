"""The real file of one mailbox, as sessions and commits need it.

The name decides, not a descriptor: somebody may rename another file over the mailbox at any time, and what a session
does belongs to the name. So the descriptor that is kept while there is work is checked against the name, and a
mailbox that was removed is made anew with the owner and mode it had.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from mailfs.sessions.storage import FileState, Times
from mailfs.spool.fileio import allocate, read_all, write_all

if TYPE_CHECKING:
    from mailfs.spool.door import Door, Path


class MailboxFile:
    """Implements `mailfs.sessions.storage.Store` on a path of the spool.

    Args:
        door: the way to it.
        path: below the spool's root.

    """

    def __init__(self, door: Door, path: Path) -> None:
        self._door = door
        self._path = path
        self._fd = -1
        self._inode = 0
        self._named = 0  # the inode whose name is known to be on the disk
        self.owner: tuple[int, int, int] | None = None

    def state(self) -> FileState | None:
        """The file as it is now; None if there is none, or something that is no regular file."""
        try:
            found = self._door.stat(self._path)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode):
            return None
        self.owner = (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode))
        return FileState(found.st_ino, found.st_size, found.st_mtime_ns)

    def read(self, offset: int, size: int) -> bytes:
        """Read; short only at the end of the file."""
        return read_all(self._open(), size, offset)

    def write(self, offset: int, data: bytes) -> None:
        """Write all of it."""
        write_all(self._open(), data, offset)

    def reserve(self, offset: int, size: int) -> None:
        """Find out about ENOSPC and EDQUOT now."""
        allocate(self._open(), offset, size)

    def truncate(self, size: int) -> None:
        """Cut or extend. A size that is the same frees what is allocated behind it (ext4_setattr, fs/ext4/inode.c)."""
        os.ftruncate(self._open(), size)

    def sync(self) -> None:
        """Data and size to the disk, and once for each file its name."""
        os.fdatasync(self._open())
        if self._named != self._inode:
            os.fsync(self._door.fileno)
            self._named = self._inode

    def set_times(self, times: Times) -> None:
        """As utimensat(2); nothing happens if the mailbox is gone."""
        try:
            self._door.utime_ns(self._path, times.atime_ns, times.mtime_ns)
        except FileNotFoundError:
            return

    def create_again(self) -> None:
        """Make it anew, empty, with its last known owner and mode."""
        fd = self._door.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            if self.owner is not None:
                uid, gid, mode = self.owner
                os.fchown(fd, uid, gid)
                os.fchmod(fd, mode)
        finally:
            os.close(fd)

    def rest(self) -> None:
        """Give back the descriptor; the next use opens it again."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _open(self) -> int:
        named = self._door.stat(self._path)
        if self._fd >= 0 and named.st_ino == self._inode:
            return self._fd
        self.rest()
        fd = self._door.open(self._path, os.O_RDWR)
        try:
            opened = os.fstat(fd)
            if not stat.S_ISREG(opened.st_mode):
                raise OSError(errno.EIO, "not a regular file", self._path[-1])  # noqa: TRY301
        except OSError:
            os.close(fd)
            raise
        self._fd, self._inode = fd, opened.st_ino
        return fd
