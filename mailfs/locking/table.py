"""All mailbox locks of a mount, and what they share: limits, numbers, background tasks, events.

Locks are made on demand. The table holds on only to those where something is going on; any other
lives as long as somebody refers to it, so that there is never more than one lock for a mailbox and
thousands of quiet mailboxes cost nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from itertools import count
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

import trio

from mailfs.errors import Cause, Refused
from mailfs.locking.mailbox import MailboxLock
from mailfs.locking.settings import LockEvent, LockRow, LockSettings

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mailfs.locking.engine import Engine
    from mailfs.locking.line import Waiter
    from mailfs.locking.model import Tasks
    from mailfs.locking.outside import Outside
    from mailfs.locking.rules import Claim

log = logging.getLogger(__name__)


class LockTable:
    """The locks of all mailboxes.

    Args:
        nursery: where timers and watches run; its end ends them.
        settings: times and limits.
        outside: makes the backing lock of a mailbox.
        on_event: is told what happened, synchronously. Its exceptions are logged.
    """

    def __init__(
        self,
        nursery: Tasks,
        settings: LockSettings,
        outside: Callable[[bytes], Outside],
        on_event: Callable[[LockEvent], None] | None = None,
    ) -> None:
        self.settings = settings
        self.outside = outside
        self.busy: set[Engine] = set()
        """The locks that must not be forgotten."""
        self._nursery = nursery
        self._on_event = on_event
        self._locks: WeakValueDictionary[bytes, MailboxLock] = WeakValueDictionary()
        self._waiters: dict[Waiter, None] = {}
        self._waiting: Counter[int] = Counter()
        self._tickets = count(1)
        self._generations = count(1)

    def __repr__(self) -> str:
        return f"<LockTable {len(self.busy)} busy; {len(self._waiters)} waiting>"

    def lock(self, key: bytes) -> MailboxLock:
        """The lock of a mailbox."""
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = MailboxLock(key, self)
        return lock

    def waiting(self, uid: int | None = None) -> int:
        """How many requests are parked, of one user or of all."""
        return len(self._waiters) if uid is None else self._waiting[uid]

    def rows(self) -> list[LockRow]:
        """Every claim and every waiter, by mailbox, claims first, then waiters in order."""
        now = trio.current_time()
        self.busy = {lock for lock in self.busy if not lock.idle}
        rows: list[LockRow] = []
        for lock in sorted(self.busy, key=lambda lock: lock.key):
            rows += [self._claim_row(claim, now) for claim in lock.claims]
            rows += [_waiter_row(waiter) for waiter in lock.waiters]
        return rows

    def _claim_row(self, claim: Claim, now: float) -> LockRow:
        detail = []
        if claim.agent.user is not None:
            detail.append(f"for {claim.agent.user.name} (pid {claim.agent.user.pid})")
        if claim.agent.leased:
            detail.append("leased by uid")
        if not claim.requester.may_write:
            detail.append("may not write: does not count")
        return LockRow(
            mailbox=claim.key,
            state="reserved" if claim.reserved else "held",
            mode=claim.mode,
            kind=claim.kind,
            uid=claim.agent.uid,
            pid=claim.agent.home.pid if claim.agent.home is not None else claim.requester.pid,
            program=claim.program,
            generation=claim.generation,
            since=claim.since,
            idle=now - claim.touched,
            lease_until=claim.touched + self.settings.lease if claim.explicit else None,
            detail="; ".join(detail),
        )

    # For the locks

    def ticket(self) -> int:
        """The next place at the end of a queue."""
        return next(self._tickets)

    def generation(self) -> int:
        """The next grant's number, one sequence for all mailboxes: it outlives idle locks."""
        return next(self._generations)

    def parked(self) -> tuple[Waiter, ...]:
        """Everybody who waits, on whatever mailbox."""
        return tuple(self._waiters)

    def park(self, waiter: Waiter) -> None:
        """Count a waiter.

        Raises:
            Refused: TOO_MANY_WAITERS.
        """
        uid = waiter.request.requester.uid
        if len(self._waiters) >= self.settings.max_waiters:
            raise Refused(Cause.TOO_MANY_WAITERS, f"{len(self._waiters)} in all")
        if uid != 0 and self._waiting[uid] >= self.settings.max_waiters_per_uid:
            raise Refused(Cause.TOO_MANY_WAITERS, f"{self._waiting[uid]} of uid {uid}")
        self._waiters[waiter] = None
        self._waiting[uid] += 1

    def unpark(self, waiter: Waiter) -> None:
        """A waiter is done."""
        del self._waiters[waiter]
        uid = waiter.request.requester.uid
        self._waiting[uid] -= 1
        if not self._waiting[uid]:
            del self._waiting[uid]

    def spawn(self, task: Callable[[], Awaitable[None]]) -> bool:
        """Start a background task; False if the mount is shutting down."""
        try:
            self._nursery.start_soon(task)
        except RuntimeError:  # the nursery is closed
            return False
        return True

    def emit(self, what: str, key: bytes, claim: Claim | None = None, detail: str = "") -> None:
        """Tell the listener, if there is one."""
        if self._on_event is None:
            return
        try:
            self._on_event(LockEvent(what, key, trio.current_time(), claim, detail))
        except Exception:
            log.exception("listener of lock events failed at %r", what)


def _waiter_row(waiter: Waiter) -> LockRow:
    request, requester = waiter.request, waiter.request.requester
    return LockRow(
        mailbox=waiter.engine.key,
        state="waiting",
        mode=request.mode,
        kind=request.kind,
        uid=requester.uid,
        pid=requester.process.pid if requester.process is not None else requester.pid,
        program=requester.process.name if requester.process is not None else "?",
        generation=0,
        since=waiter.since,
        idle=0.0,
        lease_until=None,
        detail="",
    )
