"""What is held on one mailbox: the claims in force, and how they come, change and go.

Who may have one is the `Engine`'s business. A claim of flock, fcntl or an unlocked writer has an
owner (handle, lock owner, session) and there is at most one of it for each: a second grant changes
the first. Implicit claims and reservations whose time is over stay until somebody wants the
mailbox, and then *lapse*. An agent whose explicit claim was taken away is *fenced* until it takes a
lock anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from mailfs.locking.agents import Agent, find_user
from mailfs.locking.model import Kind, Mode
from mailfs.locking.ranges import carve, strongest
from mailfs.locking.rules import EXPLICIT, Claim, Request, denies, same_agent

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from mailfs.locking.model import Process
    from mailfs.locking.table import LockTable

MAX_FENCES = 64
"""Agents remembered as fenced before the dead ones are forgotten."""


class Holding:
    """The claims of one mailbox."""

    __slots__ = (
        "__weakref__",
        "_claims",
        "_fences",
        "_owned",
        "_readers",
        "_table",
        "key",
    )

    def __init__(self, key: bytes, table: LockTable) -> None:
        self.key = key
        self._table = table
        self._claims: dict[Claim, None] = {}
        self._readers: dict[
            Claim, None
        ] = {}  # unlocked ones: many, and in nobody's way but a commit's
        self._owned: dict[tuple[Kind, Hashable], Claim] = {}
        self._fences: list[Agent] = []

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Everything in force, reservations included, oldest first; unlocked readers last."""
        return (*self._claims, *self._readers)

    def blockers(self, request: Request) -> Iterator[Claim]:
        """The claims in force that deny a request."""
        claims = self.claims if request.kind is Kind.COMMIT else tuple(self._claims)
        return (claim for claim in claims if denies(claim, request))

    def inside(self, request: Request) -> bool:
        """Whether the request's agent holds a claim here, or a moment is kept for it.

        That it reads without a lock lets it read more, but gives it no precedence in anything else.
        """
        if any(same_agent(claim, request) for claim in self._claims):
            return True
        if request.kind is not Kind.READER:
            return False
        now = trio.current_time()
        return any(c.firm_until > now and same_agent(c, request) for c in self._readers)

    def _in_the_way(self, request: Request, now: float) -> Claim | None:
        """The first claim that stands against a request; those whose time is over give way."""
        for claim in self.blockers(request):
            if claim.firm_until > now:
                return claim
            self._lapse(claim)
        return None

    def _strength(self) -> Mode | None:
        """The strongest mode of a claim that needs the lock on the real file."""
        needed: Mode | None = None
        for claim in self._claims:
            if claim.needs_outside and (needed is None or claim.mode > needed):
                needed = claim.mode
        return needed

    # Granting

    def _keep_rights(self, request: Request) -> None:
        """Let a change to a claim count for as much as the claim itself.

        The right to write the mailbox may come or go while an owner holds something; what its claim
        counts for was settled when it was made, and stays so until it is given back.
        """
        claim = self._owned.get((request.kind, request.owner))
        if claim is not None and claim.requester.may_write != request.requester.may_write:
            may_write = claim.requester.may_write
            request.requester = replace(request.requester, may_write=may_write)

    def _grant(self, request: Request, now: float) -> Claim:
        """Put a claim in force. Raises Refused if it would be too many ranges."""
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
                requester=request.requester,
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
        for other in tuple(self._claims):
            if other.reserved and same_agent(other, request):
                self._remove(other)
        self._of_kind(claim)[claim] = None
        if claim.explicit:
            process = request.requester.process
            self._fences = [a for a in self._fences if not a.covers_process(process)]
            for reader in (process, claim.agent.user):
                if reader is not None:
                    self._end_reading(reader)
        return claim

    def _end_reading(self, process: Process | None) -> bool:
        """Nobody waits for what a process reads without a lock any more; says whether it mattered."""
        mine = [claim for claim in self._readers if claim.requester.process is process]
        for claim in mine:
            self._remove(claim, "released", "it locks or saves")
        return bool(mine)

    def _of_kind(self, claim: Claim) -> dict[Claim, None]:
        """Where a claim is kept."""
        return self._readers if claim.kind is Kind.READER else self._claims

    def _agent(self, request: Request) -> Agent:
        requester = request.requester
        if request.kind is Kind.FREEZE:
            agent = Agent(requester)
            agent.home = None  # an administrator's other programs are frozen out like everybody
            return agent
        if (
            request.kind not in EXPLICIT
            or request.kind is Kind.SESSION
            or requester.process is None
        ):
            return Agent(requester, outlives=request.kind is Kind.DOTLOCK)
        user = find_user(requester, self._held_by)
        return Agent(requester, user=user, outlives=request.kind is Kind.DOTLOCK)

    def _held_by(self, process: Process) -> bool:
        return any(c.requester.process is process and not c.reserved for c in self.claims)

    def _keep_free(self, request: Request, now: float) -> None:
        """Reserve the mailbox for a request that is expected soon."""
        claim = Claim(
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
        self._claims[claim] = None

    # Taking away; the caller serves those who waited

    def _remove(self, claim: Claim, what: str = "", why: str = "") -> None:
        claim.live = False
        del self._of_kind(claim)[claim]
        if claim.owner is not None and not claim.reserved:
            self._owned.pop((claim.kind, claim.owner), None)
        for scope in claim.watches:
            scope.cancel()
        claim.watches.clear()
        if what:
            self._table.emit(what, self.key, claim, why)

    def _lapse(self, claim: Claim) -> None:
        """An implicit claim or a reservation gives way."""
        claim.revoked = not claim.reserved
        if claim.reserved:
            self._remove(claim)
        else:
            self._remove(claim, "lapsed")

    def _fence(self, claim: Claim, why: str) -> None:
        claim.revoked = claim.fenced = True
        self._fences.append(claim.agent)
        if len(self._fences) > MAX_FENCES:
            self._fences = [agent for agent in self._fences if agent.alive]
        self._remove(claim, "revoked", why)
