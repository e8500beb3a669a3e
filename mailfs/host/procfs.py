"""What ``/proc`` says about a process, sorted by whether asking can block.

A process in ``execve()`` closes its close-on-exec descriptors under a kernel lock
(``exec_update_lock``, fs/exec.c) that ``/proc/PID/stat``, ``exe``, ``io``, ``maps``, ``mem`` and
``stack`` take as well. If one of those descriptors is a file of ours, the close waits for our
answer, and whoever reads such a file waits for the close. So:

* `read_status` and `is_thread` may be called in the event loop: ``status`` and look-ups in ``task``
  take no such lock.
* `Asker.stat` and `Asker.executable` ask in a thread that is left behind if it is still blocked
  after 100 ms. No answer is an answer: the process is in execve, so it is not exiting. A thread
  that is merely slow, on a machine with too much to do, is waited for longer: taking a killed
  process for a living one would let half a message through.

A thread that was left behind ends when the process gets on. Each uid may have a few at a time, so
that one user with many processes stuck in execve cannot make the questions about other users'
processes time out.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from mailfs.host.threads import Call

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

PATIENCE: Final = 0.1
"""Seconds until a question that is blocked is given up."""

LIMIT: Final = 2.0
"""Seconds until any question is given up; a flush, which asks, may take no longer."""

THREADS_PER_UID: Final = 16
"""How many questions about one uid's processes may be open at once, given up or not."""

_PF_SIGNALED = 0x400  # linux/sched.h: killed by a signal
_STATUS_LIMIT = 1 << 20  # 65,536 groups (NGROUPS_MAX) of up to eleven characters, and the rest
_FIRST_READ = 8192

