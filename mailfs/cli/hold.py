"""Holding a mailbox for as long as a command takes, with a mount and without one.

Through a mount we are an ordinary client. Waiting is flock(2)'s, in the mount's queue and without
polling; whoever has it makes the lock file too, which is the same lock to the mount, and then lets
go of the flock, so that the program that runs under the lock may use kernel locks itself. The lock
file ends with us, however we end. A mailbox that does not exist has no flock: there we have to ask
for the lock file again and again.

Without a mount it is the lock that mailfs itself takes on real files (`spool.backing_lock`), all of
it at once or nothing, tried again and again.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import signal
import socket
import threading
import time
from typing import TYPE_CHECKING, Protocol

import click

from mailfs.cli.signals import WAKE, Signals
from mailfs.daemon.errors import Exit, MountError

if TYPE_CHECKING:
    from mailfs.cli.mailbox import Mailbox
    from mailfs.spool.backing_lock import BackingLock

POLL = (0.1, 0.3)
"""Seconds between two tries where nothing tells us, at random between these."""

timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(0, 86400),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="Wait so long for the lock; then exit with 75.",
)
spool_option = click.option(
    "--spool", metavar="DIR", help="The spool, or where it is mounted, if not /var/mail."
)


class Hold(Protocol):
    """A mailbox that is ours."""

    def touch(self) -> bool:
        """Keep it fresh; False if it was taken from us."""

    def release(self) -> None:
        """Give it back; never raises."""


class Deadline:
    """The time limit of a wait."""

    def __init__(self, mailbox: Mailbox, signals: Signals, seconds: float) -> None:
        self._mailbox = mailbox
        self._signals = signals
        self._seconds = seconds
        self._end = time.monotonic() + seconds
        self.at_once = seconds == 0

    def pause(self, seconds: float | None = None) -> None:
        """Wait for so many seconds, or for a thread of ours.

        Raises:
            MountError: the time is up.
            Stopped: we are asked to end.

        """
        left = self._end - time.monotonic()
        if left <= 0:
            message = f"{self._mailbox.shown}: locked by somebody else for {self._seconds:g} s"
            raise MountError(message, Exit.TEMPFAIL)
        self._signals.pause(left if seconds is None else min(seconds, left))


def wait_for_flock(fd: int, deadline: Deadline) -> None:
    """Take a flock in turn. If that fails the process must end: the request may still be waiting.

    Raises:
        OSError: it cannot be had at all.
        MountError, Stopped: see `Deadline.pause`.

    """
    answer: list[OSError | None] = []
    main = threading.get_ident()

    def ask() -> None:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | (fcntl.LOCK_NB if deadline.at_once else 0))
            answer.append(None)
        except OSError as error:
            answer.append(error)
        signal.pthread_kill(main, WAKE)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    if deadline.at_once:
        thread.join()
    while not answer:
        deadline.pause()
    match answer[0]:
        case BlockingIOError():
            deadline.pause()
        case OSError() as error:
            raise error


class LockFile:
    """``X.lock`` in a mount: a view of the lock, so no name is too long and no disk full for it."""

    def __init__(self, mailbox: Mailbox, deadline: Deadline) -> None:
        self._door = mailbox.door
        self._path = (mailbox.name + b".lock",)
        try:
            fd = mailbox.door.open(mailbox.path, os.O_RDWR)
        except FileNotFoundError:  # nothing to flock
            self._make(deadline)
            return
        try:
            wait_for_flock(fd, deadline)
            self._make(deadline)
        finally:
            os.close(fd)

    def _make(self, deadline: Deadline) -> None:
        while True:
            try:
                fd = self._door.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                deadline.pause(random.uniform(*POLL))
            else:
                with contextlib.suppress(OSError):  # what it says is for people
                    os.write(fd, b"%d:%s" % (os.getpid(), os.fsencode(socket.gethostname())))
                with contextlib.suppress(OSError):
                    os.close(fd)
                return

    def touch(self) -> bool:
        """Keep it fresh: whose lock is used is not taken away (`locks.lease`)."""
        now = time.time_ns()
        try:
            self._door.utime_ns(self._path, now, now)
        except OSError:
            return False
        return True

    def release(self) -> None:
        """Give it back."""
        with contextlib.suppress(OSError):  # taken from us, or the daemon is gone
            self._door.unlink(self._path)


class RealLock:
    """The locks on a real mailbox."""

    def __init__(self, lock: BackingLock, deadline: Deadline) -> None:
        # here, as it needs trio, and the command line starts without
        from mailfs.locking.model import Mode

        self.lock = lock
        while not lock.try_acquire(Mode.WRITE):
            deadline.pause(random.uniform(*POLL))

    def touch(self) -> bool:
        """Keep the lock file fresh."""
        self.lock.touch()
        return not self.lock.lost

    def release(self) -> None:
        """Give everything back."""
        self.lock.release()


def hold_real(mailbox: Mailbox, deadline: Deadline) -> RealLock:
    """Lock a mailbox where no mailfs is mounted.

    Raises:
        MountError: it cannot be had, in time or at all.
        Stopped: we are asked to end.

    """
    from mailfs.spool.backing_lock import BackingLock, BackingSettings

    lock = BackingLock(mailbox.door, mailbox.path, BackingSettings())
    try:
        return RealLock(lock, deadline)
    except OSError as error:
        lock.release()
        if error.errno in (errno.EACCES, errno.EPERM):
            message = (
                f"{mailbox.shown}: you may not make lock files in {mailbox.directory}, or not write"
                " the mailbox; mount the spool with mailfs, or be root"
            )
            raise MountError(message, Exit.NOPERM) from error
        raise mailbox.failed(error) from error


def hold(mailbox: Mailbox, deadline: Deadline) -> Hold:
    """Lock a mailbox.

    Raises:
        MountError: it cannot be had, in time or at all.
        Stopped: we are asked to end.

    """
    if not mailbox.mounted:
        return hold_real(mailbox, deadline)
    try:
        return LockFile(mailbox, deadline)
    except OSError as error:
        raise mailbox.failed(error) from error
