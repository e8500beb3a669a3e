"""The errno table (design 6), row by row.

The right column is what mail programs were seen to make of it: see ``mailfs.fuse.errnos`` for why
each is as it is. ``tests/mount/test_errnos.py`` reaches the rows from real clients.
"""

from __future__ import annotations

from errno import (
    EACCES,
    EAGAIN,
    EDEADLK,
    EDQUOT,
    EEXIST,
    EINTR,
    EIO,
    ENOENT,
    ENOLCK,
    ENOSPC,
    EPERM,
    ESTALE,
)

import pytest

from mailfs.errors import Cause, Refused
from mailfs.fuse.errnos import ERRNOS, LOCK_FILE_ERRNOS, Asked, errno_of

# Cause: a file, flock or fcntl, a lock file
ROWS = {
    Cause.LOCK_HELD: (EAGAIN, EAGAIN, EEXIST),
    Cause.DEADLOCK: (EDEADLK, EDEADLK, EEXIST),
    Cause.TOO_MANY_WAITERS: (ENOLCK, ENOLCK, EEXIST),
    Cause.WAIT_LIMIT: (EAGAIN, EAGAIN, EEXIST),
    Cause.INTERRUPTED: (EINTR, EINTR, EINTR),
    Cause.FENCED: (ESTALE, ESTALE, ESTALE),
    Cause.STALE: (ESTALE, ESTALE, ESTALE),
    Cause.NOT_OWNER: (EACCES, EACCES, EACCES),
    Cause.NOT_ALLOWED: (EPERM, EPERM, EACCES),
    Cause.NO_SUCH_LOCK: (ENOENT, ENOENT, ENOENT),
    Cause.NO_SUCH_NAME: (ENOENT, ENOENT, ENOENT),
    Cause.NAME_TAKEN: (EEXIST, EEXIST, EEXIST),
    Cause.NAME_RESERVED: (EACCES, EACCES, EACCES),
    Cause.BUDGET: (ENOSPC, ENOSPC, EEXIST),
    Cause.NO_SPACE: (ENOSPC, ENOSPC, EEXIST),
    Cause.QUOTA: (EDQUOT, EDQUOT, EEXIST),
    Cause.IO: (EIO, EIO, EEXIST),
}
COLUMNS = (Asked.FILE, Asked.KERNEL_LOCK, Asked.DOTLOCK)

# What the maker of a lock file never meets: refusals of those who may not lock (the right to write
# the mailbox was missing, the name is another account's), of removals, and of saves.
NEVER_AT_A_LOCK_FILE = {
    Cause.NOT_ALLOWED,
    Cause.NAME_RESERVED,
    Cause.NOT_OWNER,
    Cause.NO_SUCH_LOCK,
    Cause.NO_SUCH_NAME,
    Cause.FENCED,
    Cause.STALE,
    Cause.INTERRUPTED,
}


@pytest.mark.parametrize(
    ("cause", "asked", "wanted"),
    [
        pytest.param(cause, asked, wanted, id=f"{cause.name}-{asked.name}")
        for cause, row in ROWS.items()
        for asked, wanted in zip(COLUMNS, row, strict=True)
    ],
)
def test_row(cause: Cause, asked: Asked, wanted: int) -> None:
    assert errno_of(Refused(cause, "detail"), asked) == wanted


def test_every_cause_has_a_row() -> None:
    assert set(ERRNOS) == set(Cause) == set(ROWS)
    assert set(COLUMNS) == set(Asked)


def test_a_file_is_what_is_asked_for_by_default() -> None:
    assert all(errno_of(Refused(cause)) == row[0] for cause, row in ROWS.items())


@pytest.mark.parametrize("cause", Cause, ids=lambda cause: cause.name)
def test_those_who_may_lock_hear_eexist(cause: Cause) -> None:
    """c-client, maildrop, upas and Dovecot's dotlock_try go on without a lock on anything else."""
    if cause in NEVER_AT_A_LOCK_FILE:
        assert LOCK_FILE_ERRNOS.get(cause, EACCES) == EACCES
    else:
        assert errno_of(Refused(cause), Asked.DOTLOCK) == EEXIST


@pytest.mark.parametrize("cause", [Cause.NOT_ALLOWED, Cause.NAME_RESERVED], ids=lambda c: c.name)
def test_those_who_may_not_lock_hear_eacces(cause: Cause) -> None:
    """EEXIST would let them wait for what will never come."""
    assert errno_of(Refused(cause), Asked.DOTLOCK) == EACCES
