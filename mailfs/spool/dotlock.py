"""A dotlock on a real mailbox that holds on NFS too: ``X.lock`` in the spool.

How it is taken: write a temporary file with a name that no other host, process or attempt can have,
link() it to ``X.lock``, and look. The result of link() says nothing (its reply may be lost and the
request repeated, link(2)). A link count of 2 says that it worked, and that ``X.lock`` is our inode
says it for certain: where hard links are not protected a stranger can raise the count of our
temporary. Then the temporary goes.

What is in it: ``PID:HOST`` and *no* newline. Dovecot and lockmail compare the host with their own
and believe in the pid only if it is the same; lockmail takes a trailing newline for a part of the
host name. liblockfile (``-p``) reads the leading number and nothing else, which is right on the
daemon's host; its manual says that ``-p`` is for local filesystems only. maildrop, procmail and the
rest never read it. The mode is 0644 whatever the umask, so that all of them can; owner and group
stay the daemon's, so that in a sticky spool nobody but the daemon and root removes a live lock.

While it is held the file stays open: an inode in use is never given to another file, so comparing
device and inode cannot be fooled by a thief whose file got the number of ours, which ext4 does at
once. On a local filesystem a flock on it stops c-client 3, which takes a lock file that it can
flock for stale.

Between the last look and the unlink of a release there are microseconds in which a thief could
change the name; no call removes a name on condition of its inode.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import logging
import os
import re
import secrets
from typing import TYPE_CHECKING

from mailfs.spool.kernel_locks import on_nfs

if TYPE_CHECKING:
    from mailfs.spool.door import Door, Path

_log = logging.getLogger(__name__)

_MODE = 0o644
_PREFIX = b".mailfs-"
_counter = itertools.count()

_held: set[tuple[int, int]] = set()
"""(device, inode) of each dotlock of this process: a file naming our pid that is not among them was
left by an earlier process that had our pid (in a container it often is the same)."""


def lock_path(mailbox: Path) -> Path:
    """Give the path of a mailbox's lock file."""
    return (*mailbox[:-1], mailbox[-1] + b".lock")


def is_temporary(name: bytes) -> bool:
    """Whether a name in the spool is one of our short-lived temporaries (on whatever host)."""
    return name.startswith(_PREFIX)


def is_held_here(device: int, inode: int) -> bool:
    """Whether a lock file is held by this very process."""
    return (device, inode) in _held


def temporary_name(host: str) -> bytes:
    """Make a name unique over hosts, processes, attempts and reboots."""
    count, chance = next(_counter), secrets.token_hex(6)
    return b"%s%s.%d.%d.%s" % (_PREFIX, _plain(host), os.getpid(), count, chance.encode())


def _plain(host: str) -> bytes:
    return re.sub(rb"[^A-Za-z0-9-]", b"_", os.fsencode(host))[:64]


def sweep(door: Door, directory: Path, host: str) -> int:
    """Remove what dead processes of this host left of their temporaries in one directory.

    To be called before the first lock is taken: a temporary with our own pid counts as left.

    Returns:
        how many were removed.

    Raises:
        OSError: the directory cannot be read. One that cannot be removed is logged and left.

    """
    pattern = re.compile(re.escape(_PREFIX + _plain(host)) + rb"\.(\d{1,10})\.\d+\.[0-9a-f]+")
    removed = 0
    for entry in door.listdir(directory):
        if not (match := pattern.fullmatch(entry.name)):
            continue
        pid = int(match[1])
        if pid != os.getpid() and alive(pid):
            continue
        try:
            door.unlink((*directory, entry.name))
            removed += 1
        except OSError as error:
            _log.warning("cannot remove the left-over temporary %r: %s", entry.name, error)
    return removed


def sweep_locks(door: Door, directory: Path, host: str, pid: int) -> int:
    """Remove the lock files of an earlier daemon on this spool and host, which was killed.

    To be called by the daemon that has taken over from it (it holds the daemon's lock, so the other is dead), before
    the first lock is taken. Nobody has to find out then that they are stale, and nobody waits meanwhile.

    Args:
        door: the way to the spool.
        directory: where the mailboxes are.
        host: ours, as in lock files.
        pid: the earlier daemon's.

    Returns:
        how many were removed.
    """
    removed = 0
    for entry in door.listdir(directory):
        path = (*directory, entry.name)
        if not entry.name.endswith(b".lock"):
            continue
        try:
            fd = door.open(path, os.O_RDONLY)
        except OSError:
            continue  # a link, or gone
        try:
            ours = os.read(fd, 300) == b"%d:%s" % (pid, os.fsencode(host))
        finally:
            os.close(fd)
        if ours:
            _log.info("removed %r of the daemon %d, which is dead", entry.name, pid)
            remove_quietly(door, path)
            removed += 1
    return removed


