"""A disk that fails, and a daemon that dies, at a chosen call.

The real code works on real files (`mailfs.spool`), but each call of its that touches them goes through a `Disk`, which
counts and may strike: kill the daemon before the call or in the middle of a write, or let the call fail.

A killed daemon is an exception that nothing catches (`Killed`), after which no call does anything more, so no
``finally`` of a dead daemon changes the disk. Its descriptors are then closed, as the kernel does it.
"""

from __future__ import annotations

import contextlib
import ctypes
import enum
import errno
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from mailfs.spool import door, fileio, journal, mailbox_file, private, spool_watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MODULES = (door, fileio, journal, mailbox_file, private)
"""The modules whose calls are counted: all that touch mailboxes and journal."""

CHANGES = {"pwrite", "ftruncate", "fallocate", "create", "rename", "unlink", "link", "mkdir", "rmdir", "symlink",
           "fchown", "fchmod", "chown", "chmod", "utimensat", "write"}  # fmt: skip
SYNCS = {"fsync", "fdatasync"}
LOOKS = {"stat", "fstat", "pread", "open", "scandir"}
LATE = {"pwrite", "ftruncate", "fsync", "fdatasync", "utimensat"}
"""What may be done and fail all the same (on NFS, by a signal)."""

PAGE = 4096


class Killed(BaseException):
    """The daemon is no more."""


class Kind(enum.Enum):
    """What a strike does."""

    KILL = "killed before"
    TEAR = "killed in the middle of"
    FAIL = "one error at"
    DEAD = "errors from"
    SHORT = "a short write, then an error, at"
    LATE = "done, and an error told, at"


@dataclass(frozen=True)
class Strike:
    """What happens at which call.

    Attributes:
        kind: what.
        at: the number of the call, from 1. Of those that change something for `Kind.KILL` and `Kind.TEAR`, else of
            all.
        error: errno of what fails.
        part: how many of a write's bytes are written: a fraction, or, from 1 on, up to that page boundary.

    """

    kind: Kind
    at: int
    error: int = errno.EIO
    part: float = 0.5

    def __str__(self) -> str:
        return f"{self.kind.value} call {self.at} ({errno.errorcode[self.error]}, {self.part})"


class Call(NamedTuple):
    """One call, for people who look for what went wrong."""

    name: str
    what: str
    length: int = 0  # bytes, of a write


