"""Which mailbox a command means, whether mailfs serves it, and what its failures are called.

A NAME without a slash is a mailbox of the spool, one with a slash a path. The directory is opened
once, and everything is done relative to that descriptor: whether it is a mailfs mount is a question
about the descriptor, so the answer stays true whatever is mounted or unmounted meanwhile. Only the
root of a mount counts, as mailboxes lie nowhere else (design 7.3). Root at the real directory of a
spool that is mounted elsewhere is a program outside, and kept apart by the locks on the real files.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from mailfs.cli.where import DEFAULT
from mailfs.control.render import printable
from mailfs.daemon import mountinfo
from mailfs.daemon.errors import Exit, MountError
from mailfs.spool import deliver
from mailfs.spool.door import Door

if TYPE_CHECKING:
    from typing import Self

_ROOT = 1  # inode number of the root of every FUSE mount; FUSE_ROOT_ID in the kernel's fuse.h

_CODES = {
    errno.ENOENT: Exit.NOINPUT,
    errno.ENOTDIR: Exit.NOINPUT,
    errno.EISDIR: Exit.NOINPUT,
    errno.ELOOP: Exit.NOINPUT,
    errno.EINVAL: Exit.NOINPUT,
    errno.ENAMETOOLONG: Exit.NOINPUT,
    errno.EACCES: Exit.NOPERM,
    errno.EPERM: Exit.NOPERM,
    errno.EROFS: Exit.CANTCREAT,
    errno.EIO: Exit.IOERR,
    # Whatever else fails (no space, no quota, no memory, no daemon any more) may pass, and mail
    # that is not delivered is tried again on 75 and on nothing else.
}


def failed(error: OSError, what: str) -> MountError:
    """Say what an error of the system means for a command."""
    code = _CODES.get(error.errno or 0, Exit.TEMPFAIL)
    reason = error.strerror or str(error)
    if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
        reason = "the daemon of this mount is dead; `mailfs mount` clears this and mounts again"
    elif error.errno == errno.ELOOP:
        reason = "a symbolic link, which is not followed"
    return MountError(f"{what}: {reason}", code)


@dataclass(frozen=True)
class Place:
    """Where a mailbox is said to be; nothing has been looked at yet."""

    directory: str
    name: bytes

    @classmethod
    def of(cls, name: str, spool: str | None) -> Self:
        """Understand a NAME of the command line.

        Raises:
            click.UsageError: it cannot be a mailbox's.

        """
        directory, slash, last = name.rpartition("/")
        if slash and spool is not None:
            raise click.UsageError("a path needs no --spool")
        raw = os.fsencode(last)
        if last in ("", ".", "..") or raw.startswith(b".mailfs"):
            raise click.UsageError(f"{printable(name) or 'an empty name'}: not a mailbox's name")
        if raw.endswith(b".lock"):
            raise click.UsageError(f"{printable(name)}: a lock file's name; give the mailbox's")
        return cls((directory or "/") if slash else (spool or DEFAULT), raw)


class Mailbox:
    """A mailbox, which need not exist, in a directory that does.

    Args:
        place: where.

    Raises:
        MountError: there is no such directory.

    """

    def __init__(self, place: Place) -> None:
        self.name = place.name
        self.path = (place.name,)
        self.directory = printable(place.directory)
        self.shown = printable(os.path.join(os.fsencode(place.directory), place.name))
        try:
            self.door = Door.at(place.directory)
            self.mounted = _is_mailfs(self.door.fileno)
        except OSError as error:
            raise failed(error, self.directory) from error

    def failed(self, error: OSError) -> MountError:
        """Say what an error at this mailbox means."""
        return failed(error, self.shown)

    def exists(self) -> bool:
        """Whether there is a file of that name.

        Raises:
            MountError: that cannot be known, or it is no regular file.

        """
        try:
            found = self.door.stat(self.path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self.failed(error) from error
        if not stat.S_ISREG(found.st_mode):
            raise MountError(f"{self.shown}: not a regular file", Exit.NOINPUT)
        return True

    def owner(self) -> deliver.Owner:
        """Say whose it is if it does not exist: its account's.

        Raises:
            MountError: there is no such account, or it is not for us to make its mailbox.

        """
        try:
            account = pwd.getpwnam(os.fsdecode(self.name))
        except (KeyError, ValueError):
            message = f"{self.shown}: there is no such mailbox, and no such account to make it for"
            raise MountError(message, Exit.NOINPUT) from None
        if os.geteuid() not in (0, account.pw_uid):
            message = f"{self.shown}: there is no such mailbox, and only its account may make it"
            raise MountError(message, Exit.NOPERM)
        directory = os.fstat(self.door.fileno)
        return deliver.owner_in(directory, account.pw_uid, account.pw_gid)


def _is_mailfs(fd: int) -> bool:
    """Whether a descriptor is the root of a mailfs mount, by the mount it was opened on."""
    if os.fstat(fd).st_ino != _ROOT:
        return False
    with open(f"/proc/self/fdinfo/{fd}", "rb") as file:
        number = next(int(line.split()[1]) for line in file if line.startswith(b"mnt_id:"))
    return any(
        mount.id == number and mount.fstype == mountinfo.FSTYPE for mount in mountinfo.mounts()
    )
