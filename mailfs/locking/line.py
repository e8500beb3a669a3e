"""Those who wait for one mailbox, in order of their tickets.

Beside the order it keeps the waiters by process and by ancestor, so that those who may pass a
queue that is closed to everybody else (the holder's own relatives) are found without looking at
everybody in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailfs.locking.agents import lineage
from mailfs.locking.model import Kind
from mailfs.locking.rules import Barrier, Claim, Request
from mailfs.locking.waiting import Parked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mailfs.locking.engine import Engine
    from mailfs.locking.model import Process


class Waiter:
    """A parked request."""

    __slots__ = ("engine", "place", "request", "since", "ticket")

    def __init__(self, engine: Engine, request: Request, ticket: int, since: float) -> None:
        self.engine = engine
        self.request = request
        self.ticket = ticket
        self.since = since
        self.place: Parked[Claim] = Parked()


class Line:
    """The waiters of one mailbox."""

    __slots__ = ("_commits", "_kin", "_readers", "_waiters")

    def __init__(self) -> None:
        self._waiters: dict[int, Waiter] = {}  # by ticket, ascending
        self._readers = 0
        self._commits: dict[int, Waiter] = {}
        self._kin: dict[Process, dict[int, Waiter]] = {}  # the same by process and by ancestor

    def __len__(self) -> int:
        return len(self._waiters)

    def __contains__(self, ticket: int) -> bool:
        return ticket in self._waiters

    @property
    def waiters(self) -> tuple[Waiter, ...]:
        """Everybody, the next one first."""
        return tuple(self._waiters.values())

    @property
    def readers(self) -> bool:
        """Whether unlocked readers wait."""
        return self._readers > 0

    @property
    def commits(self) -> tuple[Waiter, ...]:
        """The commits that wait."""
        return tuple(self._commits.values())

    def join(self, waiter: Waiter, *, back: bool) -> None:
        """Enter a waiter: at the end, or (``back``) where its old ticket belongs."""
        self._waiters[waiter.ticket] = waiter
        self._readers += waiter.request.kind is Kind.READER
        if waiter.request.kind is Kind.COMMIT:
            self._commits[waiter.ticket] = waiter
        for process in waiter.request.lineage:
            self._kin.setdefault(process, {})[waiter.ticket] = waiter
        if back:
            self._waiters = dict(sorted(self._waiters.items()))

    def leave(self, waiter: Waiter) -> None:
        """Take a waiter out."""
        del self._waiters[waiter.ticket]
        self._readers -= waiter.request.kind is Kind.READER
        self._commits.pop(waiter.ticket, None)
        for process in waiter.request.lineage:
            kin = self._kin[process]
            del kin[waiter.ticket]
            if not kin:
                del self._kin[process]

    def barrier(self) -> Barrier:
        """What stands in the way of somebody who comes last."""
        barrier = Barrier()
        for waiter in self._waiters.values():
            barrier.add(waiter.request)
        return barrier

    def insiders(self, claims: Iterable[Claim], after: int) -> list[Waiter]:
        """Those behind a ticket who may be of one agent with a claim, in order."""
        found: dict[int, Waiter] = {}
        for claim in claims:
            agent = claim.agent
            if agent.by_uid:
                found.update(self._waiters)
            if agent.home is None:
                continue
            if agent.user is not None:
                found.update(self._kin.get(agent.user, ()))
            found.update(self._kin.get(agent.home, ()))
            for ancestor in lineage(agent.home)[1:]:
                found |= {
                    ticket: waiter
                    for ticket, waiter in self._kin.get(ancestor, {}).items()
                    if waiter.request.requester.process is ancestor
                }
        return [waiter for ticket, waiter in sorted(found.items()) if ticket > after]
