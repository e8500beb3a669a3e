"""The one directory of ours in the backing spool: ``.mailfs/`` (root, 0700).

    .mailfs/daemon.lock    held (flock) by the daemon of this spool and host
    .mailfs/scratch/UID/   files private to a user: temporary names, editors' swap files
    .mailfs/journal/       drafts that must survive us (``journal``)
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

from mailfs.spool.fileio import write_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailfs.spool.door import Door, Entry, Path

log = logging.getLogger(__name__)

PRIVATE = b".mailfs"
SCRATCH: Path = (PRIVATE, b"scratch")
RESCUE: Path = (PRIVATE, b"rescue")
JOURNAL: Path = (PRIVATE, b"journal")


class SpoolBusyError(Exception):
    """Another daemon serves this spool; ``pid`` is what it wrote down, 0 if unreadable."""

    def __init__(self, pid: int) -> None:
        super().__init__(f"daemon {pid}")
        self.pid = pid


class PrivateDirectory:
    """Makes ``.mailfs`` and keeps the daemon's lock on it. Raises `SpoolBusyError` if another one has it."""

    def __init__(self, door: Door) -> None:
        self._door = door
        for path in ((PRIVATE,), SCRATCH, RESCUE, JOURNAL):
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

    def all_scratch(self) -> Iterator[Path]:
        """The scratch files of all users."""
        for user in self._door.listdir(SCRATCH):
            for entry in self._door.listdir((*SCRATCH, user.name)):
                yield (*SCRATCH, user.name, entry.name)

    def sweep(self, keep: float) -> int:
        """Remove scratch files nobody touched for ``keep`` seconds; returns how many."""
        removed = 0
        limit = time.time() - keep
        for path in self.all_scratch():
            with contextlib.suppress(OSError):
                found = self._door.stat(path)
                if max(found.st_mtime, found.st_ctime) < limit:
                    self._door.unlink(path)
                    removed += 1
        return removed

    def sample(self) -> int:
        """A descriptor of some file of the spool, to be closed by the caller."""
        return os.dup(self._lock)

    # Rescue

    def rescue(self, name: bytes, uid: int, content: Iterator[bytes], why: str) -> bool:
        """Keep what a refused draft contained, owned by the user who wrote it. Never raises.

        Returns:
            Whether all of it is kept.

        """
        kept = _rescue_name(name)
        try:
            fd = self._door.open((*RESCUE, kept), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            log.error("%r: a refused draft could not be kept: %s", name, error)  # noqa: TRY400
            return False
        at = 0
        try:
            for chunk in content:
                write_all(fd, chunk, at)
                at += len(chunk)
            os.fchown(fd, uid, -1)
        except OSError as error:
            log.error("%r: a refused draft is kept in part (%r): %s", name, kept, error)  # noqa: TRY400
            return False
        finally:
            os.close(fd)
        log.info("%r: a refused draft is kept as .mailfs/rescue/%r: %s", name, kept, why)
        return True

    def keep_damaged(self, name: bytes) -> bool:
        """Move a file of the journal that cannot be read to rescue, as it is. Never raises."""
        kept = _rescue_name(b"journal-" + name)
        try:
            self._door.rename((*JOURNAL, name), (*RESCUE, kept))
        except OSError as error:
            log.error("damaged journal file %r could not be moved: %s", name, error)  # noqa: TRY400
            return False
        log.error("journal file %r is damaged: kept as .mailfs/rescue/%r", name, kept)
        return True


def _rescue_name(name: bytes) -> bytes:
    stamp = time.strftime("%Y%m%dT%H%M%S").encode()
    return name[:180] + b"." + stamp + b".%d" % time.time_ns()
