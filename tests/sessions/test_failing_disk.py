"""Each call that touches the disk fails once, or the disk fails from some call on and comes back.

A client hears of success or of an error. Success counts; of an append that failed nothing lands later, as its writer
will try again. The mailbox is whole, what waits is tried again, and the next commits succeed.
"""

from __future__ import annotations

import contextlib
import errno
from functools import partial
from typing import TYPE_CHECKING

import pytest

from mailfs.errors import Refused
from mailfs.sessions.recovery import What
from tests.sessions.disk import Kind, Strike
from tests.sessions.lives import BOB, CONFIG, POWER, Lives, message, quiet
from tests.sessions.test_crash import (
    OPERATIONS,
    X,
    append,
    append_spilled,
    deferred_rewrite,
    lives,
    save_longer,
    save_stale,
    synced,
)  # fmt: skip

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mailfs.daemon.config import Config
    from tests.sessions.lives import Life
    from tests.sessions.test_crash import Operation

Y = message("y")
FAILURES = [
    (Kind.FAIL, errno.EIO),
    (Kind.FAIL, errno.ENOSPC),
    (Kind.LATE, errno.EIO),
    (Kind.SHORT, errno.ENOSPC),
    (Kind.DEAD, errno.EIO),
]

EVERYWHERE = [(Kind.FAIL, errno.EIO), (Kind.DEAD, errno.EIO)]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


async def attempt(operation: Operation, w: Life) -> None:
    """The operation, whose clients may give up, and deliveries after it when the disk is well again."""
    with contextlib.suppress(OSError, Refused):
        await operation(w)
    for mailbox in list(w.core.mailboxes.values()):
        for key in list(mailbox.sessions):
            mailbox.discard(key, "its client is gone")
        for claim in mailbox.lock.claims:
            if claim.explicit:
                mailbox.lock.release(claim)
    w.disk.heal()
    await w.drained()
    assert await w.deliver(X)
    assert await w.deliver(Y, name=BOB)


def each_failure(
    tmp_path: Path, operation: Operation, kind: Kind, error: int, config: Config
) -> Iterator[tuple[Lives, str]]:
    """The worlds in which a call of an operation failed, one for each call."""
    script = partial(attempt, operation)
    world = lives(tmp_path, config)
    world.run(script)
    for at in range(world.calls + 1, world.disk.calls + 1):
        strike = Strike(kind, at, error)
        world = lives(tmp_path, config)
        if world.run(script, strike):
            yield world, f"{operation.__name__}, {strike}"


CASES = [
    (operation, kind, error)
    for operation in OPERATIONS
    for kind, error in FAILURES
    if (kind, error) in EVERYWHERE
    or operation in (append_spilled, save_longer, deferred_rewrite, synced)
]


@pytest.mark.parametrize(
    ("operation", "kind", "error"), CASES, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_failure(tmp_path: Path, operation: Operation, kind: Kind, error: int) -> None:
    config = POWER if operation in (append, save_stale, synced) else CONFIG
    for world, when in each_failure(tmp_path, operation, kind, error, config):
        world.check(when)
        left = world.journal()  # only what could not be kept in rescue
        steps = world.recovered(when, once=True)
        assert len(steps) == len(left), f"{when}: {steps}"
        assert {step.what for step in steps} <= {What.RESCUE, What.COMMIT}, f"{when}: {steps}"
