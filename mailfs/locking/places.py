"""Places in the queue that outlive a request.

Two habits of mail programs would make first-come-first-served unfair. Some interrupt their own
blocking request and repeat it (Dovecot every 5 s; SIGSTOP and SIGCONT do the same): they get their
old *place* back if they return in time. Others never park but *poll* (dotlock, F_SETLK, LOCK_NB):
the lock is always taken when they look. A poller that was refused for long enough joins the queue,
at the place where it stood when it was first refused; when its turn comes, the free moment is kept
for it for a little while. As an unused moment is lost for everybody, it is kept only if the poller,
going by its rhythm so far, can be expected within that while.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mailfs.locking.model import Kind, Mode, Process
    from mailfs.locking.rules import Request
    from mailfs.locking.settings import LockSettings

POLL_GAP = 10.0
"""Seconds after which a poller that was not seen has given up (procmail, the slowest, sleeps 8)."""

MAX_REMEMBERED = 1024
"""Places and pollers remembered for one mailbox; the oldest are forgotten first."""


@dataclass(slots=True, eq=False)
class Poller:
    """A process that asks again and again."""

    request: Request
    ticket: int
    first: float
    last: float
    gap: float = 0.0

    def fresh(self, now: float) -> bool:
        """Whether it is still at it."""
        return now - self.last <= POLL_GAP


class Pollers:
    """Those who were refused on one mailbox lately."""

    __slots__ = ("_pollers", "_settings")

    def __init__(self, settings: LockSettings) -> None:
        self._settings = settings
        self._pollers: dict[tuple[Process | int, Kind], Poller] = {}

    def __bool__(self) -> bool:
        return bool(self._pollers)

    def refused(self, request: Request, now: float, ticket: Callable[[], int]) -> None:
        """Note a refusal."""
        key = _who(request)
        poller = self._pollers.pop(key, None)
        if poller is None or not poller.fresh(now):
            poller = Poller(request, ticket(), now, now)
        poller.request, poller.gap, poller.last = request, now - poller.last, now
        self._pollers[key] = poller  # at the end: the order is that of the last refusals
        while len(self._pollers) > MAX_REMEMBERED or not self._oldest().fresh(now):
            del self._pollers[next(iter(self._pollers))]

    def _oldest(self) -> Poller:
        return next(iter(self._pollers.values()))

    def served(self, request: Request) -> None:
        """The process got what it asked for, or had its chance: its patience starts anew."""
        if self._pollers:
            self._pollers.pop(_who(request), None)

    def expire(self, now: float) -> None:
        """Forget those who have given up."""
        while self._pollers and not self._oldest().fresh(now):
            del self._pollers[next(iter(self._pollers))]

    def waiting(self) -> Iterator[Poller]:
        """All who still count as waiting."""
        return iter(self._pollers.values())

    def patient(self, now: float) -> list[Poller]:
        """Those who have earned a place and are expected soon."""
        patience, keep = self._settings.poll_patience, self._settings.reserve_for
        return [
            p
            for p in self._pollers.values()
            if p.last - p.first >= patience
            and p.last + p.gap <= now + keep
            and p.request.requester.process is not None  # nobody could be recognised
        ]


def _who(request: Request) -> tuple[Process | int, Kind]:
    """What a poller is recognised by; strangers of one uid count as one."""
    requester = request.requester
    return requester.process or requester.uid, request.kind


class Places:
    """Places of waiters that were interrupted."""

    __slots__ = ("_keep", "_left")

    def __init__(self, keep: float) -> None:
        self._keep = keep
        self._left: dict[int, tuple[Process, Kind, Mode, float]] = {}  # by ticket, oldest first

    def leave(self, ticket: int, request: Request, now: float) -> None:
        """A waiter went away; it may come back."""
        self._expire(now)
        process = request.requester.process
        if process is not None and self._keep > 0:
            self._left[ticket] = (process, request.kind, request.mode, now + self._keep)
            if len(self._left) > MAX_REMEMBERED:
                del self._left[next(iter(self._left))]

    def take(self, request: Request, now: float) -> int | None:
        """The ticket this request may have back."""
        if not self._left:
            return None
        self._expire(now)
        process = request.requester.process
        for ticket, (left, kind, mode, _) in self._left.items():
            if left is process and kind is request.kind and mode is request.mode:
                del self._left[ticket]
                return ticket
        return None

    def _expire(self, now: float) -> None:
        while self._left:
            ticket, (*_, until) = next(iter(self._left.items()))
            if until > now:
                return
            del self._left[ticket]
