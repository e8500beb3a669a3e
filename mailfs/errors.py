"""What the core refuses, by cause.

The core never speaks of errnos: what an errno makes a mail program do differs by request (EACCES on a lock file makes
several programs go on *without* a lock), so the translation is one table at the edge, ``mailfs.fuse.errnos``.
"""

from __future__ import annotations

import enum


class Cause(enum.Enum):
    """Why a request was refused; each member says what happened, not what the client is told."""

    LOCK_HELD = "somebody else holds the mailbox"
    DEADLOCK = "waiting would close a cycle of waiters"
    TOO_MANY_WAITERS = "the limit of parked requests is reached"
    WAIT_LIMIT = "the time limit of a wait is over"
    INTERRUPTED = "the client gave up waiting"
    FENCED = "the agent lost its lock; its late writes do not count"
    STALE = "the mailbox was rewritten since this agent read it"
    NOT_OWNER = "the lock or file belongs to somebody else"
    NOT_ALLOWED = "policy forbids it"
    NO_SUCH_LOCK = "the lock is not this agent's (any more)"
    NO_SUCH_NAME = "there is no such file"
    NAME_TAKEN = "there is such a file already"
    NAME_RESERVED = "the name belongs to an account"
    BUDGET = "the user's budget is used up"
    NO_SPACE = "the backing filesystem is full"
    QUOTA = "the user's quota on the backing filesystem is used up"
    IO = "the backing filesystem failed"


class Refused(Exception):  # noqa: N818 -- a refusal is an answer, not an error of ours
    """A request that ends in an errno for the client and leaves everything as it was.

    Args:
        cause: what the errno table is keyed by.
        detail: for the log and the control files; never parsed.
    """

    def __init__(self, cause: Cause, detail: str = "") -> None:
        super().__init__(f"{cause.value}: {detail}" if detail else cause.value)
        self.cause = cause
        self.detail = detail
