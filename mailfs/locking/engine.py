"""The queue of one mailbox: grants, waiting, fairness, leases (design 4.3, 4.4).

**The rule of who is next.** Waiters are served strictly first come, first served: a waiter is
granted when no claim in force denies it *and* it does not clash with a waiter ahead of it. Three
exceptions:

* A request of an agent that already holds a claim on this mailbox passes the queue: those ahead may
  wait for just this agent.
* A request that will not wait (F_SETLK, LOCK_NB) is, as on a local filesystem, refused only by what
  is held or kept free, not because others wait. A dotlock has no local equivalent of sharing, so it
  respects the queue, as implicit claims do.
* An interrupted waiter gets its place back, and a patient poller is in the queue without waiting
  (``places``).

**The walk.** Whenever something changed (a claim went, a waiter left, a time came, the backing lock
was had) `pump` walks the queue from the front, grants directly what can be granted and collects the
rest in a `Barrier`. There is no other way for a waiter to get its claim, and no polling.

**Time.** One timer task for a mailbox, and only while somebody waits: it wakes for the next lease,
end of an implicit claim's firm time, or end of a reservation. Claims whose time is over are not
removed by the clock but give way to the first request they would deny, so a mailbox nobody waits
for needs no timer at all.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Cause, Refused
from mailfs.locking.deadlock import closes_cycle
from mailfs.locking.holding import Holding
from mailfs.locking.line import Line, Waiter
from mailfs.locking.model import Kind
from mailfs.locking.outside import Hold
from mailfs.locking.places import Places, Pollers
from mailfs.locking.rules import EXPLICIT, PATIENT, Barrier, Claim, Request, denies, same_agent
from mailfs.locking.watching import watch

if TYPE_CHECKING:
    from mailfs.locking.table import LockTable


WATCHED = frozenset({Kind.DOTLOCK, Kind.SESSION})
"""Claims that no descriptor of the kernel's stands for: they end with their process, if not before."""


