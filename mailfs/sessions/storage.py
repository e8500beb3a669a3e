"""What a session asks of the disk: small interfaces, implemented by ``mailfs.spool`` and by fakes in tests."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from mailfs.sessions.record import Record


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

    @property
    def owner(self) -> tuple[int, int, int] | None:
        """uid, gid and permission bits when it was last seen; set to what `create_again` shall give."""

    @owner.setter
    def owner(self, owner: tuple[int, int, int] | None) -> None: ...

    def state(self) -> FileState | None:
        """The file as it is now, or None when there is none."""

    def read(self, offset: int, size: int) -> bytes:
        """Up to ``size`` bytes at ``offset``; fewer only at the end of the file."""

    def write(self, offset: int, data: bytes) -> None:
        """Write all of ``data`` at ``offset``."""

    def reserve(self, offset: int, size: int) -> None:
        """Make sure that writing there will not run out of space; does not change the file's size."""

    def truncate(self, size: int) -> None:
        """Make the file ``size`` bytes long, and give back what was reserved behind that."""

    def sync(self) -> None:
        """Bring what was written to the disk, and the name of a file that is new."""

    def set_times(self, times: Times) -> None:
        """Set time stamps, as utimensat(2) does."""

    def create_again(self) -> None:
        """Make the file anew, empty, with the owner and mode it had when it was last seen."""

    def rest(self) -> None:
        """Give back descriptors; the next use opens them again."""


class Slot(Protocol):
    """One file of the journal: a staging log, and a header that says what it is.

    Every method may raise OSError, unless it says otherwise.
    """

    def write(self, position: int, data: bytes) -> None:
        """Write all of ``data`` at ``position`` of the log."""

    def read(self, position: int, size: int) -> bytes:
        """Read ``size`` bytes of the log."""

    def mark(self, record: Record) -> None:
        """Replace the header, as a whole or not at all."""

    def sync(self) -> None:
        """Bring log and header to the disk."""

    def leave(self) -> None:
        """Forget the file; its record stays for the next daemon. Never raises."""

    def close(self, *, synced: bool = False) -> None:
        """The record is not needed any more; ``synced``: bring that to the disk. Never raises."""


class Journal(Protocol):
    """Where drafts are kept that must survive us."""

    @property
    def boot(self) -> str:
        """The host's boot id."""

    def slot(self) -> Slot:
        """A file nobody uses. Raises OSError."""

    def sequence(self) -> int:
        """The next number, higher than all before."""
