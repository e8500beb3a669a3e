"""One lock on one real mailbox, against everybody outside the mount.

Programs outside lock in different ways and different orders, and mailfs on another host locks as we
do. So we hold all of it or nothing:

1. Is there a lock file that counts (`foreign`), somebody holds the mailbox.
2. Take the kernel locks on the mailbox, if it exists: shared for readers, else exclusive.
3. Take the dotlock, exclusive in every mode, as a lock file cannot be shared.
4. Look whether the mailbox is still the file that was locked in step 2.

No step waits. If one fails, everything is dropped again, and after a random moment, or when the
lock file disappears, all of it is tried anew. Whoever never waits for one lock while he holds
another cannot be part of a deadlock, whatever order the others prefer. The kernel locks come first
only because failing there leaves no trace in the directory.

A weaker hold is made stronger in place if that works at once; `acquire` otherwise drops it before
it waits, as flock(2) does. The core may not rely on the mailbox being unchanged then: it compares
versions after every grant anyway.

The dotlock's times are set every ``touch_every`` seconds by one task for all held locks. That, and
the release, is when we find that some program has broken our lock: `BackingLock.lost`.

Only a held lock costs descriptors: the lock file's, and a private one of the mailbox, which nobody
else may use or close. All calls on files are synchronous: on a local filesystem they take
microseconds. Where a spool on NFS makes them slow, `try_acquire`, `refresh`, `touch` and `release`
may be run in a thread, one at a time for each lock.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import os
import random
import socket
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import trio

from mailfs.locking.model import Mode
from mailfs.spool.dotlock import Dotlock, lock_path
from mailfs.spool.foreign import ForeignLock, MayWrite, Verdict, owner_may_write
from mailfs.spool.kernel_locks import KernelLocks, Strength, on_nfs, who_locks
from mailfs.spool.spool_watch import Bell

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.spool.door import Door, Path
    from mailfs.spool.spool_watch import SpoolWatch

_log = logging.getLogger(__name__)

POLL = (0.05, 0.25)
"""Seconds between two tries, at random between these: the unlock of a kernel lock tells nobody."""

PAUSE_AFTER_BREAKING = {Verdict.DEAD: 0.5, Verdict.UNCHANGED: 2.0}
"""Seconds that a mailbox is left alone after a stale lock was removed. A program that judged the
same lock file by age may be a second or more (its polling interval) from unlinking that name."""

_SQUATTERS = 8  # how often in one try a lock file that does not count is removed before we give up
_REPLACEMENTS = 8  # how often in one try the mailbox may turn into another file


@dataclass(frozen=True, slots=True)
class BackingSettings:
    """How real mailboxes are locked."""

    dotlock: bool = True
    """Whether to take ``X.lock``, and respect it."""
    ofd: bool = True
    """Whether to take an OFD lock, which excludes fcntl locks."""
    flock: Literal["auto"] | bool = "auto"
    """Whether to take a flock; "auto": not on NFS, where it would conflict with our OFD lock."""
    stale_after: float = 120.0
    """Seconds without a change after which a foreign lock file looks abandoned (Dovecot: 120)."""
    touch_every: float = 15.0
    """Seconds between two refreshes of our lock files (the shortest stale rule known is 30)."""
    host: str = field(default_factory=socket.gethostname)
    """Our host in lock files; must differ on all hosts that share the spool."""


class BackingLock:
    """Everything we hold on one real mailbox, as one lock. `backing_locks` makes and keeps them.

    Args:
        door: the way to the spool.
        path: the mailbox, which need not exist.
        settings: which locks to take.
        may_write: whose lock files count.
        clock: monotonic seconds.
        watch: tells when lock files disappear; None: only poll.
        among: the set this lock is a member of while it is held.

    """

    __slots__ = (
        "__weakref__",
        "_among",
        "_clock",
        "_door",
        "_dotlock",
        "_foreign",
        "_kernel",
        "_lost",
        "_not_before",
        "_settings",
        "_strength",
        "_watch",
        "path",
    )

    def __init__(
        self,
        door: Door,
        path: Path,
        settings: BackingSettings,
        may_write: MayWrite = owner_may_write,
        clock: Callable[[], float] = time.monotonic,
        *,
        watch: SpoolWatch | None = None,
        among: set[BackingLock] | None = None,
    ) -> None:
        self.path = path
        self._door = door
        self._settings = settings
        self._clock = clock
        self._watch = watch
        self._among = among if among is not None else set()
        self._foreign = ForeignLock(
            door,
            path,
            host=settings.host,
            stale_after=settings.stale_after,
            may_write=may_write,
            clock=clock,
        )
        self._dotlock: Dotlock | None = None
        self._kernel: KernelLocks | None = None
        self._strength = Strength.NONE
        self._not_before = -math.inf
        self._lost = False

    def __repr__(self) -> str:
        return f"<BackingLock {b'/'.join(self.path)!r} {self._strength.name.lower()}>"

    @property
    def held(self) -> bool:
        """Whether we hold the mailbox, in whatever mode."""
        return self._strength is not Strength.NONE

    @property
    def exclusive(self) -> bool:
        """Whether we hold it for more than reading."""
        return self._strength is Strength.EXCLUSIVE

    @property
    def lost(self) -> bool:
        """Whether some program took away what we hold, as far as we have noticed; until release."""
        return self._lost

    # -- taking

    def try_acquire(self, mode: Mode) -> bool:
        """Hold the mailbox at least in ``mode`` at once, or leave what was held as it was.

        Raises:
            OSError: the mailbox cannot be locked at all: no right to make a lock file (EACCES,
                EPERM), no space (ENOSPC, EDQUOT), a read-only filesystem (EROFS), no such
                directory (ENOENT), a mailbox that is no regular file (ELOOP, EINVAL, EISDIR).
                What was held is still held.

        """
        wanted = _strength_for(mode)
        if self.held:
            return wanted <= self._strength or self._strengthen()
        if self._clock() < self._not_before:
            return False
        self._lost = False
        try:
            taken = self._take_all(wanted)
        except BaseException:
            self._drop()
            raise
        if not taken:
            self._drop()
            return False
        self._strength = wanted
        self._among.add(self)
        return True

    async def acquire(self, mode: Mode) -> None:
        """Wait until the mailbox is held at least in ``mode``.

        A weaker hold that cannot be made stronger at once is given up before the wait. Cancelled,
        it leaves nothing of ``mode`` behind, and has tried once, at once, to have the weaker hold
        back; `held` says whether it has.

        Raises:
            OSError: as `try_acquire`.

        """
        await trio.lowlevel.checkpoint()
        if self.try_acquire(mode):
            return
        weaker = self.held
        self.release()
        lock_file = lock_path(self.path)
        hint = self._watch.removals(lock_file) if self._watch else contextlib.nullcontext(Bell())
        try:
            with hint as bell:
                while not self.try_acquire(mode):
                    await bell.wait(self._next_try())
        except BaseException:
            if weaker:
                with contextlib.suppress(OSError):
                    self.try_acquire(Mode.READ)
            raise

    def _next_try(self) -> float:
        return max(random.uniform(*POLL), self._not_before - self._clock())

    def _take_all(self, wanted: Strength) -> bool:
        for _ in range(_SQUATTERS):
            if self._settings.dotlock and not self._way_is_free():
                return False
            if not self._lock_file(wanted):
                return False
            if not self._settings.dotlock:
                return True
            try:
                self._dotlock = Dotlock.try_acquire(self._door, self.path, self._settings.host)
            except OSError as error:
                # A name too long for ".lock" is too long for everybody's.
                if error.errno != errno.ENAMETOOLONG:
                    raise
                return True
            if self._dotlock is not None:
                return self._lock_file(wanted)  # a quick look: is it still the same file?
            self._drop()
        return False

    def _way_is_free(self) -> bool:
        """Whether no lock file that counts is there, after removing one that does not."""
        try:
            verdict, sighting = self._foreign.judge()
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return True
            raise
        if sighting is None:
            return True
        if verdict is Verdict.HELD:
            return False
        if verdict is Verdict.UNCHANGED and not self._lock_file(Strength.EXCLUSIVE):
            return False
        if not self._foreign.remove(sighting):
            return False
        name, why = self.path[-1] + b".lock", verdict.value
        _log.warning("removed %r of uid %d, content %r: it %s", name, sighting.uid,
                     sighting.content[:80], why)  # fmt: skip
        if verdict in PAUSE_AFTER_BREAKING:
            self._not_before = self._clock() + PAUSE_AFTER_BREAKING[verdict]
            return False
        return True

    def _strengthen(self) -> bool:
        if self._kernel is not None and not self._kernel.try_lock(Strength.EXCLUSIVE):
            if self._kernel.strength is Strength.NONE:
                self._note_loss("its kernel lock was taken in a refused upgrade")
            return False
        self._strength = Strength.EXCLUSIVE
        return True

    # -- the mailbox's file and its kernel locks

    def refresh(self) -> bool:
        """Make the kernel locks those of the file that now has the mailbox's name.

        To be called while held, after the mailbox was created, removed, or another file was renamed
        over it.

        Returns:
            False if somebody outside holds a kernel lock on the new file; the old one stays locked.

        Raises:
            OSError: the new file cannot be opened, or is no regular file.

        """
        return not self.held or self._lock_file(self._strength)

    def _lock_file(self, strength: Strength) -> bool:
        """Hold kernel locks on the file of that name in ``strength``; True if there is none."""
        if not self._settings.ofd and self._settings.flock is False:
            return True
        for _ in range(_REPLACEMENTS):
            file = self._file()
            if file is None:
                self._replace_kernel(None)
                return True
            if self._kernel is not None and os.path.samestat(os.fstat(self._kernel.fileno), file):
                return self._kernel.try_lock(strength)
            try:
                fresh = self._open_kernel(strength)
            except FileNotFoundError:
                continue
            taken = False
            try:
                taken = fresh.try_lock(strength)
            finally:
                if not taken:
                    fresh.close()
            if not taken:
                return False
            self._replace_kernel(fresh)
        return False

    def _file(self) -> os.stat_result | None:
        try:
            file = self._door.stat(self.path)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(file.st_mode):
            code = errno.ELOOP if stat.S_ISLNK(file.st_mode) else errno.EINVAL
            raise OSError(code, "the mailbox is no regular file", self.path[-1])
        return file

    def _open_kernel(self, strength: Strength) -> KernelLocks:
        try:
            fd = self._door.open(self.path, os.O_RDWR)
        except PermissionError:
            if strength is Strength.EXCLUSIVE:
                raise
            fd = self._door.open(self.path, os.O_RDONLY)
        flock = self._settings.flock
        return KernelLocks(
            fd, ofd=self._settings.ofd, flock=not on_nfs(fd) if flock == "auto" else flock
        )

    def _replace_kernel(self, fresh: KernelLocks | None) -> None:
        old, self._kernel = self._kernel, fresh
        if old is not None:
            old.close()

    # -- keeping and giving back

    def touch(self) -> None:
        """Refresh the lock file's times, and notice if it is not ours any more. Never raises."""
        if self._dotlock is not None and not self._dotlock.touch():
            self._note_loss("its lock file was removed or replaced")

    def _note_loss(self, what: str) -> None:
        if not self._lost:
            self._lost = True
            _log.warning("mailbox %r was taken from us: %s", self.path[-1], what)

    def weaken(self, mode: Mode) -> None:
        """Let other readers in, as far as kernel locks go; the lock file stays. Never raises."""
        if not self.exclusive or _strength_for(mode) is Strength.EXCLUSIVE:
            return
        if self._kernel is not None:
            try:
                weakened = self._kernel.try_lock(Strength.SHARED)
            except OSError as error:
                _log.warning("cannot weaken the lock on %r: %s", self.path[-1], error)
                return  # more than asked for is held: nobody comes to harm
            if not weakened and self._kernel.strength is Strength.NONE:
                self._note_loss("its kernel lock was taken in the moment of weakening it")
        self._strength = Strength.SHARED

    def release(self) -> None:
        """Give back everything. Never raises; a lock file that is a thief's is left alone."""
        self._drop()
        self._strength = Strength.NONE
        self._lost = False
        self._among.discard(self)

    def _drop(self) -> None:
        # The reverse order: whoever sees the lock file gone finds the kernel locks free as well.
        self._replace_kernel(None)
        dotlock, self._dotlock = self._dotlock, None
        if dotlock is not None:
            dotlock.release()

    def holder(self) -> str | None:
        """Say for people who outside holds the mailbox; None if we do, or nobody is found."""
        if self.held:
            return None
        if self._settings.dotlock and (who := self._foreign.describe()) is not None:
            return who
        with contextlib.suppress(OSError):
            fd = self._door.open(self.path, os.O_RDONLY)
            try:
                return who_locks(fd)
            finally:
                os.close(fd)
        return None


def _strength_for(mode: Mode) -> Strength:
    # Appends of one host go together in the core; for everybody outside we are a writer.
    return Strength.SHARED if mode is Mode.READ else Strength.EXCLUSIVE
