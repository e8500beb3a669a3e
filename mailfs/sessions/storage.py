"""What a session asks of the disk: small interfaces, implemented by ``mailfs.spool`` and by fakes in tests."""

from __future__ import annotations

from typing import NamedTuple, Protocol


class FileState(NamedTuple):
    """What tells one state of the real file from another (a change made outside is noticed by these)."""

    inode: int
    size: int  # bytes
    mtime_ns: int


class Times(NamedTuple):
    """Time stamps in nanoseconds since the epoch; None leaves a stamp as it is."""

    atime_ns: int | None
    mtime_ns: int | None


class Store(Protocol):
    """The real file of one mailbox. Every method may raise OSError, with the errno of the backing filesystem."""

    def state(self) -> FileState | None:
        """The file as it is now, or None when there is none."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes at ``offset``; fewer only at the end of the file."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of ``data`` at ``offset``."""

    def reserve(self, offset: int, size: int) -> None:
        """Make sure that writing there will not run out of space; does not change the file's size."""

    def truncate(self, size: int) -> None:
        """Make the file ``size`` bytes long."""

    def sync(self) -> None:
        """Bring what was written to the disk (fdatasync)."""

    def set_times(self, times: Times) -> None:
        """Set time stamps, as utimensat(2) does."""

    def create_again(self) -> None:
        """Make the file anew, empty, with the owner and mode it had when it was last seen."""

    def rest(self) -> None:
        """Give back descriptors; the next use opens them again."""


class Spill(Protocol):
    """A file of ours that holds what a session staged once that is too much for memory."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of ``data`` at ``offset``."""

    def read(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes at ``offset``."""

    def close(self) -> None:
        """Drop the file."""