def alive(pid: int) -> bool:
    """Whether a process of this pid exists in our pid namespace, a zombie included."""
    if not 0 < pid < 2**31:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:  # EPERM: it lives, and is not ours
        return True
    return True


class Dotlock:
    """A dotlock that we hold; `try_acquire` is the way to get one."""

    __slots__ = ("_door", "_fd", "_identity", "path")

    def __init__(self, door: Door, path: Path, fd: int, file: os.stat_result) -> None:
        self.path = path
        self._door = door
        self._fd = fd
        self._identity = (file.st_dev, file.st_ino)
        _held.add(self._identity)

    @classmethod
    def try_acquire(cls, door: Door, mailbox: Path, host: str) -> Dotlock | None:
        """Take the dotlock of ``mailbox`` at once.

        Args:
            door: the way to the spool.
            mailbox: the mailbox, which need not exist.
            host: the name of this host, unique among those that share the spool.

        Returns:
            the lock, or None if there is a lock file, whoever made it.

        Raises:
            OSError: a lock file cannot be made here at all (EACCES, EROFS, ENOSPC, EDQUOT,
                ENAMETOOLONG); nothing is left behind.

        """
        temporary = (*mailbox[:-1], temporary_name(host))
        fd = door.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _MODE)
        try:
            _fill(fd, b"%d:%s" % (os.getpid(), os.fsencode(host)))
            lock = cls(door, lock_path(mailbox), fd, os.fstat(fd))
        except OSError:
            os.close(fd)
            remove_quietly(door, temporary)
            raise
        taken = False
        try:
            taken = lock._link(temporary)
        except OSError:
            with contextlib.suppress(OSError):  # the link may have been made all the same
                if lock._is_named():
                    door.unlink(lock.path)
            raise
        finally:
            remove_quietly(door, temporary)
            if not taken:
                lock._close()
        return lock if taken else None

    def _link(self, temporary: Path) -> bool:
        failure = None
        try:
            self._door.link(temporary, self.path)
        except FileExistsError:
            pass
        except OSError as error:
            failure = error
        if self._is_named():
            return True
        if os.fstat(self._fd).st_nlink > 1:
            # Linked, and the name does not show it: an NFS client's cached entry (opening the file
            # makes it ask the server), or a stranger's link to our temporary.
            with contextlib.suppress(OSError):
                os.close(self._door.open(self.path, os.O_RDONLY))
            return self._is_named()
        if failure is not None:
            raise failure
        return False

    def _is_named(self) -> bool:
        try:
            file = self._door.stat(self.path)
        except FileNotFoundError:
            return False
        return (file.st_dev, file.st_ino) == self._identity

    def still_ours(self) -> bool:
        """Whether the lock file is the one that we made; True also when that cannot be known."""
        try:
            return self._is_named()
        except OSError:
            return True

    def touch(self) -> bool:
        """Set the lock file's times to now, by the clock of its filesystem; give `still_ours`."""
        try:
            os.utime(self._fd)
        except OSError as error:
            _log.warning("cannot touch %r: %s", self.path[-1], error)
        return self.still_ours()

    def release(self) -> bool:
        """Remove the lock file if it is still ours, and leave it alone if not.

        Returns:
            False if it was not ours any more, or cannot be removed; the log says which.

        """
        removed = self._unlink()
        self._close()
        return removed

    def _unlink(self) -> bool:
        try:
            if self._is_named():
                self._door.unlink(self.path)
                return True
        except FileNotFoundError:
            pass
        except OSError as error:
            _log.warning("cannot remove our lock %r: %s", self.path[-1], error)
            return False
        _log.warning("our lock %r was taken away; its name is left as it is", self.path[-1])
        return False

    def _close(self) -> None:
        _held.discard(self._identity)
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.close(fd)


def _fill(fd: int, content: bytes) -> None:
    """Give a fresh lock file its mode, content and flock."""
    os.fchmod(fd, _MODE)
    if os.write(fd, content) != len(content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if not on_nfs(fd):
        with contextlib.suppress(OSError):  # a courtesy to c-client; not every filesystem has it
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_quietly(door: Door, temporary: Path) -> None:
    """Unlink a temporary of ours; `sweep` finds later what cannot be removed now."""
    try:
        door.unlink(temporary)
    except FileNotFoundError:
        pass
    except OSError as error:
        _log.warning("cannot remove the temporary %r: %s", temporary[-1], error)
