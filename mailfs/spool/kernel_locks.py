"""Kernel locks on one open mailbox: an open-file-description lock and a flock, never waited for.

The two kinds do not see each other on a local filesystem, so both are taken. An OFD lock
(fcntl(2), F_OFD_SETLK) excludes the POSIX locks of other programs like a POSIX lock would, but
belongs to the open file description: closing any *other* descriptor of the mailbox in the daemon
does not drop it. The descriptor here is therefore a private one; nobody else may close or lock it.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import fcntl
import os
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

# include/uapi/asm-generic/fcntl.h; the fcntl module names them from Python 3.12 only on some builds
_F_OFD_GETLK = 36
_F_OFD_SETLK = 37
_NFS_SUPER_MAGIC = 0x6969  # include/uapi/linux/magic.h
# struct flock: type, whence, start, length (0: all of it), pid (must be 0 for OFD locks)
_FLOCK = struct.Struct("@hhqqi0q")

_libc = ctypes.CDLL(None, use_errno=True)


class Strength(enum.IntEnum):
    """How a kernel lock shares the file, in ascending order."""

    NONE = 0
    SHARED = 1
    EXCLUSIVE = 2


_OFD_TYPE = {
    Strength.NONE: fcntl.F_UNLCK,
    Strength.SHARED: fcntl.F_RDLCK,
    Strength.EXCLUSIVE: fcntl.F_WRLCK,
}
_FLOCK_OPERATION = {
    Strength.NONE: fcntl.LOCK_UN,
    Strength.SHARED: fcntl.LOCK_SH | fcntl.LOCK_NB,
    Strength.EXCLUSIVE: fcntl.LOCK_EX | fcntl.LOCK_NB,
}


def on_nfs(fd: int) -> bool:
    """Whether the file is on NFS, where flock is a byte-range lock and conflicts with our own.

    flock(2), "NFS details"; the answer is by fstatfs(2). False when the kernel does not say.
    """
    answer = ctypes.create_string_buffer(256)  # struct statfs has 120 bytes; f_type comes first
    if _libc.fstatfs(fd, answer) != 0:
        return False
    return int(ctypes.c_long.from_buffer(answer).value) == _NFS_SUPER_MAGIC


class KernelLocks:
    """The kernel locks on one descriptor, which this object owns and `close` closes.

    Args:
        fd: a descriptor of the mailbox, open for writing if `Strength.EXCLUSIVE` is to be had.
        ofd: whether to take an OFD lock.
        flock: whether to take a flock.

    """

    __slots__ = ("_fd", "_flock", "_ofd", "strength")

    def __init__(self, fd: int, *, ofd: bool, flock: bool) -> None:
        self._fd = fd
        self._ofd = ofd
        self._flock = flock
        self.strength = Strength.NONE

    @property
    def fileno(self) -> int:
        """The descriptor, for fstat; -1 once closed."""
        return self._fd

    def try_lock(self, strength: Strength) -> bool:
        """Hold both locks in exactly ``strength``, or leave what was held as it was.

        Returns:
            False if another open file holds a lock in the way.

        Raises:
            OSError: the filesystem knows no such lock (ENOLCK, EOPNOTSUPP), or the descriptor is
                not open for writing (EBADF).

        """
        before = self.strength
        if strength == before:
            return True
        if self._ofd and not _try_ofd(self._fd, strength):
            return False
        try:
            taken = not self._flock or _try_flock(self._fd, strength)
        except OSError:
            self._return_to(before)
            raise
        if not taken:
            self._return_to(before)
            return False
        self.strength = strength
        return True

    def _return_to(self, before: Strength) -> None:
        """Undo a half-done change.

        A refused conversion of a flock drops it (flock(2)): ask for it again. Should another
        process have been quicker, ``strength`` says NONE, and the caller starts over.
        """
        kept = False
        with contextlib.suppress(OSError):
            kept = (not self._flock or _try_flock(self._fd, before)) and (
                not self._ofd or _try_ofd(self._fd, before)
            )
        self.strength = before if kept else Strength.NONE
        if not kept:
            with contextlib.suppress(OSError):
                self.try_unlock()

    def try_unlock(self) -> None:
        """Drop both locks and keep the descriptor."""
        if self._flock:
            _try_flock(self._fd, Strength.NONE)
        if self._ofd:
            _try_ofd(self._fd, Strength.NONE)
        self.strength = Strength.NONE

    def close(self) -> None:
        """Drop the locks with their descriptor; a second call does nothing."""
        fd, self._fd = self._fd, -1
        self.strength = Strength.NONE
        if fd >= 0:
            with contextlib.suppress(OSError):  # close(2) may report a late write error on NFS
                os.close(fd)


def _try_ofd(fd: int, strength: Strength) -> bool:
    request = _FLOCK.pack(_OFD_TYPE[strength], os.SEEK_SET, 0, 0, 0)
    return _granted(lambda: fcntl.fcntl(fd, _F_OFD_SETLK, request))


def _try_flock(fd: int, strength: Strength) -> bool:
    return _granted(lambda: fcntl.flock(fd, _FLOCK_OPERATION[strength]))


def _granted(request: Callable[[], object]) -> bool:
    try:
        request()
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):  # POSIX allows either for "held"
            return False
        raise
    return True


def who_locks(fd: int) -> str | None:
    """Say for people who holds a kernel lock on the file of ``fd``; None if nobody is found.

    Best effort: F_OFD_GETLK names the process of a POSIX lock (but not of an OFD lock), flocks are
    looked up in /proc/locks (proc(5)), which shows those of this pid namespace only.
    """
    with contextlib.suppress(OSError, struct.error):
        request = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _FLOCK.unpack(fcntl.fcntl(fd, _F_OFD_GETLK, request))
        if kind != fcntl.F_UNLCK:
            return f"fcntl lock of pid {pid}" if pid > 0 else "fcntl lock of an open file (OFD)"
    with contextlib.suppress(OSError, ValueError):
        return _flock_holder(os.fstat(fd))
    return None


def _flock_holder(file: os.stat_result) -> str | None:
    place = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    with open("/proc/locks", encoding="ascii", errors="replace") as table:
        for line in table:
            # "7: FLOCK  ADVISORY  WRITE 1234 fe:00:5678 0 EOF"; waiters have "->" after the number
            words = line.split()
            if len(words) >= 6 and words[1] == "FLOCK" and words[5] == place:
                pid = int(words[4])
                if pid != os.getpid():
                    return f"flock of pid {pid}"
    return None
