"""How a draft becomes mail.

A commit goes

1. the draft is taken out of the table of sessions; what its writer writes from now on is a new draft;
2. the claim is taken. An append that cannot have it at once is *deferred*: it goes to the journal, its writer is told
   of success, and a task of ours, or whoever commits next, commits it when its turn comes. A rewrite waits for a moment
   first (its writer is in close() meanwhile);
3. the real file is looked at: a change made outside counts as an append if it grew, else as a rewrite;
4. a rewrite is judged against what has happened since its base (``_newer_mail``); appends since are kept behind it,
   another rewrite since makes it stale: then it is refused, and its content goes to rescue;
5. it is entered in the journal, the bytes are written (``changes``, ``writing``) and the version goes up.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Cause, Refused
from mailfs.locking.model import Mode
from mailfs.sessions.changes import Changes, is_synced
from mailfs.sessions.journalling import enter, is_mail, last_of
from mailfs.sessions.record import State

if TYPE_CHECKING:
    from mailfs.locking.mailbox import MailboxLock
    from mailfs.locking.model import Requester
    from mailfs.locking.rules import Claim
    from mailfs.sessions.session import Session
    from mailfs.sessions.storage import Store
    from mailfs.sessions.surroundings import Surroundings

log = logging.getLogger(__name__)

RETRY = 1.0
MOST = 60.0
"""Seconds until a commit that a writer was told of is tried again after an error of the disk: first, and at most."""


class Commits(Changes):
    """Commits drafts."""

    def __init__(self, name: bytes, store: Store, lock: MailboxLock, around: Surroundings) -> None:
        super().__init__(name, store, lock, around)
        self._draining = False
        self._failed: OSError | None = None  # why the first of the deferred could not be written

    async def commit(self, key: object, *, patience: float, reported: bool = True) -> None:
        """Make the draft of ``key`` part of the mailbox.

        Args:
            key: whose draft.
            patience: seconds a rewrite may wait for the lock before it is deferred.
            reported: the writer hears of an error; if not, what it wrote goes to rescue.

        Raises:
            Refused: STALE, FENCED; the draft is then in rescue, or gone.
            OSError: of the backing filesystem; the mailbox is then as before, and the draft is gone. Of one that
                its writer has synced what was synced is kept, and committed later.
        """
        session = self._take(key)
        if session is None:
            return
        if session.fenced:
            self._end(session)
            raise Refused(Cause.FENCED, "the draft was discarded")
        if not session.dirty:
            self._drop(session)
            return
        broken = session.broken
        if broken is not None and not (session.back_to_synced() and is_mail(session)):
            self._end_broken(session)
            raise OSError(broken[0].errno, broken[0].strerror)
        if session.rewriting:
            self.lock.end_reading(session.requester.process)
        await self._commit(session, patience, reported=reported)
        if broken is not None:
            raise OSError(broken[0].errno, broken[0].strerror)

    async def _commit(self, session: Session, patience: float, *, reported: bool) -> None:
        try:
            claim = await self._claim_for_commit(session, patience)
            with trio.CancelScope(shield=True):
                await self._commit_or_defer(session, claim)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await self._defer_or_rescue(session)
            raise
        except (Refused, OSError) as error:
            if isinstance(error, OSError) and await self._keep_for_later(session, error):
                return
            stale = isinstance(error, Refused) and error.cause is Cause.STALE
            if stale or not reported or is_synced(session):
                self._rescue(session, str(error))
            self._drop(session)
            raise

    def _end_broken(self, session: Session) -> None:
        """Drop a draft that lacks what could not be written; what its writer had synced of it goes to rescue."""
        why = "a write to it failed"
        self._around.note(self.name, "discard", f"{why}: {session.describe()}")
        if session.record is not None:
            self._rescue(session, why)
        self._drop(session)

    async def _keep_for_later(self, session: Session, error: OSError) -> bool:
        """After an error of the disk, let a draft wait whose writer was told that it is there already."""
        stuck = self.stuck is not None and self.stuck.session is session
        if stuck or session.record is None or session.record.state is State.FREE:
            return False
        log.error("%r: %s waits in the journal: %s", self.name, session.describe(), error.strerror)
        try:
            await self._defer(session)
        except OSError:  # it is in the journal, though not as it should be
            self.deferred.append(session)
            self._drain_later()
        return True

    async def _commit_or_defer(self, session: Session, claim: Claim | None) -> None:
        if claim is None:
            if session.rewriting:
                self.check_stale(session)
            await self._defer(session)
            return
        try:
            await self._work_off(session.requester)
            await self._write(session)
            self._end(session)
            self._trim()
        finally:
            self.lock.release(claim)

    async def _claim_for_commit(self, session: Session, patience: float) -> Claim | None:
        """The mailbox, at once for an append, after a moment for a rewrite; None: later."""
        mode = Mode.WRITE if session.rewriting or self.deferred else Mode.APPEND
        claim = self.lock.try_commit(session.requester, mode)
        if claim is None and session.rewriting and patience > 0:
            try:
                claim = await self.lock.commit(session.requester, mode, patience)
            except Refused as refusal:
                log.debug("%r: rewrite waits: %s", self.name, refusal)
        return claim

    def _take(self, key: object) -> Session | None:
        """Take a draft out of the table, under all the handles it was written through."""
        session = self.sessions.get(key)
        self.sessions = {k: s for k, s in self.sessions.items() if s is not session}
        return session

    def discard(self, key: object, why: str) -> None:
        """Drop a draft; nothing of it lands."""
        session = self._take(key)
        if session is None:
            return
        if session.dirty:
            self._around.note(self.name, "discard", f"{why}: {session.describe()}")
        self._drop(session)

    def _drop(self, session: Session) -> None:
        """End a draft of which nothing landed, and give back the room set aside for it."""
        self._end(session)
        if self._spare_room:
            self._trim_later(session.requester)

    # Commits that wait for their turn

    def adopt(self, session: Session, *, rewritten: bool = False) -> None:
        """Take over a draft that an earlier daemon has left in the journal, and commit it when its turn comes.

        Args:
            session: the draft.
            rewritten: the mailbox was rewritten since, by another draft of the journal.

        """
        stale = session.rewriting and (rewritten or not self._goes_on(session))
        session.base = session.base._replace(rewrites=-1 if stale else self.rewrites)
        self.deferred.append(session)
        self._drain_later()

    def _goes_on(self, session: Session) -> bool:
        """Whether the mailbox is what it was when a draft was journalled, or that and more, as far as can be seen."""
        record, state = session.record, self._state
        if record is None or record.found is None or state is None:
            return False
        found = record.found
        try:
            same = last_of(self.store, found.size) == record.last
        except OSError as error:
            log.warning("%r cannot be compared with %s: %s", self.name, session.describe(), error)
            return False
        return same and state.inode == found.inode and state.size >= found.size

    def give_up(self, session: Session, why: str) -> bool:
        """Move a draft that an earlier daemon has left to rescue. Returns whether all of it is kept there."""
        kept = self._rescue(session, why)
        self._end(session)
        return kept

    async def _defer(self, session: Session) -> None:
        """Enter a draft in the journal, so that its writer can be told of success. Raises OSError."""
        self._give_up(session)
        synced = session.synced or self._around.durable
        enter(session, State.PENDING, self.name, self.store, self._around.journal, synced=synced)
        if synced:
            slot = session.staging.slot()
            await self._around.offload(slot.sync)
        self._around.note(self.name, "defer", session.describe())
        self.deferred.append(session)
        self._drain_later()

    async def _defer_or_rescue(self, session: Session) -> None:
        try:
            await self._defer(session)
        except OSError as error:
            self._rescue(session, str(error))
            self._end(session)

    def _drain_later(self) -> None:
        if not self._draining:
            self._draining = True
            self._around.nursery.start_soon(self._drain, name=f"commit later {self.name!r}")

    async def _drain(self) -> None:
        try:
            await self._commit_deferred()
        finally:
            self._draining = False

    async def _commit_deferred(self) -> None:
        """Commit what was deferred, when its turn at the lock comes; after an error of the disk, again and again."""
        pause = RETRY
        while self.deferred:
            session = self.deferred[0]
            try:
                claim = await self.lock.commit(session.requester, Mode.WRITE, math.inf)
            except Refused as refusal:
                log.warning("%r: deferred commit waits on: %s", self.name, refusal)
                await trio.sleep(RETRY)
                continue
            with trio.CancelScope(shield=True):
                try:
                    await self._work_off(session.requester)
                    self._trim()
                finally:
                    self.lock.release(claim)
            if self._failed is None:
                pause = RETRY
                continue
            log.error(
                "%r: %s waits in the journal: %s; next try in %g s",
                self.name,
                session.describe(),
                self._failed.strerror,
                pause,
            )
            await trio.sleep(pause)
            pause = min(2 * pause, MOST)

    async def _work_off(self, requester: Requester, *, own_only: bool = False) -> None:
        """Commit what was deferred, in order, under a claim that is held.

        All of it, so that no backlog grows while mail keeps coming; but while an agent holds a lock of its own only
        what it deferred itself. An error of the disk ends it: the rest waits in the journal.
        """
        self._failed = None
        try:
            await self._finish_stuck()  # perhaps the first of those that wait
        except OSError as error:
            self._failed = error
            return
        locked = own_only or any(claim.explicit for claim in self.lock.claims)
        for session in list(self.deferred):
            if session not in self.deferred or (
                locked and session.requester.process is not requester.process
            ):
                continue
            self.deferred.remove(session)
            try:
                await self._write(session)
            except Refused as refusal:
                log.error("%r: deferred commit refused: %s", self.name, refusal)  # noqa: TRY400 -- no bug
                self._rescue(session, str(refusal))
            except OSError as error:
                self._failed = error
                if self.stuck is None or self.stuck.session is not session:
                    self.deferred.appendleft(session)
                return
            self._end(session)

    async def retry_stuck(self) -> None:
        """Try to bring a half-written mailbox to one of its states, if its lock is free. Never raises."""
        if self.stuck is None:
            return
        try:
            claim = self.lock.try_commit(self.stuck.session.requester, Mode.WRITE)
        except Refused:
            return
        if claim is None:
            return
        try:
            with trio.CancelScope(shield=True):
                await self._finish_stuck()
        except OSError as error:
            log.debug("%r is half written still: %s", self.name, error)
        finally:
            self.store.rest()
            self.lock.release(claim)
        if self.deferred:
            self._drain_later()
