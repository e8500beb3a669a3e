"""The one directory of ours in the backing spool: ``.mailfs/`` (root, 0700).

    .mailfs/daemon.lock    held (flock) by the daemon of this spool and host
    .mailfs/scratch/UID/   files private to a user: temporary names, editors' swap files
    .mailfs/rescue/        what a refused or lost draft contained

Nothing of a live client's is anywhere else, so after umount the spool is an ordinary spool.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailfs.spool.door import Door, Entry, Path

log = logging.getLogger(__name__)

PRIVATE = b".mailfs"
SCRATCH: Path = (PRIVATE, b"scratch")
RESCUE: Path = (PRIVATE, b"rescue")


class SpoolBusyError(Exception):
    """Another daemon serves this spool; ``pid`` is what it wrote down, 0 if unreadable."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"daemon {pid}")
        self.pid = pid


class PrivateDirectory:
    """Makes ``.mailfs`` and keeps the daemon's lock on it. Raises `SpoolBusyError` if another one has it."""

    def __init__(self, door: Door) -> None:
        self._door = door
        for path in ((PRIVATE,), SCRATCH, RESCUE):
            with contextlib.suppress(FileExistsError):
                door.mkdir(path, 0o700)
        self._lock = door.open((PRIVATE, b"daemon.lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            written = os.pread(self._lock, 32, 0).strip()
            os.close(self._lock)
            raise SpoolBusyError(int(written) if written.isdigit() else 0) from None
        written = os.pread(self._lock, 32, 0).strip()
        self.earlier_pid = (
            int(written) if written.isdigit() else 0
        )  # of the daemon before us; it is dead
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, b"%d\n" % os.getpid(), 0)

    def close(self) -> None:
        """Give back the daemon's lock."""
        os.close(self._lock)

    # Scratch

    def scratch(self, uid: int) -> Path:
        """The directory of a user's scratch files; made when first asked for."""
        path = (*SCRATCH, b"%d" % uid)
        with contextlib.suppress(FileExistsError):
            self._door.mkdir(path, 0o700)
        return path

    def scratch_of(self, uid: int, name: bytes) -> Path:
        """Where a user's scratch file of that name is, or would be."""
        return (*SCRATCH, b"%d" % uid, name)

    def scratch_files(self, uid: int) -> list[Entry]:
        """A user's scratch files."""
        try:
            return self._door.listdir((*SCRATCH, b"%d" % uid))
        except FileNotFoundError:
            return []

    def sweep(self, keep: float) -> int:
        """Remove scratch files nobody touched for ``keep`` seconds; returns how many."""
        removed = 0
        limit = time.time() - keep
        for user in self._door.listdir(SCRATCH):
            for entry in self._door.listdir((*SCRATCH, user.name)):
                path = (*SCRATCH, user.name, entry.name)
                with contextlib.suppress(OSError):
                    found = self._door.stat(path)
                    if max(found.st_mtime, found.st_ctime) < limit:
                        self._door.unlink(path)
                        removed += 1
        return removed

    # Spill and rescue

    def spill(self) -> SpillFile:
        """A file without a name, for a draft that is too large for memory."""
        return SpillFile(self._door.open((PRIVATE,), os.O_TMPFILE | os.O_RDWR, 0o600))

    def sample(self) -> int:
        """A descriptor of some file of the spool, to be closed by the caller."""
        return os.dup(self._lock)

    def rescue(self, name: bytes, uid: int, content: Iterator[bytes], why: str) -> None:
        """Keep what a refused draft contained, owned by the user who wrote it. Never raises."""
        stamp = time.strftime("%Y%m%dT%H%M%S").encode()
        kept = name[:180] + b"." + stamp + b".%d" % time.time_ns()
        try:
            fd = self._door.open((*RESCUE, kept), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            log.error("%r: a refused draft could not be kept: %s", name, error)  # noqa: TRY400
            return
        try:
            for chunk in content:
                _write_all(fd, chunk)
            os.fchown(fd, uid, -1)
        except OSError as error:
            log.error("%r: a refused draft is kept in part (%r): %s", name, kept, error)  # noqa: TRY400
        else:
            log.info("%r: a refused draft is kept as .mailfs/rescue/%r: %s", name, kept, why)
        finally:
            os.close(fd)


class SpillFile:
    """Implements `mailfs.sessions.storage.Spill` on a nameless file."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, offset: int, data: bytes) -> None:
        """Write all of ``data``."""
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, offset)
            offset += written
            view = view[written:]

    def read(self, offset: int, size: int) -> bytes:
        """Read ``size`` bytes."""
        return os.pread(self._fd, size, offset)

    def close(self) -> None:
        """The file goes with its descriptor."""
        os.close(self._fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
