"""The one door to the real files of the spool.

Every path operation of the daemon on the backing directory goes through a `Door`. It holds a
descriptor of the spool's root, opened once, before mounting: so it works when mailfs is mounted
over the spool itself, and whoever renames or replaces a directory above the spool changes nothing
for us.

A path is a tuple of plain components. The directory that holds its last component is opened
beneath the root without following any symbolic link (openat2(2) with RESOLVE_BENEATH, or component
by component with O_NOFOLLOW where the kernel or a seccomp filter lacks it), and the operation is
done relative to that descriptor with the *at* call that does not follow links. There is no moment
at which a name is checked first and used later, so there is nothing to race against: a component
that turns into a symbolic link makes the operation fail.

Where Linux has no such call (chmod, extended attributes), the object itself is pinned by an O_PATH
descriptor and addressed as ``/proc/self/fd/N``, which names that object and never a path (proc(5)).

Everything here is synchronous: metadata of a local filesystem takes microseconds. A Door has no
state but its root descriptor, so on NFS its methods may be called in a thread. Modes are subject to
the process's umask; a daemon sets it to 0. Methods raise OSError as the kernel gives it and, for a
path that is none, `Refused` (NO_SUCH_NAME).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from typing import TYPE_CHECKING, NamedTuple, Self

from mailfs.errors import Cause, Refused

if TYPE_CHECKING:
    from collections.abc import Iterator

Path = tuple[bytes, ...]
"""Components below the spool's root, outermost first; ``()`` is the root itself."""

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

_SYS_OPENAT2 = 437  # the same on every architecture that Python's ctypes runs mailfs on
# RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS, include/uapi/linux/openat2.h
_RESOLVE = 0x08 | 0x04 | 0x02
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: a fifo that somebody put in the place of a file must not hang the daemon in open().
_ALWAYS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
_AT_SYMLINK_NOFOLLOW = 0x100
_UTIME_OMIT = (1 << 30) - 2

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class Entry(NamedTuple):
    """One name in a directory.

    ``type`` is a DT_* value of readdir(3), 0 (DT_UNKNOWN) for anything but files, directories and
    symbolic links.
    """

    name: bytes
    type: int
    inode: int


def checked(path: Path) -> Path:
    """Give back ``path`` if each component is a name and nothing else.

    Raises:
        Refused: NO_SUCH_NAME for an empty component, ``.``, ``..``, or one with a slash or a NUL.

    """
    for name in path:
        if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
            raise Refused(Cause.NO_SUCH_NAME, f"{path!r} is not a path")
    return path


