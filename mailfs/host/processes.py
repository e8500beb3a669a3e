"""The table of processes: from the thread id in a request to the process that made it.

Identity is an object. The first request of a process opens a pidfd for it, reads its status once,
and makes one `HostProcess`, which stays the same object for as long as anybody holds it and is
never reused for a recycled pid:

* A thread id that is the id of a process in the table is answered at once if the pidfd says that it
  still runs.
* Any other thread id is looked up in ``/proc/PID/task`` of the process it belonged to last time,
  which is cheap, or in ``/proc/TID/status``, which is not.
* To be certain that a pid and what was read about it belong together, the pidfd is opened first and
  the process seen alive afterwards; a pid cannot be recycled in between.

The parent is opened together with the child, while the child's PPid proves that the parent's pid is
still the parent's, and so on up to `ANCESTORS`. Parents that merely collect or start processes (pid
1, session managers) are
none: what a mail program leaves behind must not become theirs.

The table keeps the latest processes alive as objects, within a limit; those that others hold it
knows by weak references. A descriptor is closed with its object, or when somebody has asked how the
process ended. Those that end unnoticed are swept out, by an epoll set, when others come.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import time
import weakref
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

import trio

from mailfs.host import procfs
from mailfs.host.pidfd import Pidfd
from mailfs.locking.model import Ending

if TYPE_CHECKING:
    from collections.abc import Collection

DESCRIPTORS: Final = 4096
"""How many processes are kept that nobody else holds; each costs one descriptor."""

ANCESTORS: Final = 32
"""How many generations are looked up for a process; beyond, a parent counts as unknown."""

FRESH: Final = 1.0
"""Seconds for which a name and a group list are believed, if the ids are those of the request."""

MOST: Final = 2**31 - 1
"""The largest pid_t."""

SWEPT: Final = 64
"""How many ended processes are dropped when one is added."""

ADOPTERS: Final = frozenset(
    {
        # first processes of machines and containers, user managers
        *("init", "systemd", "upstart", "openrc-init", "runit", "runit-init", "s6-svscan", "dinit"),
        *("finit", "procd", "launchd", "tini", "dumb-init", "docker-init", "catatonit", "pid1"),
        *("bwrap", "(sd-pam)", "kthreadd"),
        # subreapers (PR_SET_CHILD_SUBREAPER), which /proc does not tell; comm has fifteen
        # characters
        *("containerd-shim", "conmon", "podman", "dockerd", "containerd", "crio"),
        # supervisors, which outlive whatever they start
        *("runsvdir", "runsv", "s6-supervise", "supervise", "svscan", "supervise-daemo"),
        *("supervisord", "monit", "circusd"),
        # session managers
        *("gnome-session-b", "gnome-session", "ksmserver", "plasma_session", "lxsession"),
        *("xfce4-session", "mate-session"),
    }
)
"""Names (comm) of programs to which a lock never passes when the process that took it ends."""


class HostProcess:
    """A process of this host: the `mailfs.locking.model.Process` that `ProcessTable.find` makes.

    Attributes:
        pid: thread group id in our pid namespace.
        uid: real user id when first seen.
        gid: real group id when first seen.
        parent: the parent when first seen, or None (see the module).
    """

    __slots__ = (
        "__weakref__",
        "_asker",
        "_ending",
        "_executable",
        "_pidfd",
        "_read_at",
        "_status",
        "_waiters",
        "_watched",
        "gid",
        "parent",
        "pid",
        "uid",
    )

    def __init__(
        self,
        pid: int,
        pidfd: Pidfd,
        status: procfs.Status,
        parent: HostProcess | None,
        asker: procfs.Asker,
    ) -> None:
        self.pid = pid
        self.uid = status.uid
        self.gid = status.gid
        self.parent = parent
        self._pidfd = pidfd
        self._asker = asker
        self._status = status
        self._read_at = time.monotonic()
        self._executable: tuple[bytes, str] | None = None
        self._ending: Ending | None = None
        self._watched = False
        self._waiters = trio.lowlevel.ParkingLot()

    def __repr__(self) -> str:
        state = "running" if self.alive else "dead"
        waiters = self._waiters.statistics().tasks_waiting + self._watched
        return f"<process {self.pid} {self._status.name} uid={self.uid} {state}, {waiters} waiting>"

    @property
    def alive(self) -> bool:
        """Whether it runs now: not even a zombie. About a microsecond; does not block."""
        return self._ending is None and self._pidfd.running

    @property
    def name(self) -> str:
        """Program name (comm), printable, at most a second old while the process runs."""
        self._refresh(FRESH)
        return self._status.name

    @property
    def groups(self) -> frozenset[int]:
        """Supplementary groups, at most a second old while the process runs."""
        self._refresh(FRESH)
        return self._status.groups

    def groups_for(self, uid: int, gid: int) -> frozenset[int]:
        """Return the supplementary groups that go with a request made as `uid` and `gid`.

        Programs change identity between requests (procmail, dovecot, postfix), so ids that differ
        from the last ones known are read again. If they differ still, the request is that of a
        thread with an identity of its own or of a process that has gone, and no groups are known:
        fewer rights rather than wrong ones.
        """
        self._refresh(FRESH)
        if (self._status.fsuid, self._status.fsgid) != (uid, gid):
            self._refresh(0)
        if (self._status.fsuid, self._status.fsgid) != (uid, gid):
            return frozenset()
        return self._status.groups

    async def executable(self) -> str | None:
        """Return the path of the program it runs, or ran when it was last asked.

        The answer is kept until an execve is noticed: comm or the size of the text segment has
        changed. A program replaced by one equal in both keeps its path; whoever arranges that gains
        nothing that running the first program would not give. A process that is exiting or in the
        midst of execve cannot tell, and is still what it was. None if it was never told.
        """
        self._refresh(0)
        image, known = self._status.image, self._executable
        if known is None or image not in (known[0], b""):
            path = await self._asker.executable(self.pid, self.uid)
            if path is not None and self.alive:  # otherwise it may be of the pid's next owner
                self._executable = (image, path)
        return self._executable[1] if self._executable else None

    @property
    def exiting(self) -> bool:
        """Whether it is on its way out: it has no address space any more, though it may still close files.

        do_exit() in kernel/exit.c drops the address space before it closes files, and ``status`` does not block.
        """
        status = procfs.read_status(self.pid)
        return status is None or not status.image

    def has_descriptor_named(self, name: bytes) -> bool:
        """Whether it has a descriptor of a file called `name`; to be asked when one of its threads closes a file.

        A process in execve is not asked, as it could not answer: what it closes there is closed for good. It is
        recognised by an address space without a program (begin_new_exec() in fs/exec.c makes the new one before it
        closes files); no other thread of the process can be in execve, for the kernel waits for this one to end first.
        """
        status = procfs.read_status(self.pid)
        if status is None or not status.image or status.in_execve:
            return False
        return procfs.has_descriptor_named(self.pid, name)

    async def being_killed(self) -> bool:
        """Whether it is dying by a signal: to be asked when it flushes a file, before it is dead.

        False if it gives no answer: it is in execve then.
        """
        if self._ending is not None:
            return self._ending is Ending.SIGNAL
        stat = await self._asker.stat(self.pid, self.uid)
        if self._pidfd.reaped:  # what was read may be of the pid's next owner
            return _ending(self._pidfd.exit_status()) is Ending.SIGNAL
        return stat is not None and stat.killed

    async def ended(self) -> Ending:
        """Wait until the process is dead and say how it ended; any number of tasks may wait.

        One of the waiters watches the descriptor (trio allows no more); when it leaves, by
        cancellation too, the others wake up and either have an answer or find one of them to watch.
        """
        while self._ending is None:
            if self._watched:
                await self._waiters.park()
                continue
            self._watched = True
            try:
                await self._pidfd.wait()
                self._ending = await self._find_ending()
                self._pidfd.close()
            finally:
                self._watched = False
                self._waiters.unpark_all()
        return self._ending

    async def _find_ending(self) -> Ending:
        """Ask how an exited process ended: its zombie, or the kernel's record of a reaped one.

        The record is there since Linux 6.15; without it, and with the zombie gone, nobody knows.
        """
        status = self._pidfd.exit_status()
        if status is None:
            stat = await self._asker.stat(self.pid, self.uid)
            if stat is not None and stat.dead and not self._pidfd.reaped:
                return Ending.SIGNAL if stat.killed else Ending.NORMAL
            status = self._pidfd.exit_status()  # it was reaped while we asked
        return _ending(status)

    def is_adopter(self, names: Collection[str]) -> bool:
        """Whether it only collects or starts processes: a pid 1, or a program in `names`."""
        return self.pid == 1 or self._status.namespace_init or self.name in names

    def _refresh(self, age: float) -> None:
        """Read the status again if it is older than `age` seconds and there still is one."""
        if time.monotonic() - self._read_at < age:
            return
        status = procfs.read_status(self.pid)
        if status is not None and self.alive:
            self._status = status
            self._read_at = time.monotonic()


def _ending(status: int | None) -> Ending:
    """Translate a wait status."""
    if status is None:
        return Ending.UNKNOWN
    return Ending.SIGNAL if os.WIFSIGNALED(status) else Ending.NORMAL


class ProcessTable:
    """All processes that made requests lately.

    Args:
        limit: how many to keep without anybody else holding them.
        adopters: names of programs that are nobody's parent.
        asker: where questions that may block are put.
    """

    def __init__(
        self,
        limit: int = DESCRIPTORS,
        adopters: Collection[str] = ADOPTERS,
        asker: procfs.Asker | None = None,
    ) -> None:
        self._limit = max(1, limit)
        self._adopters = frozenset(adopters)
        self._asker = asker or procfs.Asker()
        self._recent: OrderedDict[int, HostProcess] = OrderedDict()
        self._held: weakref.WeakValueDictionary[int, HostProcess] = weakref.WeakValueDictionary()
        self._threads: OrderedDict[int, int] = OrderedDict()
        self._ends = select.epoll()
        self._registered: dict[int, int] = {}  # descriptors in the epoll set, and whose they are

    def __len__(self) -> int:
        return len(self._held)

    def find(self, tid: int) -> HostProcess | None:
        """Return the process of the thread `tid`.

        Never blocks and never raises. About a microsecond for a process in the table, a few for
        another thread of it, some tens for a new one.

        Returns:
            None if the thread is gone, for 0 (a process of a pid namespace that we cannot see), and
            if there are no descriptors left.
        """
        return self._find(tid, ANCESTORS)

    def sweep(self) -> None:
        """Drop processes that have ended, some at a time. Does not block."""
        for fd, _ in self._ends.poll(0, SWEPT):
            pid = self._registered.pop(fd, 0)
            process = self._held.get(pid)
            if process is not None and not process.alive:
                self._forget(pid)

    def _find(self, tid: int, generations: int) -> HostProcess | None:
        if not 0 < tid <= MOST:
            return None
        process = self._known(tid)
        if process is not None:
            return process
        pid = self._threads.get(tid)
        if pid is not None:
            process = self._known(pid)
            if process is not None and procfs.is_thread(tid, pid):
                return process
            del self._threads[tid]
        return self._open(tid, generations)

    def _known(self, pid: int) -> HostProcess | None:
        """Return the process `pid` if it is in the table and runs; forget it if it has ended."""
        process = self._held.get(pid)
        if process is None:
            return None
        if not process.alive:
            self._forget(pid)
            return None
        self._keep(process)
        return process

    def _forget(self, pid: int) -> None:
        self._recent.pop(pid, None)
        self._held.pop(pid, None)

    def _keep(self, process: HostProcess) -> None:
        """Make it the latest, at the cost of the one that was used longest ago."""
        self._recent[process.pid] = process
        self._recent.move_to_end(process.pid)
        if len(self._recent) > self._limit:
            self._recent.popitem(last=False)

    def _open(self, tid: int, generations: int) -> HostProcess | None:
        """Enter a process, or a thread of one."""
        self.sweep()
        try:
            pidfd = Pidfd(tid)
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                return self._open_thread(tid, generations)
            self._recent.clear()  # gives back the descriptors of all processes that nobody holds
            try:
                pidfd = Pidfd(tid)
            except OSError:
                return self._open_thread(tid, generations)
        status = procfs.read_status(tid)
        if status is None or not pidfd.running:
            return None
        parent = self._parent(status, pidfd, generations)
        process = HostProcess(tid, pidfd, status, parent, self._asker)
        self._held[tid] = process
        self._keep(process)
        self._watch(pidfd, tid)
        return process

    def _watch(self, pidfd: Pidfd, pid: int) -> None:
        """Have the process swept out after its end. A closed descriptor leaves the set itself."""
        with contextlib.suppress(OSError):  # no memory for watches: the limit of the table remains
            self._ends.register(pidfd.fileno(), select.EPOLLIN | select.EPOLLONESHOT)
            self._registered[pidfd.fileno()] = pid

    def _open_thread(self, tid: int, generations: int) -> HostProcess | None:
        status = procfs.read_status(tid)
        if status is None or status.tgid == tid:
            return None
        process = self._find(status.tgid, generations)
        if process is None or not procfs.is_thread(tid, process.pid):
            return None
        self._threads[tid] = process.pid
        if len(self._threads) > self._limit:
            self._threads.popitem(last=False)
        return process

    def _parent(self, child: procfs.Status, pidfd: Pidfd, generations: int) -> HostProcess | None:
        """Return the parent, unless it is an adopter, or dies while we look for it."""
        if generations <= 0 or child.ppid <= 1:
            return None
        known = self._held.get(child.ppid)
        parent = self._find(child.ppid, generations - 1)
        if parent is None or parent.is_adopter(self._adopters):
            return None
        if parent is not known:
            # The child's PPid was read before the parent's pid was certain. If it is the same
            # afterwards, and both are alive, then this is the parent.
            again = procfs.read_status(child.tgid)
            if again is None or again.ppid != parent.pid:
                return None
            if not (parent.alive and pidfd.running):
                return None
        return parent
