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

import logging
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Cause, Refused
from mailfs.locking.agents import Agent, find_user, lineage
from mailfs.locking.deadlock import closes_cycle
from mailfs.locking.model import Ending, Kind, Mode
from mailfs.locking.outside import Hold
from mailfs.locking.places import Places, Pollers
from mailfs.locking.ranges import carve, strongest
from mailfs.locking.rules import EXPLICIT, PATIENT, Barrier, Claim, Request, denies, same_agent
from mailfs.locking.waiting import Parked

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from mailfs.locking.model import Process
    from mailfs.locking.table import LockTable

log = logging.getLogger(__name__)


class Waiter:
    """A parked request."""

    __slots__ = ("engine", "place", "request", "since", "ticket")

    def __init__(self, engine: Engine, request: Request, ticket: int, since: float) -> None:
        self.engine = engine
        self.request = request
        self.ticket = ticket
        self.since = since
        self.place: Parked[Claim] = Parked()


class Engine:
    """Claims and queue of one mailbox; the protocols are in `MailboxLock`."""

    __slots__ = (
        "__weakref__",
        "_again",
        "_claims",
        "_fences",
        "_hold",
        "_kin",
        "_owned",
        "_places",
        "_pollers",
        "_pumping",
        "_queue",
        "_readers",
        "_table",
        "_timer",
        "key",
    )

    def __init__(self, key: bytes, table: LockTable) -> None:
        self.key = key
        self._table = table
        self._claims: dict[Claim, None] = {}
        self._owned: dict[tuple[Kind, Hashable], Claim] = {}
        self._queue: dict[int, Waiter] = {}  # by ticket, ascending
        self._readers = 0  # unlocked readers in the queue
        self._kin: dict[Process, dict[int, Waiter]] = {}  # the same by process and by ancestor
        self._pollers = Pollers(table.settings)
        self._places = Places(table.settings.keep_place)
        self._fences: list[Agent] = []
        self._hold: Hold | None = None
        self._timer: trio.CancelScope | None = None
        self._pumping = False
        self._again = False

    # What is seen from outside

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Everything in force, reservations included, oldest first."""
        return tuple(self._claims)

    @property
    def waiters(self) -> tuple[Waiter, ...]:
        """Everybody parked, the next one first."""
        return tuple(self._queue.values())

    @property
    def idle(self) -> bool:
        """Whether nothing would be lost by forgetting this lock."""
        if self._claims or self._queue or self._pollers:
            return False
        return self._hold is None and not any(agent.alive for agent in self._fences)

    def __repr__(self) -> str:
        held = ", ".join(str(c) for c in self._claims) or "free"
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
        self._queue[ticket] = waiter
        self._readers += request.kind is Kind.READER
        for process in request.lineage:
            self._kin.setdefault(process, {})[ticket] = waiter
        if back:
            self._queue = dict(sorted(self._queue.items()))
        self._table.busy.add(self)
        return waiter

    def _leave_line(self, waiter: Waiter) -> None:
        del self._queue[waiter.ticket]
        self._readers -= waiter.request.kind is Kind.READER
        for process in waiter.request.lineage:
            kin = self._kin[process]
            del kin[waiter.ticket]
            if not kin:
                del self._kin[process]
        self._table.unpark(waiter)

    def _abandon(self, waiter: Waiter) -> None:
        """A waiter was cancelled."""
        self._leave_line(waiter)
        if waiter.request.kind in EXPLICIT:
            self._places.leave(waiter.ticket, waiter.request, trio.current_time())
        self.pump()

    # What stands against a request

    def blockers(self, request: Request) -> Iterator[Claim]:
        """The claims in force that deny a request."""
        return (claim for claim in self._claims if denies(claim, request))

    def inside(self, request: Request) -> bool:
        """Whether the request's agent holds a claim here, or a moment is kept for it."""
        return any(same_agent(claim, request) for claim in self._claims)

    def _against(self, request: Request, now: float) -> str | None:
        """Why a request cannot be granted at once, the backing lock aside; None if it can."""
        self._keep_rights(request)
        for claim in self.claims:
            if denies(claim, request):
                if claim.firm_until > now:
                    return str(claim)
                self._lapse(claim)
        if request.kind in PATIENT and self._queue and not self.inside(request):
            barrier = Barrier()
            for waiter in self._queue.values():
                barrier.add(waiter.request)
            if barrier.stops(request):
                return f"{len(self._queue)} waiting"
        return None

    def _keep_rights(self, request: Request) -> None:
        """Let a change to a claim count for as much as the claim itself.

        The right to write the mailbox may come or go while an owner holds something; what its claim
        counts for was settled when it was made, and stays so until it is given back.
        """
        claim = self._owned.get((request.kind, request.owner))
        if claim is not None and claim.requester.may_write != request.requester.may_write:
            may_write = claim.requester.may_write
            request.requester = replace(request.requester, may_write=may_write)

    def _lapse(self, claim: Claim) -> None:
        """An implicit claim or a reservation gives way."""
        claim.revoked = not claim.reserved
        if claim.reserved:
            self._remove(claim)
        else:
            self._remove(claim, "lapsed")

    # Granting

    def _secure(self, request: Request) -> bool:
        if not request.needs_outside:
            return True
        if self._hold is None:
            table = self._table
            self._hold = Hold(self.key, table.outside(self.key), table.spawn, self._outside_changed)
        return self._hold.secure(request.mode)

    def _grant(self, request: Request, now: float) -> Claim:
        """Put a claim in force. Raises Refused if it would be too many ranges."""
        requester = request.requester
        key = (request.kind, request.owner)
        claim = self._owned.get(key)
        ranges = []
        if request.kind is Kind.FCNTL:
            held = claim.ranges if claim is not None else ()
            ranges = carve(held, request.mode, request.start, request.end)
        if claim is None:
            claim = Claim(
                key=self.key,
                kind=request.kind,
                mode=request.mode,
                agent=self._agent(request),
                requester=requester,
                owner=request.owner,
                generation=0,
                since=now,
                touched=now,
                firm_until=now + request.hold,
                ranges=ranges,
                content=request.content,
            )
            if request.owner is not None:
                self._owned[key] = claim
        else:
            claim.ranges = ranges
            claim.mode = strongest(ranges) or request.mode
            claim.touched = now
        claim.generation = self._table.generation()
        for other in self.claims:
            if other.reserved and same_agent(other, request):
                self._remove(other)
        self._claims[claim] = None
        self._table.busy.add(self)
        self._pollers.served(request)
        if claim.explicit and self._fences:
            self._fences = [a for a in self._fences if not a.covers_process(requester.process)]
        if request.kind is Kind.DOTLOCK:
            self._watch(claim)
        self._table.emit("granted", self.key, claim)
        return claim

    def _agent(self, request: Request) -> Agent:
        requester = request.requester
        if request.kind is Kind.FREEZE:
            agent = Agent(requester)
            agent.home = None  # an administrator's other programs are frozen out like everybody
            return agent
        if request.kind not in EXPLICIT or requester.process is None:
            return Agent(requester, outlives=request.kind is Kind.DOTLOCK)
        user = find_user(requester, self._held_by)
        return Agent(requester, user=user, outlives=request.kind is Kind.DOTLOCK)

    def _held_by(self, process: Process) -> bool:
        return any(c.requester.process is process and not c.reserved for c in self._claims)

    # Taking away

    def _remove(self, claim: Claim, what: str = "", why: str = "") -> None:
        """Take a claim out of force; the caller pumps."""
        claim.live = False
        del self._claims[claim]
        if claim.owner is not None and not claim.reserved:
            self._owned.pop((claim.kind, claim.owner), None)
        for scope in claim.watches:
            scope.cancel()
        claim.watches.clear()
        if what:
            self._table.emit(what, self.key, claim, why)

    def drop(self, claim: Claim, what: str = "released", why: str = "") -> None:
        """Take a claim out of force, if it is in force, and serve those who waited for it."""
        if claim.live:
            self._remove(claim, what, why)
            self.pump()

    def _fence(self, claim: Claim, why: str) -> None:
        claim.revoked = claim.fenced = True
        self._fences.append(claim.agent)
        if len(self._fences) > 64:
            self._fences = [agent for agent in self._fences if agent.alive]
        self._remove(claim, "revoked", why)

    # The death of a dotlock's processes

    def _watch(self, claim: Claim) -> None:
        if claim.agent.home is not None:
            self._start_watch(claim, home=True)
        if claim.agent.user is not None:
            self._start_watch(claim, home=False)

    def _start_watch(self, claim: Claim, *, home: bool) -> None:
        scope = trio.CancelScope()
        claim.watches.append(scope)

        async def watch() -> None:
            with scope:
                if home:
                    await self._watch_home(claim)
                elif (user := claim.agent.user) is not None:
                    await _ending(user)
                    self.drop(claim, "freed", f"{user.name} (pid {user.pid}) ended")

        self._table.spawn(watch)

    async def _watch_home(self, claim: Claim) -> None:
        agent = claim.agent
        while (home := agent.home) is not None:
            ending = await _ending(home)
            if not claim.live:
                return
            why = f"{home.name} (pid {home.pid}) {ending.value}"
            user = agent.user
            if not agent.bequeath(ending):
                self.drop(claim, "freed", why)
                return
            if agent.leased:
                why += f"; leased by uid {agent.uid}"
            self._table.emit("moved", self.key, claim, why)
            self.pump()  # whom it covers has changed
            if user is not None:
                return  # the user is watched already

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
        for claim in self.claims:
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
                if barrier.closed and not self._readers:  # no lock closes it to them
                    self._serve_insiders(ticket, barrier, now)
                    break
        self._arm(now)

    def _serve_insiders(self, after: int, barrier: Barrier, now: float) -> None:
        """Serve those who may pass a closed queue, without looking at everybody in it."""
        found: dict[int, Waiter] = {}
        for claim in self._claims:
            agent = claim.agent
            if agent.by_uid:
                found.update(self._queue)
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
        for ticket, waiter in sorted(found.items()):
            if ticket > after and ticket in self._queue:
                self._serve(waiter, barrier, now)
                self._again = self._again or waiter.place.settled  # its kin may pass now

    def _line(self, now: float) -> list[tuple[int, Waiter | Request]]:
        """Waiters and patient pollers in order."""
        line: list[tuple[int, Waiter | Request]] = list(self._queue.items())
        if self._pollers and (patient := self._pollers.patient(now)):
            line += [(poller.ticket, poller.request) for poller in patient]
            line.sort(key=lambda entry: entry[0])
        return line

    def _passes(self, request: Request, barrier: Barrier, now: float) -> bool:
        """Whether neither queue nor claims are in the way; else it is added to the queue so far."""
        self._keep_rights(request)
        stopped = barrier.stops(request) and not self.inside(request)
        if not stopped:
            for claim in self.claims:
                if not denies(claim, request):
                    continue
                if claim.firm_until > now:
                    stopped = True
                    break
                self._lapse(claim)
        if stopped:
            barrier.add(request)
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
        self._claims[
            Claim(
                key=self.key,
                kind=request.kind,
                mode=request.mode,
                agent=Agent(request.requester),
                requester=request.requester,
                owner=request.owner,
                generation=0,
                since=now,
                touched=now,
                firm_until=now + self._table.settings.reserve_for,
                reserved=True,
            )
        ] = None

    # Time

    def _lease_over(self, claim: Claim, now: float) -> bool:
        """Whether an explicit claim's agent is idle for too long and another agent waits for it."""
        if not claim.explicit or now - claim.touched < self._table.settings.lease:
            return False
        wanted = [waiter.request for waiter in self._queue.values()]
        wanted += [poller.request for poller in self._pollers.waiting()]
        return any(denies(claim, r) and not same_agent(claim, r) for r in wanted)

    def _arm(self, now: float) -> None:
        """Set the timer to the next moment at which time alone changes something."""
        next_time = inf
        waiting = bool(self._queue or self._pollers)
        for claim in self._claims:
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
        needed: Mode | None = None
        for claim in self._claims:
            if claim.needs_outside and (needed is None or claim.mode > needed):
                needed = claim.mode
        hold.settle(needed, wanted=any(w.request.needs_outside for w in self._queue.values()))
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


async def _ending(process: Process) -> Ending:
    """Wait for a process's end, whatever the host has to say about it."""
    try:
        return await process.ended()
    except Exception:
        log.exception("watching pid %s failed", process.pid)
        return Ending.UNKNOWN