class Engine(Holding):
    """Claims and queue of one mailbox; the protocols are in `MailboxLock`."""

    __slots__ = ("_again", "_hold", "_places", "_pollers", "_pumping", "_queue", "_timer")

    def __init__(self, key: bytes, table: LockTable) -> None:
        super().__init__(key, table)
        self._queue = Line()
        self._pollers = Pollers(table.settings)
        self._places = Places(table.settings.keep_place)
        self._hold: Hold | None = None
        self._timer: trio.CancelScope | None = None
        self._pumping = False
        self._again = False

    # What is seen from outside

    @property
    def waiters(self) -> tuple[Waiter, ...]:
        """Everybody parked, the next one first."""
        return self._queue.waiters

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost by forgetting this lock."""
        if self._claims or self._readers or self._queue or self._pollers:
            return False
        return self._hold is None and not any(agent.alive for agent in self._fences)

    def __repr__(self) -> str:
        held = ", ".join(str(c) for c in self.claims) or "free"
        return f"<MailboxLock {self.key!r} {held}; {len(self._queue)} waiting>"

    # Asking

    def attempt(self, request: Request) -> Claim:
        """Grant a request at once.

        Raises:
            Refused: LOCK_HELD; NO_SPACE, QUOTA, IO of the backing lock; TOO_MANY_WAITERS for too
                many ranges.
        """
        now = trio.current_time()
        try:
            if (reason := self._against(request, now)) is None:
                if self._secure(request):
                    return self._grant(request, now)
                reason = self._hold.holder() if self._hold is not None else "unknown"
        finally:
            if self._queue or self._pollers:
                self.pump()
            else:
                self._settle()
        if request.kind in EXPLICIT:
            self._pollers.refused(request, now, self._table.ticket)
            self._table.busy.add(self)
            self.pump()  # the holder's lease may be over, and timers run while somebody polls
        raise Refused(Cause.LOCK_HELD, reason)

    async def wait(self, request: Request) -> Claim:
        """Grant a request when its turn comes; does not yield if that is now.

        Cancelling it leaves nothing behind but the place in the queue, for a while.

        Raises:
            Refused: DEADLOCK (fcntl only), TOO_MANY_WAITERS, or as `attempt` for the backing lock.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        now = trio.current_time()
        if request.kind in EXPLICIT:
            self._end_reading(request.requester.process)
        if not self._queue and self._against(request, now) is None and self._secure(request):
            try:
                return self._grant(request, now)
            finally:
                if self._pollers:
                    self.pump()
                else:
                    self._settle()
        if request.kind is Kind.FCNTL and closes_cycle(request, self, self._table):
            self._table.emit("deadlock", self.key, detail=f"pid {request.requester.pid}")
            raise Refused(Cause.DEADLOCK, f"mailbox {self.key!r}")
        waiter = self._line_up(request, now)
        self.pump()
        return await waiter.place.park(lambda: self._abandon(waiter))

    def _line_up(self, request: Request, now: float) -> Waiter:
        ticket = self._places.take(request, now)
        back = ticket is not None
        if ticket is None:
            ticket = self._table.ticket()
        waiter = Waiter(self, request, ticket, now)
        self._table.park(waiter)
        self._queue.join(waiter, back=back)
        self._table.busy.add(self)
        return waiter

    def _leave_line(self, waiter: Waiter) -> None:
        self._queue.leave(waiter)
        self._table.unpark(waiter)

    def _abandon(self, waiter: Waiter) -> None:
        """A waiter was cancelled."""
        self._leave_line(waiter)
        if waiter.request.kind in EXPLICIT:
            self._places.leave(waiter.ticket, waiter.request, trio.current_time())
        self.pump()

    def _against(self, request: Request, now: float) -> str | None:
        """Why a request cannot be granted at once, the backing lock aside; None if it can."""
        self._keep_rights(request)
        if (claim := self._in_the_way(request, now)) is not None:
            return str(claim)
        if request.kind not in PATIENT or not self._queue or self.inside(request):
            return None
        reading = request.kind is Kind.READER
        stopped = self._closed_to_readers() if reading else self._queue.barrier().stops(request)
        return f"{len(self._queue)} waiting" if stopped else None

    def _closed_to_readers(self) -> bool:
        """Whether a commit in the queue waits for nothing but unlocked readers, so that no more of them may come."""
        commits = [w for w in self._queue.commits if self._held_up_by_readers(w.request)]
        if not commits:
            return False
        barrier = Barrier()
        for waiter in self.waiters:
            request = waiter.request
            if waiter in commits and (self.inside(request) or not barrier.stops(request)):
                return True
            barrier.add(request)
        return False

    def _held_up_by_readers(self, commit: Request) -> bool:
        """Whether no claim but unlocked readers', and nobody outside, is in the way of a commit.

        While it waits for anything else, which may take long, readers come and go as they like.
        """
        if self._hold is not None and self._hold.seeking:
            return False
        return not any(denies(claim, commit) for claim in self._claims)

    # Granting, and giving back

    def _grant(self, request: Request, now: float) -> Claim:
        claim = super()._grant(request, now)
        self._table.busy.add(self)
        self._pollers.served(request)
        if request.kind in WATCHED:
            watch(claim, self, self._table)
        self._table.emit("granted", self.key, claim)
        return claim

    def drop(self, claim: Claim, what: str = "released", why: str = "") -> None:
        """Take a claim out of force, if it is in force, and serve those who waited for it."""
        if claim.live:
            self._remove(claim, what, why)
            self.pump()

    def _secure(self, request: Request) -> bool:
        if not request.needs_outside:
            return True
        if self._hold is None:
            table = self._table
            self._hold = Hold(self.key, table.outside(self.key), table.spawn, self._outside_changed)
        return self._hold.secure(request.mode)

    # The walk

    def pump(self) -> None:
        """Grant all that can be granted, and set timer and backing lock to what is needed now."""
        if self._pumping:
            self._again = True
            return
        self._pumping = True
        try:
            self._again = True
            while self._again:
                self._again = False
                self._walk(trio.current_time())
        finally:
            self._pumping = False
        self._settle()
        if self.idle:
            self._table.busy.discard(self)

    def _walk(self, now: float) -> None:
        self._pollers.expire(now)
        waiting = bool(self._queue or self._pollers)
        for claim in tuple(self._claims):
            if claim.reserved and claim.firm_until <= now:
                self._lapse(claim)
            elif waiting and self._lease_over(claim, now):
                idle = now - claim.touched
                self._fence(claim, f"idle for {idle:.0f} s while others wait")
        if waiting:
            barrier = Barrier()
            for ticket, entry in self._line(now):
                if isinstance(entry, Waiter):
                    if ticket in self._queue:
                        self._serve(entry, barrier, now)
                elif self._passes(entry, barrier, now):
                    self._reserve(entry, now)
                if barrier.closed and not self._queue.readers:  # no lock closes it to them
                    self._serve_insiders(ticket, barrier, now)
                    break
        self._arm(now)

    def _serve_insiders(self, after: int, barrier: Barrier, now: float) -> None:
        """Serve those who may pass a closed queue, without looking at everybody in it."""
        for waiter in self._queue.insiders(self._claims, after):
            if waiter.ticket in self._queue:
                self._serve(waiter, barrier, now)
                self._again = self._again or waiter.place.settled  # its kin may pass now

    def _line(self, now: float) -> list[tuple[int, Waiter | Request]]:
        """Waiters and patient pollers in order."""
        line: list[tuple[int, Waiter | Request]] = [(w.ticket, w) for w in self.waiters]
        if self._pollers and (patient := self._pollers.patient(now)):
            line += [(poller.ticket, poller.request) for poller in patient]
            line.sort(key=lambda entry: entry[0])
        return line

    def _passes(self, request: Request, barrier: Barrier, now: float) -> bool:
        """Whether neither queue nor claims are in the way; else it is added to the queue so far."""
        self._keep_rights(request)
        barred = barrier.stops(request) and not self.inside(request)
        stopped = barred or self._in_the_way(request, now) is not None
        if stopped:
            barrier.add(request)
            if request.kind is Kind.COMMIT and not barred:
                barrier.to_readers = barrier.to_readers or self._held_up_by_readers(request)
        return not stopped

    def _serve(self, waiter: Waiter, barrier: Barrier, now: float) -> None:
        request = waiter.request
        if not self._passes(request, barrier, now):
            return
        try:
            if self._secure(request):
                self._leave_line(waiter)
                waiter.place.grant(self._grant(request, now))
                return
        except Refused as refusal:
            if waiter.ticket in self._queue:
                self._leave_line(waiter)
            waiter.place.refuse(refusal)
            return
        barrier.add(request)
        if self._hold is not None:
            self._hold.seek(request.mode)

    def _reserve(self, request: Request, now: float) -> None:
        """Keep a free moment for a patient poller."""
        if any(claim.reserved and same_agent(claim, request) for claim in self._claims):
            return
        self._pollers.served(request)
        self._keep_free(request, now)

    # Time

    def _lease_over(self, claim: Claim, now: float) -> bool:
        """Whether an explicit claim's agent is idle for too long and another agent waits for it."""
        if not claim.explicit or now - claim.touched < self._table.settings.lease:
            return False
        wanted = [waiter.request for waiter in self.waiters]
        wanted += [poller.request for poller in self._pollers.waiting()]
        return any(denies(claim, r) and not same_agent(claim, r) for r in wanted)

    def _arm(self, now: float) -> None:
        """Set the timer to the next moment at which time alone changes something."""
        next_time = inf
        waiting = bool(self._queue or self._pollers)
        for claim in self.claims if self._queue.commits else self._claims:
            if claim.reserved:
                next_time = min(next_time, claim.firm_until)
            elif waiting:
                if claim.explicit:
                    lease = claim.touched + self._table.settings.lease
                    if lease > now:
                        next_time = min(next_time, lease)
                elif claim.firm_until > now:
                    next_time = min(next_time, claim.firm_until)
        if self._timer is not None:
            if next_time == inf:
                self._timer.cancel()
            else:
                self._timer.deadline = next_time
        elif next_time < inf:
            scope = self._timer = trio.CancelScope(deadline=next_time)

            async def tick() -> None:
                with scope:
                    await trio.sleep_forever()
                self._timer = None
                self.pump()

            if not self._table.spawn(tick):
                self._timer = None

    # The backing lock

    def _settle(self) -> None:
        hold = self._hold
        if hold is None:
            return
        wanted = any(waiter.request.needs_outside for waiter in self.waiters)
        hold.settle(self._strength(), wanted=wanted)
        if hold.idle:
            self._hold = None

    def _outside_changed(self, failure: Refused | None) -> None:
        if failure is not None:
            self._table.emit("failed", self.key, detail=failure.detail)
            for waiter in self.waiters:
                if waiter.request.needs_outside:
                    self._leave_line(waiter)
                    waiter.place.refuse(Refused(failure.cause, failure.detail))
        self.pump()