class Door:
    """Path operations on the spool, safe against symbolic links and renames by construction."""

    def __init__(self, root: int) -> None:
        """Take over ``root``, a descriptor of the spool directory; `at` is the usual way in."""
        self._root = root
        self._has_openat2 = True

    @classmethod
    def at(cls, spool: str | bytes) -> Self:
        """Open the spool's root; links in ``spool``, an administrator's word, are followed."""
        return cls(os.open(spool, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def close(self) -> None:
        """Close the root descriptor; a second call does nothing."""
        root, self._root = self._root, -1
        if root >= 0:
            os.close(root)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fileno(self) -> int:
        """The root descriptor, for what needs the directory itself (inotify, fsync)."""
        return self._root

    # -- the primitives everything else is made of

    def open_directory(self, path: Path) -> int:
        """Open the directory ``path`` (O_PATH); the caller closes it."""
        if not checked(path):
            return os.open(b".", _DIRECTORY, dir_fd=self._root)
        if self._has_openat2:
            try:
                return _openat2(self._root, b"/".join(path))
            except OSError as error:
                # EPERM: the answer of seccomp filters older than the call, and never its own.
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
                self._has_openat2 = False
        return self._walk(path)

    def _walk(self, path: Path) -> int:
        fd = os.open(path[0], _DIRECTORY, dir_fd=self._root)
        for name in path[1:]:
            try:
                below = os.open(name, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = below
        return fd

    @contextlib.contextmanager
    def held(self, path: Path) -> Iterator[tuple[int, bytes]]:
        """Give the directory's descriptor and the last name of ``path``, valid inside the block.

        The root itself comes as ``.``, which the kernel refuses to unlink, rename or link.
        """
        if len(path) <= 1:
            yield (self._root, checked(path)[0] if path else b".")
            return
        checked(path[-1:])
        directory = self.open_directory(path[:-1])
        try:
            yield (directory, path[-1])
        finally:
            os.close(directory)

    @contextlib.contextmanager
    def _pinned(self, path: Path) -> Iterator[str]:
        """Give a name for the very object ``path`` is now, for calls that would follow a link."""
        fd = self.open(path, os.O_PATH)
        try:
            yield f"/proc/self/fd/{fd}"
        finally:
            os.close(fd)

    # -- looking

    def stat(self, path: Path) -> os.stat_result:
        """Say what ``path`` is, a symbolic link itself included; lstat(2)."""
        with self.held(path) as (directory, name):
            return os.stat(name, dir_fd=directory, follow_symlinks=False)

    def statvfs(self) -> os.statvfs_result:
        """Ask for the size and room of the root's filesystem."""
        return os.statvfs(self._root)

    def readlink(self, path: Path) -> bytes:
        """Read where a symbolic link points."""
        with self.held(path) as (directory, name):
            return os.readlink(name, dir_fd=directory)

    def listdir(self, path: Path = ()) -> list[Entry]:
        """Take a snapshot of a directory, without ``.`` and ``..``, in the filesystem's order."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as entries:
                return [
                    Entry(os.fsencode(entry.name), _type_of(entry), entry.inode())
                    for entry in entries
                ]
        finally:
            os.close(fd)

    # -- making and removing names

    def open(self, path: Path, flags: int, mode: int = 0) -> int:
        """Open exactly this object: ELOOP for a symbolic link, no waiting on a fifo."""
        with self.held(path) as (directory, name):
            return os.open(name, flags | _ALWAYS, mode, dir_fd=directory)

    def link(self, old: Path, new: Path) -> None:
        """Make a hard link, of a symbolic link itself if it is one."""
        with self.held(old) as (from_dir, from_name), self.held(new) as (to_dir, to_name):
            os.link(
                from_name, to_name, src_dir_fd=from_dir, dst_dir_fd=to_dir, follow_symlinks=False
            )

    def rename(self, old: Path, new: Path, flags: int = 0) -> None:
        """Rename; ``flags`` are `RENAME_NOREPLACE`, `RENAME_EXCHANGE` of renameat2(2)."""
        with self.held(old) as (from_dir, from_name), self.held(new) as (to_dir, to_name):
            if flags == 0:
                os.rename(from_name, to_name, src_dir_fd=from_dir, dst_dir_fd=to_dir)
            else:
                _renameat2(from_dir, from_name, to_dir, to_name, flags)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        with self.held(path) as (directory, name):
            os.unlink(name, dir_fd=directory)

    def mkdir(self, path: Path, mode: int) -> None:
        """Make a directory."""
        with self.held(path) as (directory, name):
            os.mkdir(name, mode, dir_fd=directory)

    def rmdir(self, path: Path) -> None:
        """Remove an empty directory."""
        with self.held(path) as (directory, name):
            os.rmdir(name, dir_fd=directory)

    def symlink(self, target: bytes, path: Path) -> None:
        """Make a symbolic link."""
        with self.held(path) as (directory, name):
            os.symlink(target, name, dir_fd=directory)

    def mknod(self, path: Path, mode: int, device: int = 0) -> None:
        """Make a file, fifo, socket or device."""
        with self.held(path) as (directory, name):
            os.mknod(name, mode, device, dir_fd=directory)

    # -- attributes

    def chmod(self, path: Path, mode: int) -> None:
        """Set the mode; EOPNOTSUPP for a symbolic link, which has none."""
        with self._pinned(path) as name:
            os.chmod(name, mode)

    def chown(self, path: Path, uid: int, gid: int) -> None:
        """Set owner and group, -1 leaves a value as it is; lchown(2)."""
        with self.held(path) as (directory, name):
            os.chown(name, uid, gid, dir_fd=directory, follow_symlinks=False)

    def utime_ns(self, path: Path, atime_ns: int | None, mtime_ns: int | None) -> None:
        """Set times, None leaves one as it is (os.utime cannot say that); utimensat(2)."""
        times = (_Timespec * 2)(_timespec(atime_ns), _timespec(mtime_ns))
        with self.held(path) as (directory, name):
            _call(_libc.utimensat, directory, name, times, _AT_SYMLINK_NOFOLLOW)

    def getxattr(self, path: Path, attribute: bytes) -> bytes:
        """Read an extended attribute."""
        with self._pinned(path) as name:
            return os.getxattr(name, attribute)

    def setxattr(self, path: Path, attribute: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute; ``flags`` are XATTR_CREATE, XATTR_REPLACE."""
        with self._pinned(path) as name:
            os.setxattr(name, attribute, value, flags)

    def listxattr(self, path: Path) -> list[bytes]:
        """List the names of extended attributes."""
        with self._pinned(path) as name:
            return [os.fsencode(attribute) for attribute in os.listxattr(name)]

    def removexattr(self, path: Path, attribute: bytes) -> None:
        """Remove an extended attribute."""
        with self._pinned(path) as name:
            os.removexattr(name, attribute)


# What never changes in openat2's arguments, made once: ctypes is slower over it than the call is.
_HOW = _OpenHow(_DIRECTORY, 0, _RESOLVE)
_NUMBER, _HOW_POINTER = ctypes.c_long(_SYS_OPENAT2), ctypes.byref(_HOW)
_HOW_SIZE = ctypes.c_size_t(ctypes.sizeof(_HOW))


def _openat2(root: int, path: bytes) -> int:
    return _call(_libc.syscall, _NUMBER, root, path, _HOW_POINTER, _HOW_SIZE)


def _renameat2(from_dir: int, from_name: bytes, to_dir: int, to_name: bytes, flags: int) -> None:
    if not hasattr(_libc, "renameat2"):  # a C library older than the call (glibc 2.28)
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), from_name)
    _call(_libc.renameat2, from_dir, from_name, to_dir, to_name, ctypes.c_uint(flags))


def _call(function: ctypes._NamedFuncPointer, *args: object) -> int:
    """Call a C function that answers -1 and errno, again after EINTR and openat2's EAGAIN."""
    while (result := int(function(*args))) < 0:
        if (code := ctypes.get_errno()) not in (errno.EINTR, errno.EAGAIN):
            raise OSError(code, os.strerror(code))
    return result


def _timespec(nanoseconds: int | None) -> _Timespec:
    if nanoseconds is None:
        return _Timespec(0, _UTIME_OMIT)
    return _Timespec(*divmod(nanoseconds, 1_000_000_000))


def _type_of(entry: os.DirEntry[str]) -> int:
    try:
        if entry.is_file(follow_symlinks=False):
            return stat.S_IFREG >> 12
        if entry.is_dir(follow_symlinks=False):
            return stat.S_IFDIR >> 12
        return stat.S_IFLNK >> 12 if entry.is_symlink() else 0
    except OSError:  # a filesystem without d_type, and the name is gone already
        return 0