class Disk:
    """Counts calls; ``strike`` is what shall happen."""

    def __init__(self) -> None:
        self.strike: Strike | None = None
        self.struck = False
        self.dead = False
        self.failing = False
        self.changes = 0
        self.calls = 0
        self.log: list[Call] = []
        self._fds: set[int] = set()

    def begin(self, strike: Strike | None = None) -> None:
        """Count from the beginning."""
        self.strike = strike
        self.struck = self.dead = self.failing = False
        self.changes = self.calls = 0
        self.log = []

    def heal(self) -> None:
        """Nothing fails any more."""
        self.strike = None
        self.failing = False

    def bury(self) -> None:
        """Close what a dead daemon had open."""
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """While it is the disk that the daemon's code works on."""
        shim = _Os(self)
        before = [(module, name, getattr(module, name)) for module in MODULES for name in ("os", "_libc")
                  if hasattr(module, name)]  # fmt: skip
        for module, name, _ in before:
            setattr(module, name, shim)
        before.append((spool_watch, "INotify", vars(spool_watch)["INotify"]))
        setattr(spool_watch, "INotify", _no_inotify)  # noqa: B010 -- not theirs to export
        walk = door.Door.open_directory
        door.Door.open_directory = lambda self, path: (  # type: ignore[method-assign]
            self._walk(path) if path else walk(self, path)
        )
        try:
            yield
        finally:
            door.Door.open_directory = walk  # type: ignore[method-assign]
            for module, name, value in before:
                setattr(module, name, value)
            self.bury()

    # The calls

    def call(
        self, name: str, what: object, do: Callable[[], Any], data: bytes | None = None
    ) -> Any:
        """Do it, or strike.

        Args:
            name: of the call.
            what: it is done to.
            do: does it.
            data: bytes of a write; ``do`` is then ``partly``'s business.

        """
        if self.dead:
            raise Killed
        self.calls += 1
        changes = name in CHANGES
        self.changes += changes
        self.log.append(Call(name, repr(what), len(data) if data is not None else 0))
        strike = self.strike
        if strike is None:
            return do()
        if strike.kind in (Kind.KILL, Kind.TEAR):
            if changes and self.changes == strike.at:
                self.struck = self.dead = True
                raise Killed
            return do()
        if self.failing or (
            self.calls == strike.at and (name in LATE or strike.kind is not Kind.LATE)
        ):
            self.struck = True
            self.failing = strike.kind is Kind.DEAD
            if strike.kind is Kind.LATE:
                do()
            raise OSError(strike.error, os.strerror(strike.error))
        return do()

    def write(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """pwrite(2), maybe of fewer bytes."""
        strike = self.strike
        length = len(data)
        if strike is not None and not self.dead and not self.failing:
            part = self._part(strike, length, offset)
            if strike.kind is Kind.TEAR and self.changes + 1 == strike.at:
                self.struck = self.dead = True
                os.pwrite(fd, data[:part], offset)
                raise Killed
            if strike.kind is Kind.SHORT and self.calls + 1 == strike.at:
                self.struck = True
                self.calls += 1
                self.log.append(Call("pwrite", f"{fd} {offset}, {part} bytes of", length))
                self.strike = Strike(Kind.FAIL, self.calls + 1, strike.error)
                return os.pwrite(fd, data[:part], offset)
        written: int = self.call(
            "pwrite", (fd, offset), lambda: os.pwrite(fd, data, offset), bytes(data)
        )
        return written

    @staticmethod
    def _part(strike: Strike, length: int, offset: int) -> int:
        if strike.part >= 1:
            return min(length, int(strike.part) * PAGE - offset % PAGE)
        return max(0, min(length - 1, int(length * strike.part)))

    def opened(self, fd: int) -> int:
        """A descriptor of the daemon's."""
        self._fds.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """close(2)."""
        if self.dead:
            raise Killed
        self._fds.remove(fd)
        os.close(fd)


class _Os:
    """Stands for the module ``os`` and for the C library."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        value = getattr(os, name)
        if name not in CHANGES | SYNCS | LOOKS:
            return value
        disk = self._disk

        def counted(*args: Any, **kwargs: Any) -> Any:
            return disk.call(name, args[:2], lambda: value(*args, **kwargs))

        self.__dict__[name] = counted
        return counted

    def open(self, path: bytes, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        disk = self._disk
        name = "create" if flags & os.O_CREAT else "open"
        fd: int = disk.call(name, path, lambda: os.open(path, flags, mode, dir_fd=dir_fd))
        return disk.opened(fd)

    def close(self, fd: int) -> None:
        self._disk.close(fd)

    def pwrite(self, fd: int, data: bytes, offset: int) -> int:
        return self._disk.write(fd, data, offset)

    def fdatasync(self, fd: int) -> None:
        self._disk.call("fdatasync", fd, lambda: None)

    def fsync(self, fd: int) -> None:
        self._disk.call("fsync", fd, lambda: None)

    # The C library

    def fallocate(self, fd: int, _mode: int, offset: Any, length: Any) -> int:
        try:
            self._disk.call("fallocate", (fd, offset.value, length.value), lambda: None)
        except OSError as error:
            ctypes.set_errno(error.errno or errno.EIO)
            return -1
        return 0

    def utimensat(self, *args: Any) -> int:
        function = _utimensat
        result: int = self._disk.call("utimensat", args[1], lambda: function(*args))
        return result


_utimensat = door._libc.utimensat


def _no_inotify(*_: object, **__: object) -> None:
    raise OSError(errno.EMFILE, "no inotify here")
