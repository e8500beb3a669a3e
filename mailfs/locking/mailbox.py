"""The lock of one mailbox: what each protocol asks of it (design 4.1, 5).

Every protocol is a way to ask for the same lock. This module knows what each of them says and
answers; who is next is the `Engine`'s business, what excludes what is in ``rules``, who belongs
together in ``agents``.

An `append_only` requester's exclusive locks are `APPEND` claims, so that delivery agents do not
wait for each other.

Requests that are refused raise `Refused`. Methods that wait end with the grant, by cancellation, or
with DEADLOCK (fcntl) or TOO_MANY_WAITERS; all of them may raise NO_SPACE, QUOTA or IO if the lock
on the real file cannot be had.
"""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, NamedTuple

import trio

from mailfs.errors import Cause, Refused
from mailfs.locking.engine import Engine
from mailfs.locking.model import Kind, Mode
from mailfs.locking.ranges import OFFSET_MAX, carve, clash, strongest
from mailfs.locking.rules import Claim, Request, denies, same_agent

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mailfs.locking.model import Process, Requester


class Conflict(NamedTuple):
    """What F_GETLK says stands against a lock; APPEND is a write lock to the client."""

    mode: Mode
    start: int
    end: int
    pid: int


def _asked(requester: Requester, mode: Mode) -> Mode:
    """The mode a client's explicit lock stands for."""
    return Mode.APPEND if requester.append_only and mode is Mode.WRITE else mode


