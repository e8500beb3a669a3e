"""One mailbox: what is committed, who has a draft of it, and how a draft becomes mail.

Nothing but ``_write`` and ``replace`` changes the real file, and both run under a COMMIT claim, that is, with the
mailbox's lock and the real file's locks held. A commit goes

1. the draft is taken out of the table of sessions; what its writer writes from now on is a new draft;
2. the claim is taken. An append that cannot have it at once is *deferred*: its writer is told of success, and a task
   of ours, or whoever commits next, commits it when its turn comes. A rewrite waits for a moment first (its writer is
   in close() meanwhile);
3. the real file is looked at: a change made outside counts as an append if it grew, else as a rewrite;
4. a rewrite is judged against what has happened since its base (``_newer_mail``); appends since are kept behind it,
   another rewrite since makes it stale: then it is refused, and its content goes to rescue;
5. the bytes are written and the version goes up.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import TYPE_CHECKING, TypeVar

import trio

from mailfs.errors import Cause, Refused
from mailfs.locking.model import Kind, Mode, Process, Requester
from mailfs.sessions.closing import Closing
from mailfs.sessions.merge import missing_messages
from mailfs.sessions.readers import Readers
from mailfs.sessions.session import Base, Session
from mailfs.sessions.staging import Staging
from mailfs.sessions.writing import Append, Rewrite

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.locking.mailbox import MailboxLock
    from mailfs.locking.rules import Claim
    from mailfs.sessions.storage import FileState, Store, Times
    from mailfs.sessions.surroundings import Surroundings

log = logging.getLogger(__name__)
T = TypeVar("T")

SMALL = 256 * 1024
"""Bytes that are written in the loop; more than that, or a sync, goes to a thread."""

SETTLE = 10.0
"""Seconds that an unmount waits for a mailbox which a program outside the mount has locked."""


class Mailbox:
    """The state of one mailbox name.

    Args:
        name: its name, for logs and events.
        store: its real file.
        lock: its lock.
        around: what it shares with the others.

    """

    def __init__(self, name: bytes, store: Store, lock: MailboxLock, around: Surroundings) -> None:
        self.name = name
        self.store = store
        self.lock = lock
        self.version = 0
        self.rewrites = 0
        self.sessions: dict[object, Session] = {}
        self.deferred: deque[Session] = deque()
        self.settled = trio.Event()  # not set while bytes are being written in a thread
        self.settled.set()
        self._around = around
        self._draining = False
        self.closing = Closing()
        self._readers = Readers()
        self._state: FileState | None = store.state()

    def __repr__(self) -> str:
        drafts = f"{len(self.sessions)} drafts, {len(self.deferred)} deferred"
        return f"<Mailbox {self.name!r} version {self.version}, {self.size} bytes, {drafts}>"

    # What is committed

    @property
    def size(self) -> int:
        """Committed bytes, as of the last look."""
        return self._state.size if self._state else 0

    @property
    def now(self) -> Base:
        """The committed state as a base."""
        return Base(self.rewrites, self.size, self.size)

    def refresh(self) -> int:
        """Look at the real file; a change that was not ours becomes a version of its own. Returns the size."""
        if not self.settled.is_set():
            return self.size
        state = self.store.state()
        before = self._state
        if state != before:
            self._state = state
            self.version += 1
            grown = before and state and state.inode == before.inode and state.size > before.size
            same = before and state and state[:2] == before[:2]
            if not grown and not same:
                self._rewritten()
                self._around.note(self.name, "changed outside", f"{before} -> {state}")
        return self.size

    @property
    def idle(self) -> bool:
        """Whether nothing is known of it that could not be found out again."""
        return not (self.sessions or self.deferred or self._readers)

    def replaced(self, by: Process | None, kept: int = 0) -> None:
        """A new file was renamed over the mailbox by ``by``, which knows all of it but the last ``kept`` bytes."""
        self._state = self.store.state()
        self.version += 1
        self._rewritten()
        if by is not None:
            self._readers.saved(by, self.rewrites, self.size - kept)

    def _rewritten(self) -> None:
        self.rewrites += 1
        for session in self.sessions.values():
            if not session.rewriting:
                session.rebase(self.now)

    # What its readers know

    def saw(self, process: Process, began: int | None = None) -> None:
        """The process has read the mailbox to its end.

        Args:
            process: who.
            began: how often the mailbox had been rewritten when it began to read. If that has changed, what it has is
                of several versions or of an old one, and nothing that could be saved.
        """
        self.refresh()
        base = self.now if began is None else self.now._replace(rewrites=began)
        self._readers.saw(process, base)

    def is_file(self, inode: int) -> bool:
        """Whether the mailbox is this file, as of the last look, and not one renamed over it."""
        return self._state is not None and self._state.inode == inode

    def session_of(self, key: object, process: Process | None) -> Session | None:
        """The draft that is written and read through a handle.

        Each handle has its own, so that two messages appended by one process stay two. But a process that rewrites the
        mailbox does so through whatever handles it has (bsd-mailx, Dovecot), so these share one draft.
        """
        session = self.sessions.get(key)
        if session is None and process is not None:
            for other in self.sessions.values():
                if other.rewriting and other.requester.process is process:
                    return other
        return session

    def last_draft(self, process: Process | None) -> Session | None:
        """The draft a process wrote to last."""
        mine = [s for s in self.sessions.values() if s.requester.process is process]
        if process is None or not mine:
            return None
        return max(mine, key=lambda session: session.last_write)

    # Drafts

    def draft(self, key: object, requester: Requester) -> Session:
        """The session of ``key``, begun if there is none.

        Raises:
            Refused: STALE or FENCED, when nothing this agent writes could land.

        """
        session = self.session_of(key, requester.process)
        if session is not None:
            self.sessions[key] = session
        else:
            if self.lock.fenced(requester):
                raise Refused(Cause.FENCED, repr(requester))
            self.refresh()
            base, trusted = self._base_for(requester)
            staging = Staging(self._around.spill_limit, self._around.spill)
            session = Session(requester, base, staging, trusted)
            self.sessions[key] = session
        if session.fenced:
            raise Refused(Cause.FENCED, repr(requester))
        session.last_write = trio.current_time()
        return session

    def claim_for(self, session: Session, key: object) -> None:
        """Take the implicit claim of an unlocked writer at its first write, if it is to be had."""
        if session.claimed:
            return
        session.claimed = True
        mode = Mode.WRITE if session.rewriting else Mode.APPEND
        try:
            session.claim = self.lock.writer(session.requester, key, mode)
        except Refused as refusal:  # the backing lock failed: what is wrong will show at the commit
            log.debug("%r: no claim for an unlocked writer: %s", self.name, refusal)

    def give_up_claims(self, hold: float) -> None:
        """Give back implicit claims older than ``hold`` seconds: a slow writer keeps nobody out, here or outside."""
        limit = trio.current_time() - hold
        for session in self.sessions.values():
            if session.claim is not None and session.claim.since <= limit:
                self._give_up(session)

    def _give_up(self, session: Session) -> None:
        if session.claim is not None:
            self.lock.release(session.claim)
            session.claim = None

    def _base_for(self, requester: Requester) -> tuple[Base, bool]:
        """The version this agent last read, and whether it is trusted to know what it does."""
        return self._readers.base_for(requester.process, self.locked_since(requester), self.now)

    def locked_since(self, requester: Requester) -> float | None:
        """When the agent took its explicit exclusive lock (seconds, trio's clock); None if it holds none."""
        held = (
            claim.since
            for claim in self.lock.claims
            if claim.explicit and claim.mode is not Mode.READ and claim.agent.same_as(requester)
        )
        return min(held, default=None)

    def check_stale(self, session: Session) -> None:
        """Raise Refused(STALE) if this session could only be a rewrite of what is no longer there."""
        if not session.trusted and session.base.rewrites != self.rewrites:
            raise Refused(Cause.STALE, f"{self.name!r} was rewritten since it was read")

    def discard(self, key: object, why: str) -> None:
        """Drop a draft; nothing of it lands."""
        session = self._take(key)
        if session is not None:
            if session.dirty:
                self._around.note(self.name, "discard", f"{why}: {session.describe()}")
            self._end(session)

    def fence(self, claim: Claim) -> None:
        """The agent of ``claim`` lost its lock: its drafts do not count, and it hears of it at its next write."""
        for session in self.sessions.values():
            if claim.agent.covers(session.requester):
                session.fenced = True

    # Commit

    async def commit(self, key: object, *, patience: float, reported: bool = True) -> None:
        """Make the draft of ``key`` part of the mailbox.

        Args:
            key: whose draft.
            patience: seconds a rewrite may wait for the lock before it is deferred.
            reported: the writer hears of an error; if not, what it wrote goes to rescue.

        Raises:
            Refused: STALE, FENCED; the draft is then in rescue, or gone.
            OSError: of the backing filesystem.
        """
        session = self._take(key)
        if session is None:
            return
        if session.fenced:
            self._end(session)
            raise Refused(Cause.FENCED, "the draft was discarded")
        if not session.dirty:
            self._end(session)
            return
        if session.rewriting:
            self.lock.end_reading(session.requester.process)
        try:
            claim = await self._claim_for_commit(session, patience)
            if claim is None:
                if session.rewriting:
                    self.check_stale(session)
                self._defer(session)
                return
            with trio.CancelScope(shield=True):
                try:
                    await self._work_off(session.requester)
                    await self._write(session)
                finally:
                    self.lock.release(claim)
        except trio.Cancelled:
            self._defer(session)
            raise
        except (Refused, OSError) as error:
            stale = isinstance(error, Refused) and error.cause is Cause.STALE
            if stale or not reported:
                self._rescue(session, str(error))
            self._end(session)
            raise
        self._end(session)

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

    async def commit_own(self, requester: Requester, claim: Claim | None = None) -> None:
        """Commit the drafts that were written under a lock, before the lock is given back.

        Args:
            requester: who gives it back: its own drafts.
            claim: the lock: drafts of the process it belongs to, if a helper (``dotlockfile -u``) gives it back.
        """
        users = [requester.process]
        if claim is not None:
            users += [claim.agent.home, claim.agent.user]
        for key in [k for k, s in self.sessions.items() if _is_one_of(s.requester.process, users)]:
            await self.commit(key, patience=0)

    def touch(self, requester: Requester) -> None:
        """The agent is at work on the mailbox, so its lock is not idle."""
        self.lock.touch(requester)

    async def replace(
        self,
        requester: Requester,
        content: Callable[[], bytes],
        swap: Callable[[bytes, bool], None],
    ) -> None:
        """Let a whole new file take the mailbox's place (rename(2), which must answer at once).

        Args:
            requester: who saves.
            content: the new text; only called if it must be compared with newer mail.
            swap: puts the new file in place, with the bytes it is given behind it; told whether the new text ends a
                line.

        Raises:
            Refused: STALE if the mailbox was rewritten since the agent read it, LOCK_HELD if somebody holds it.
            OSError: of the backing filesystem.

        """
        claim = self.lock.try_commit(requester, Mode.WRITE)
        locked = self.lock.locked_by(requester)
        beside = claim is None and not any(
            session.rewriting and (not locked or session.requester.process is requester.process)
            for session in self.deferred
        )
        if beside:  # those who read go on reading the old file; a save that was taken comes first
            claim = self.lock.try_commit(requester, Mode.WRITE, beside_readers=True)
        if claim is None:
            raise Refused(Cause.LOCK_HELD, f"{self.name!r} cannot be replaced now")
        try:
            await self._work_off(requester, own_only=beside)
            self.refresh()
            base, trusted = self._base_for(requester)
            if not trusted and base.rewrites != self.rewrites:
                raise Refused(Cause.STALE, f"{self.name!r} was rewritten since it was read")
            kept, ends_line = b"", True
            if self.size > base.size:
                horizon = min(base.horizon, self.size)
                text = content()
                window = missing_messages(self.store.read(base.size, horizon - base.size), text)
                kept = window + self.store.read(horizon, self.size - horizon)
                ends_line = not text or text.endswith(b"\n")
            swap(kept, ends_line)
            self.replaced(requester.process, kept=len(kept))
            self.lock.end_readers()
            self._around.note(self.name, "replace", f"by uid {requester.uid} pid {requester.pid}")
        finally:
            self.lock.release(claim)

    async def remove(self, requester: Requester, action: Callable[[], None]) -> None:
        """Take the file away from this name (unlink, or rename to another), with the lock held for the moment.

        What others have staged is theirs to commit: it will make the mailbox anew.

        Raises:
            Refused: LOCK_HELD if somebody else holds the mailbox.
            OSError: of ``action``.

        """
        await self.commit_own(requester)
        claim = self.lock.try_commit(requester, Mode.WRITE, beside_readers=True)
        if claim is None:
            raise Refused(Cause.LOCK_HELD, f"{self.name!r} cannot be removed now")
        try:
            action()
            self.lock.end_readers()
            self.store.rest()
            self.refresh()
        finally:
            self.lock.release(claim)

    async def commit_idle(self, idle: float) -> None:
        """Commit drafts nobody has written to for ``idle`` seconds."""
        limit = trio.current_time() - idle
        for key in [k for k, s in self.sessions.items() if s.dirty and s.last_write <= limit]:
            try:
                await self.commit(key, patience=0, reported=False)
            except (Refused, OSError) as error:
                log.warning("%r: idle draft could not be committed: %s", self.name, error)

    def _defer(self, session: Session) -> None:
        self._give_up(session)
        self._around.note(self.name, "defer", session.describe())
        self.deferred.append(session)
        if not self._draining:
            self._draining = True
            self._around.nursery.start_soon(self._drain, name=f"commit later {self.name!r}")

    async def _drain(self) -> None:
        try:
            await self._commit_deferred()
        finally:
            self._draining = False

    async def _commit_deferred(self) -> None:
        """Commit what was deferred, when its turn at the lock comes."""
        while self.deferred:
            session = self.deferred[0]
            try:
                claim = await self.lock.commit(session.requester, Mode.WRITE, math.inf)
            except Refused as refusal:
                log.warning("%r: deferred commit waits on: %s", self.name, refusal)
                await trio.sleep(1)
                continue
            with trio.CancelScope(shield=True):
                try:
                    await self._work_off(session.requester)
                finally:
                    self.lock.release(claim)

    async def _work_off(self, requester: Requester, *, own_only: bool = False) -> None:
        """Commit what was deferred, in order, under a claim that is held.

        All of it, so that no backlog grows while mail keeps coming; but while an agent holds a lock of its own only
        what it deferred itself.
        """
        locked = own_only or any(claim.explicit for claim in self.lock.claims)
        for session in list(self.deferred):
            if session not in self.deferred or (
                locked and session.requester.process is not requester.process
            ):
                continue
            self.deferred.remove(session)
            try:
                await self._write(session)
            except (Refused, OSError) as error:
                log.error("%r: deferred commit failed: %s", self.name, error)  # noqa: TRY400 -- no bug
                self._rescue(session, str(error))
            self._end(session)

    async def settle(self) -> None:
        """Commit everything now, whoever holds the mailbox: the mount is going away and with it all its clients."""
        for key in list(self.sessions):
            try:
                await self.commit(key, patience=0, reported=False)
            except (Refused, OSError) as error:
                log.warning("%r: a draft could not be committed at unmount: %s", self.name, error)
        with trio.move_on_after(SETTLE):
            while self.deferred:
                self.lock.end_readers()
                for claim in self.lock.claims:
                    if claim.kind is not Kind.COMMIT:
                        self.lock.revoke(claim, "unmount")
                await trio.sleep(0.01)
        while self.deferred:
            session = self.deferred.popleft()
            log.error("%r: locked from outside: %s goes to rescue", self.name, session.describe())
            self._rescue(session, "the mailbox was locked outside the mount when it was unmounted")
            self._end(session)

    async def _write(self, session: Session) -> None:
        """Write the session to the real file; a COMMIT claim is held."""
        self.refresh()
        if self._state is None:
            self.store.create_again()
            self._state = self.store.state()
        if session.rewriting:
            work: Append | Rewrite = Rewrite(self.store, session, self._newer_mail(session))
        else:
            work = Append(self.store, session, self.size)
        before = self.now
        try:
            await self._run(work, session)
        finally:
            self.store.rest()
        self._state = self.store.state()
        self.version += 1
        if session.rewriting:
            self._rewritten()
            self._readers.saved(session.requester.process, self.rewrites, session.size)
            self._around.note(self.name, "rewrite", session.describe())
        else:
            self._readers.appended(session.requester.process, before, self.now)

    async def _run(self, work: Append | Rewrite, session: Session) -> None:
        if work.bytes <= SMALL and not session.synced:
            work.run()
            return
        self.settled = trio.Event()
        try:
            await self._around.offload(work.run)
        finally:
            self.settled.set()

    def _newer_mail(self, session: Session) -> bytes:
        """The messages that must follow what the session saves.

        Raises:
            Refused: STALE.
        """
        self.check_stale(session)
        base = session.base
        if self.size <= base.size:
            return b""
        horizon = min(base.horizon, self.size)
        window = self.store.read(base.size, horizon - base.size)
        later = self.store.read(horizon, self.size - horizon)
        if window:
            window = missing_messages(window, session.read(self.store, 0, session.size))
        if window or later:
            kept = len(window) + len(later)
            self._around.note(self.name, "merge", f"{kept} bytes of newer mail kept behind a save")
        return window + later

    def _rescue(self, session: Session, why: str) -> None:
        store = self.store if self.store.state() is not None else None
        self._around.rescue(self.name, session.requester.uid, session.remains(store), why)

    def _end(self, session: Session) -> None:
        self._give_up(session)
        if session.times is not None:
            self._set_times(session.times)
        session.close()

    def _set_times(self, times: Times) -> None:
        try:
            self.store.set_times(times)
        except OSError as error:
            log.info("%r: time stamps not set: %s", self.name, error)
        self._state = self.store.state()


def _is_one_of(process: Process | None, others: list[Process | None]) -> bool:
    return process is not None and any(process is other for other in others)