# The fields of /proc/PID/status that are used, in the order of fs/proc/array.c; Name is escaped by
# the kernel, so that no process name can hold a newline and forge the fields after it. NStgid needs
# CONFIG_PID_NS, VmExe an address space.
_FIELD = re.compile(rb"^(Name|Tgid|PPid|Uid|Gid|Groups|NStgid|VmExe):[ \t]*([^\n]*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Status:
    """The part of ``/proc/PID/status`` that says who a process is (``proc_pid_status(5)``)."""

    name: str
    tgid: int
    ppid: int
    uid: int  # real
    gid: int
    fsuid: int  # what the kernel sends with requests
    fsgid: int
    groups: frozenset[int]
    namespace_init: bool  # pid 1 of its own pid namespace, whatever its pid is in ours
    image: bytes  # of the program; changes with nearly every execve; empty once it is exiting
    in_execve: bool  # it has a new address space with no program in it yet


def has_descriptor_named(pid: int, name: bytes) -> bool:
    """Whether a process has a descriptor of some file called `name`, in whatever directory it sees it.

    Reading the links asks no filesystem; a few microseconds a descriptor. Not to be asked of a process
    in execve, which holds a lock that this takes too (measured: it never answers). False if the process
    is gone or not ours to see.
    """
    directory = b"/proc/%d/fd" % pid
    try:
        for number in os.listdir(directory):
            try:
                if os.readlink(directory + b"/" + number).rpartition(b"/")[2] == name:
                    return True
            except FileNotFoundError:
                continue  # closed meanwhile
    except OSError:
        return False
    return False


@dataclass(frozen=True, slots=True)
class Stat:
    """The part of ``/proc/PID/stat`` that tells how a process ends (``proc_pid_stat(5)``)."""

    state: bytes
    flags: int
    exit_code: int  # a wait status; 0 also if we are not allowed to see it

    @property
    def dead(self) -> bool:
        """A zombie, or on its way from zombie to nothing."""
        return self.state in (b"Z", b"X", b"x")

    @property
    def killed(self) -> bool:
        """Whether the process dies or died by a signal, if it is exiting at all.

        PF_SIGNALED alone would be wrong: when a thread other than the first calls exit(), the
        kernel ends the others, the first included, by SIGKILL (get_signal() in kernel/signal.c) and
        they get the flag too, but the exit code is the one given to exit(). To processes that we
        may not trace the code reads 0.
        """
        if not self.flags & _PF_SIGNALED:
            return False
        return bool(self.exit_code & 0x7F) or (self.exit_code == 0 and os.geteuid() != 0)


def printable(raw: bytes) -> str:
    """Make a process name one word, harmless in a terminal, a log and a table."""
    text = raw.decode("utf-8", "replace")
    return "".join(c if c.isprintable() and c != " " else "?" for c in text) or "?"


def _read(path: str, limit: int) -> bytes:
    """Read a whole file of /proc.

    A short read is the end: these files are made in one piece (single_open in fs/seq_file.c).
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = os.read(fd, _FIRST_READ)
        if len(data) == _FIRST_READ:
            while len(data) < limit and (more := os.read(fd, limit - len(data))):
                data += more
        return data
    finally:
        os.close(fd)


def read_status(tid: int) -> Status | None:
    """Who the thread `tid` is, or None if it is gone. Does not block; about 30 microseconds."""
    try:
        fields = dict(_FIELD.findall(_read(f"/proc/{tid}/status", _STATUS_LIMIT)))
        uids, gids = fields[b"Uid"].split(), fields[b"Gid"].split()
        return Status(
            name=printable(fields[b"Name"]),
            tgid=int(fields[b"Tgid"]),
            ppid=int(fields[b"PPid"]),
            uid=int(uids[0]),
            gid=int(gids[0]),
            fsuid=int(uids[3]),
            fsgid=int(gids[3]),
            groups=frozenset(map(int, fields[b"Groups"].split())),
            namespace_init=fields.get(b"NStgid", b"").split()[-1:] == [b"1"],
            image=fields[b"Name"] + b"\n" + fields[b"VmExe"] if b"VmExe" in fields else b"",
            in_execve=fields.get(b"VmExe", b"").split()[:1] == [b"0"],
        )
    except (OSError, KeyError, ValueError, IndexError):
        return None  # gone, or cut off while it went


def is_thread(tid: int, pid: int) -> bool:
    """Whether `tid` is a thread of the process `pid` now. Does not block; a few microseconds."""
    return os.access(f"/proc/{pid}/task/{tid}", os.F_OK)


def _stat(pid: int) -> Stat | None:
    # The name is in parentheses and may hold anything, a ")" included: count from the last one.
    fields = _read(f"/proc/{pid}/stat", _FIRST_READ).rpartition(b")")[2].split()
    return Stat(state=fields[0], flags=int(fields[6]), exit_code=int(fields[49]))


def _executable(pid: int) -> str | None:
    return os.readlink(f"/proc/{pid}/exe")


class Asker:
    """Puts the questions that may block, each in a thread that is left behind if it is blocked.

    Args:
        patience: seconds until a question is given up.
        limit: seconds until it is given up even though its thread is not blocked, only slow on a
            busy machine.
        threads_per_uid: how many threads the questions about one uid's processes may occupy.
    """

    def __init__(
        self,
        patience: float = PATIENCE,
        limit: float = LIMIT,
        threads_per_uid: int = THREADS_PER_UID,
    ) -> None:
        self._patience = patience
        self._limit = limit
        self._threads_per_uid = threads_per_uid
        self._open: Counter[int] = Counter()

    async def stat(self, pid: int, uid: int) -> Stat | None:
        """How `pid`, a process of `uid`, is ending; None if it is gone or did not answer."""
        return await self._ask(_stat, pid, uid)

    async def executable(self, pid: int, uid: int) -> str | None:
        """Return the path of the program that `pid` runs.

        None if it is gone, is a kernel thread, or did not answer.
        """
        return await self._ask(_executable, pid, uid)

    async def _ask(self, question: Callable[[int], T], pid: int, uid: int) -> T | None:
        if self._open[uid] >= self._threads_per_uid:
            # As many of this user's processes are stuck in execve, or this user wants us to think
            # so.
            await trio.lowlevel.checkpoint()
            return None

        def done(_: Call[T]) -> None:
            self._open[uid] -= 1
            if not self._open[uid]:
                del self._open[uid]

        self._open[uid] += 1
        call = Call(lambda: question(pid), done)
        give_up = trio.current_time() + self._limit
        while not call.over:
            with trio.move_on_after(self._patience):
                await call.wait()
            if not call.over and (call.blocked or trio.current_time() >= give_up):
                return None
        try:
            return call.result()
        except (OSError, ValueError, IndexError):
            return None  # gone