class MailboxLock(Engine):
    """The one lock of a mailbox. Get it from `LockTable.lock`."""

    __slots__ = ()

    # Dotlocks

    def dotlock(self, req: Requester, content_key: object = None) -> Claim:
        """Make the lock file. A second one is refused to the holder's own agent too.

        Raises:
            Refused: LOCK_HELD.
        """
        mode = _asked(req, Mode.WRITE)
        return self.attempt(Request(Kind.DOTLOCK, mode, req, content=content_key))

    def dotlock_seen_by(self, req: Requester) -> Claim | None:
        """The claim by which the lock file exists for this client.

        That is its own dotlock, or what would deny it one.

        A look-up ends implicit claims and reservations whose time is over, as an attempt would.
        """
        if not self._claims:
            return None
        request = Request(Kind.DOTLOCK, _asked(req, Mode.WRITE), req)
        own = self.releasable(req)
        if own is not None and denies(own, request):
            return own
        now = trio.current_time()
        lapsed = False
        seen = None
        for claim in tuple(self._claims):
            if not denies(claim, request):
                continue
            if claim.firm_until <= now:
                self._lapse(claim)
                lapsed = True
            else:
                seen = seen or claim
        if lapsed:
            self.pump()
        if seen is None and self._queue and self._claims and not self.inside(request):
            barrier = self._queue.barrier()
            if barrier.stops(request):  # denied for the sake of those who wait for the holder
                return next(iter(self._claims), None)
        return seen

    def release_dotlock(self, req: Requester) -> None:
        """Remove the lock file.

        Raises:
            Refused: NO_SUCH_LOCK if it was revoked from this agent; NOT_OWNER if what the client
                sees is somebody else's (an administrator breaks a lock by the control file, not by
                rm); NO_SUCH_NAME if it sees none.
        """
        claim = self.releasable(req)
        if claim is not None:
            self.drop(claim)
            return
        if any(agent.may_release(req) for agent in self._fences):
            raise Refused(Cause.NO_SUCH_LOCK, "it was revoked")
        seen = self.dotlock_seen_by(req)
        if seen is not None:
            raise Refused(Cause.NOT_OWNER, str(seen))
        raise Refused(Cause.NO_SUCH_NAME)

    def releasable(self, req: Requester) -> Claim | None:
        """The dotlock that this client would give back by removing the lock file; None if it has none."""
        own = [
            claim
            for claim in self._claims
            if claim.kind is Kind.DOTLOCK and not claim.reserved and claim.agent.may_release(req)
        ]
        for claim in own:  # of several (append claims of relatives) rather one's very own
            if claim.agent.home is req.process:
                return claim
        return own[0] if own else None

    # The flock protocol

    def flock(self, req: Requester, handle: Hashable, mode: Mode | None) -> Claim | None:
        """Lock, convert, or (None) unlock, without waiting.

        A conversion is as in flock(2): to a weaker mode at once; to a stronger one the old lock is
        given up first, those who waited for it come first, and if the new one is refused the old
        one is lost (Linux, ``flock_lock_inode``).

        Returns:
            The claim, or None after unlocking.

        Raises:
            Refused: LOCK_HELD.
        """
        if mode is None:
            self.drop_handle(handle)
            return None
        mode = _asked(req, mode)
        return self._convert(handle, mode) or self.attempt(Request(Kind.FLOCK, mode, req, handle))

    async def flock_wait(self, req: Requester, handle: Hashable, mode: Mode | None) -> Claim | None:
        """As `flock`, but wait for the turn."""
        if mode is None:
            self.drop_handle(handle)
            return None
        mode = _asked(req, mode)
        claim = self._convert(handle, mode)
        return claim or await self.wait(Request(Kind.FLOCK, mode, req, handle))

    def _convert(self, handle: Hashable, mode: Mode) -> Claim | None:
        """What a handle's present lock makes of a new request; None: it has none (any more)."""
        claim = self._owned.get((Kind.FLOCK, handle))
        if claim is None:
            return None
        if claim.mode is mode:
            return claim
        if claim.mode is not Mode.WRITE:  # appending is no stronger than reading, only different
            self.drop(claim, why="converted")
            return None
        claim.mode = mode
        claim.generation = self._table.generation()
        self.pump()
        return claim

    def drop_handle(self, handle: Hashable) -> None:
        """The handle was unlocked or closed for the last time."""
        claim = self._owned.get((Kind.FLOCK, handle))
        if claim is not None:
            self.drop(claim)

    # The fcntl protocol

    def setlk(
        self,
        req: Requester,
        owner: Hashable,
        mode: Mode | None,
        start: int = 0,
        end: int = OFFSET_MAX,
    ) -> Claim | None:
        """Lock or (None) unlock the bytes ``start`` to ``end``, both included, without waiting.

        Returns:
            The owner's claim, or None if nothing of it is left or was there.

        Raises:
            Refused: LOCK_HELD, or TOO_MANY_WAITERS for too many ranges; what the owner held before
                it still holds.
        """
        if mode is None:
            return self._unlock(owner, start, end)
        return self.attempt(Request(Kind.FCNTL, _asked(req, mode), req, owner, start, end))

    async def setlk_wait(
        self,
        req: Requester,
        owner: Hashable,
        mode: Mode | None,
        start: int = 0,
        end: int = OFFSET_MAX,
    ) -> Claim | None:
        """As `setlk`, but wait for the turn. What the owner holds it keeps while it waits.

        Raises:
            Refused: DEADLOCK if waiting would close a cycle of waiters.
        """
        if mode is None:
            return self._unlock(owner, start, end)
        return await self.wait(Request(Kind.FCNTL, _asked(req, mode), req, owner, start, end))

    def _unlock(self, owner: Hashable, start: int, end: int) -> Claim | None:
        claim = self._owned.get((Kind.FCNTL, owner))
        if claim is None:
            return None
        left = carve(claim.ranges, None, start, end)
        mode = strongest(left)
        if mode is None:
            self.drop(claim)
            return None
        claim.ranges, claim.mode = left, mode
        self.pump()
        return claim

    def getlk(
        self,
        req: Requester,
        owner: Hashable,
        mode: Mode,
        start: int = 0,
        end: int = OFFSET_MAX,
    ) -> Conflict | None:
        """What would refuse this lock now; None if nothing."""
        request = Request(Kind.FCNTL, _asked(req, mode), req, owner, start, end)
        now = trio.current_time()
        for claim in self.blockers(request):
            if claim.firm_until <= now:
                continue
            pid = claim.requester.pid
            if claim.kind is Kind.FCNTL and not claim.reserved:
                hit = clash(claim.ranges, request.mode, start, end)
                if hit is not None:
                    return Conflict(hit.mode, hit.start, hit.end, pid)
            return Conflict(claim.mode, 0, OFFSET_MAX, pid)
        return None

    def drop_owner(self, owner: Hashable) -> None:
        """All record locks of an owner go: a process closed a descriptor, or an OFD was closed."""
        claim = self._owned.get((Kind.FCNTL, owner))
        if claim is not None:
            self.drop(claim)

    # What we hold on a client's behalf

    def writer(self, req: Requester, key: Hashable, mode: Mode = Mode.APPEND) -> Claim | None:
        """The implicit claim of an unlocked writer, if it is to be had at once. Never raises.

        For ``implicit_hold`` seconds it is as good as a lock; then it gives way to whoever wants
        the mailbox: it is marked revoked, not fenced, and the writer's session goes on without it.
        A second call for the same key may strengthen it.
        """
        have = self._owned.get((Kind.WRITER, key))
        if have is not None and have.mode >= mode:
            return have
        return self._try(
            Request(Kind.WRITER, mode, req, key, hold=self._table.settings.implicit_hold)
        )

    def reader(self, req: Requester, key: Hashable, hold: float) -> Claim | None:
        """The implicit claim of an unlocked reader that was just opened (4.7).

        None means that it should wait for a commit: one that is under way, or that waits for
        nothing but other readers.

        It keeps nobody away but commits of other agents, for ``hold`` seconds.
        """
        return self._try(self._reading(req, key, hold))

    async def reader_wait(self, req: Requester, key: Hashable, hold: float) -> Claim:
        """As `reader`, but wait for these commits."""
        return await self.wait(self._reading(req, key, hold))

    def locked_by(self, req: Requester) -> bool:
        """Whether the requester's agent holds an explicit lock now: then nobody else's commit is in its way."""
        return any(claim.explicit and claim.agent.same_as(req) for claim in self._claims)

    def _reading(self, req: Requester, key: Hashable, hold: float) -> Request:
        """An agent that reads already need not wait for the commit that waits for it, but gets no more time."""
        request = Request(Kind.READER, Mode.READ, req, key, hold=hold)
        now = trio.current_time()
        while self._readers and (oldest := next(iter(self._readers))).firm_until <= now:
            self._lapse(oldest)  # its handle may stay open for hours
        if self._queue.commits:
            left = [claim.firm_until - now for claim in self._readers if same_agent(claim, request)]
            request.hold = min([hold, *left])
        return request

    def end_reading(self, process: Process | None) -> None:
        """A program that saves has read what it saves; two that wait for each other's reading would wait in vain."""
        if process is not None and self._end_reading(process):
            self.pump()

    def end_readers(self) -> None:
        """What unlocked readers read is no longer what commits write to: nobody waits for them."""
        readers = tuple(self._readers)
        for claim in readers:
            self._remove(claim, "released", "a new file took the mailbox's place")
        if readers:
            self.pump()

    async def session(self, req: Requester) -> Claim:
        """The exclusive lock for as long as the requester's process has the mailbox open (4.6).

        It is one for each process: asked for again, it is the same.
        """
        have = self.session_of(req.process)
        return have or await self.wait(Request(Kind.SESSION, Mode.WRITE, req))

    def try_session(self, req: Requester) -> Claim:
        """As `session`, at once.

        Raises:
            Refused: LOCK_HELD.
        """
        have = self.session_of(req.process)
        return have or self.attempt(Request(Kind.SESSION, Mode.WRITE, req))

    def session_of(self, process: Process | None) -> Claim | None:
        """The hold of a process for its session, if it has one."""
        sessions = (claim for claim in self._claims if claim.kind is Kind.SESSION)
        return next((c for c in sessions if process and c.requester.process is process), None)

    def try_commit(
        self, req: Requester, mode: Mode, *, beside_readers: bool = False
    ) -> Claim | None:
        """The mailbox for the moment of a commit, if it is to be had at once.

        Args:
            req: on whose behalf.
            mode: APPEND or WRITE.
            beside_readers: what changes is only which file has the mailbox's name, so those who
                read without locks are not in its way.

        Raises:
            Refused: NO_SPACE, QUOTA, IO of the backing lock.
        """
        return self._try(Request(Kind.COMMIT, mode, req, beside_readers=beside_readers))

    async def commit(self, req: Requester, mode: Mode, limit: float | None = None) -> Claim:
        """The mailbox for the moment of a commit, when its turn comes; give it back by `release`.

        Args:
            req: on whose behalf; its agent's own locks are no obstacle, another commit of it is.
            mode: APPEND or WRITE.
            limit: seconds to wait at most; None: for ever.

        Raises:
            Refused: WAIT_LIMIT.
        """
        with trio.move_on_after(inf if limit is None else limit):
            return await self.wait(Request(Kind.COMMIT, mode, req))
        raise Refused(Cause.WAIT_LIMIT, repr(self))

    def _try(self, request: Request) -> Claim | None:
        try:
            return self.attempt(request)
        except Refused as refusal:
            if refusal.cause is Cause.LOCK_HELD:
                return None
            raise

    def release(self, claim: Claim) -> None:
        """Give any claim back; nothing if it is no longer in force."""
        self.drop(claim)

    # Administration

    @property
    def frozen(self) -> Claim | None:
        """The administrator's claim, if the mailbox is frozen."""
        return next((claim for claim in self._claims if claim.kind is Kind.FREEZE), None)

    async def freeze(self, req: Requester) -> Claim:
        """Take the mailbox from everybody, when its turn comes. A frozen mailbox stays as it is."""
        return self.frozen or await self.wait(Request(Kind.FREEZE, Mode.WRITE, req))

    def thaw(self) -> bool:
        """End a freeze; False if there was none."""
        claim = self.frozen
        if claim is None:
            return False
        self.drop(claim)
        return True

    def revoke(self, claim: Claim, why: str) -> None:
        """Take a claim away and fence its agent: its unfinished work must not land any more."""
        if claim.live:
            self._fence(claim, why)
            self.pump()

    def fenced(self, req: Requester) -> bool:
        """Whether this requester's agent lost a lock here and has not taken a new one since.

        A pid of 0 is never recognised; its late saves are judged like everybody's (3.4).
        """
        return any(agent.covers_process(req.process) for agent in self._fences)

    def touch(self, req: Requester) -> None:
        """The requester is at work on the mailbox: its leases start anew."""
        if self._claims:
            now = trio.current_time()
            for claim in self._claims:
                if claim.explicit and claim.agent.prolongs(req):
                    claim.touched = now
