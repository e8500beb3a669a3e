"""The words of locking: modes, kinds of claims, and what the core asks of a process.

A mailbox has one lock. Every protocol a client may speak (dotlock, flock, fcntl) and every thing we
do on a client's behalf is a *claim* on that lock, of a *kind* and a *mode*.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


class Mode(enum.IntEnum):
    """How a claim shares the mailbox, in ascending strength."""

    READ = 1
    APPEND = 2
    WRITE = 3

    def conflicts(self, other: Mode) -> bool:
        """Whether claims of different agents in these modes exclude each other.

        Reads go with reads, appends with appends (appended messages are rebased at commit), nothing
        else.
        """
        return not (self is other and self is not Mode.WRITE)


class Kind(enum.Enum):
    """The protocol a claim was made by; the value is what administrators read."""

    DOTLOCK = "dotlock"
    FLOCK = "flock"
    FCNTL = "fcntl"
    SESSION = "session"  # a program's for as long as it has the mailbox open, as configured
    WRITER = "writer"  # implicit: an unlocked writer, revocable because its data is only staged
    READER = "reader"  # implicit: an unlocked young reader
    COMMIT = "commit"  # ours, for the moment of a commit
    FREEZE = "freeze"  # an administrator's


class Ending(enum.Enum):
    """How a process ended."""

    NORMAL = "exited"
    SIGNAL = "killed"
    UNKNOWN = "ended"


class Process(Protocol):
    """One process, as the core sees it.

    Identity is the object: the host never reuses one for a recycled pid.
    """

    @property
    def pid(self) -> int:
        """Process id (thread group id) in our pid namespace."""

    @property
    def uid(self) -> int:
        """Real user id when the process was first seen."""

    @property
    def name(self) -> str:
        """Program name (comm), printable."""

    @property
    def alive(self) -> bool:
        """False from the moment its end was noticed."""

    @property
    def parent(self) -> Process | None:
        """The parent as it was when this process was first seen; None at the top or when unknown.

        Never pid 1 of any pid namespace nor a known session manager or subreaper: for those the
        host answers None, so that nothing is inherited by them.
        """

    async def ended(self) -> Ending:
        """Wait until the process is dead and say how it ended. Returns at once for a dead one."""


class Tasks(Protocol):
    """Where background tasks are started: a trio nursery, or something that keeps their failures from ending it."""

    def start_soon(
        self, async_fn: Callable[..., Awaitable[object]], /, *args: object, name: object = None
    ) -> None:
        """Run ``async_fn(*args)`` in the background. RuntimeError if everything is over."""


def nothing_open(_process: Process) -> bool:
    """Say that no process has the mailbox open: for requests where it cannot matter."""
    return False


@dataclass(frozen=True, slots=True)
class Requester:
    """Who asks, as far as locking cares.

    Args:
        process: the process of the asking thread; None if the kernel said pid 0 (another pid
            namespace) or it is gone.
        uid: the user id of this very request (helpers change theirs between two requests).
        pid: what the kernel said, for people to read.
        may_write: whether the requester may write the mailbox; if not, its locks never matter to
            those who may.
        append_only: a program that only ever appends; its exclusive locks are ``APPEND`` claims.
        has_open: says whether a process has this mailbox open.
    """

    process: Process | None
    uid: int
    pid: int
    may_write: bool = True
    append_only: bool = False
    has_open: Callable[[Process], bool] = nothing_open
