"""One table: what a refusal of the core is called in errnos, by what the client asked for.

What an errno makes mail programs do decides it:

* The create of a lock file by somebody who may lock answers success or EEXIST. On EACCES, ENOSPC and the like c-client,
  maildrop, upas and Dovecot's ``dotlock_try`` go on *without* a lock.
* A time limit answers EAGAIN, which Postfix takes as a reason to try again (4.2.0); EDQUOT or EFBIG would bounce the
  message (postfix src/global/mbox_open.c, ``mbox_dsn``). A used-up budget answers ENOSPC, which it defers (4.3.0).
* ESTALE says that what the client builds on is gone; Postfix defers on it, editors show it.
"""

from __future__ import annotations

import enum
import errno

from mailfs.errors import Cause, Refused


class Asked(enum.Enum):
    """What a request was about, as far as it matters for its errno."""

    DOTLOCK = "a lock file"
    KERNEL_LOCK = "flock(2) or fcntl(2)"
    FILE = "anything else"


ERRNOS: dict[Cause, int] = {
    Cause.LOCK_HELD: errno.EAGAIN,
    Cause.DEADLOCK: errno.EDEADLK,
    Cause.TOO_MANY_WAITERS: errno.ENOLCK,
    Cause.WAIT_LIMIT: errno.EAGAIN,
    Cause.INTERRUPTED: errno.EINTR,
    Cause.FENCED: errno.ESTALE,
    Cause.STALE: errno.ESTALE,
    Cause.NOT_OWNER: errno.EACCES,
    Cause.NOT_ALLOWED: errno.EPERM,
    Cause.NO_SUCH_LOCK: errno.ENOENT,
    Cause.NO_SUCH_NAME: errno.ENOENT,
    Cause.NAME_TAKEN: errno.EEXIST,
    Cause.NAME_RESERVED: errno.EACCES,
    Cause.BUDGET: errno.ENOSPC,
    Cause.NO_SPACE: errno.ENOSPC,
    Cause.QUOTA: errno.EDQUOT,
    Cause.IO: errno.EIO,
}

LOCK_FILE_ERRNOS: dict[Cause, int] = {
    Cause.LOCK_HELD: errno.EEXIST,
    Cause.DEADLOCK: errno.EEXIST,
    Cause.TOO_MANY_WAITERS: errno.EEXIST,
    Cause.WAIT_LIMIT: errno.EEXIST,
    Cause.BUDGET: errno.EEXIST,
    Cause.NO_SPACE: errno.EEXIST,
    Cause.QUOTA: errno.EEXIST,
    Cause.IO: errno.EEXIST,
    Cause.NOT_ALLOWED: errno.EACCES,
}
"""Where a lock file differs: those who may lock hear EEXIST, those who may not EACCES."""


def errno_of(refused: Refused, asked: Asked = Asked.FILE) -> int:
    """The errno for a refusal."""
    if asked is Asked.DOTLOCK and refused.cause in LOCK_FILE_ERRNOS:
        return LOCK_FILE_ERRNOS[refused.cause]
    return ERRNOS[refused.cause]
