"""What of a mailbox is committed, and the drafts that agents have of it.

Nothing here changes the real file; that is ``commits``' business.
"""

from __future__ import annotations

import contextlib
import logging
from collections import deque
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Cause, Refused
from mailfs.locking.model import Mode, Process, Requester
from mailfs.sessions.closing import Closing
from mailfs.sessions.journalling import enter
from mailfs.sessions.readers import Readers, Window
from mailfs.sessions.record import State
from mailfs.sessions.session import Base, Session
from mailfs.sessions.staging import Staging

if TYPE_CHECKING:
    from mailfs.locking.mailbox import MailboxLock
    from mailfs.locking.rules import Claim
    from mailfs.sessions.storage import FileState, Store, Times
    from mailfs.sessions.surroundings import Surroundings
    from mailfs.sessions.writing import Work

log = logging.getLogger(__name__)

BLOCK = 4096
"""Bytes; room for drafts is reserved in multiples of it."""


class Drafts:
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
        self.closing = Closing()
        self.settled = trio.Event()  # not set while bytes are being written in a thread
        self.settled.set()
        self.stuck: Work | None = None  # a change that is half done, as the disk failed
        self._around = around
        self._readers = Readers()
        self._state: FileState | None = store.state()
        self._unseen = False  # we have changed the file, and could not look at it then
        self._reserved = 0  # up to where room is set aside for drafts, bytes

    def __repr__(self) -> str:
        drafts = f"{len(self.sessions)} drafts, {len(self.deferred)} deferred"
        return f"<{type(self).__name__} {self.name!r} version {self.version}, {self.size} bytes, {drafts}>"

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
        if not self.settled.is_set() or self.stuck is not None:
            return self.size
        state = self.store.state()
        before = self._state
        if self._unseen and before and state and state[:2] == before[:2]:
            before = self._state = state  # its mtime is our doing
        self._unseen = False
        if state != before:
            self._state = state
            self.version += 1
            if not (before and state and state.inode == before.inode and state.size > before.size):
                self._rewritten()
                self._around.note(self.name, "changed outside", f"{before} -> {state}")
        return self.size

    def _look(self) -> None:
        """Take note of what we have made of the real file. If that fails, the next look tells."""
        try:
            self._state = self.store.state()
            self._unseen = False
        except OSError as error:
            self._unseen = True
            log.warning("%r: cannot be looked at after a change: %s", self.name, error)

    @property
    def idle(self) -> bool:
        """Whether nothing is known of it that could not be found out again."""
        return not (self.sessions or self.deferred or self._readers or self.stuck)

    def replaced(self, by: Process | None, kept: int = 0) -> None:
        """A new file was renamed over the mailbox by ``by``, which knows all of it but the last ``kept`` bytes."""
        self._look()
        self.version += 1
        self._rewritten()
        if by is not None:
            self._readers.saved(by, self.rewrites, self.size - kept)

    def _rewritten(self) -> None:
        self.rewrites += 1
        self._reserved = 0  # truncating gives it back
        for session in self.sessions.values():
            if not session.rewriting:
                session.rebase(self.now)

    # What its readers know

    def saw(self, process: Process, began: int | None = None, size: int | None = None) -> None:
        """The process has read the mailbox to its end.

        Args:
            process: who.
            began: how often the mailbox had been rewritten when it began to read. If that has changed, what it has is
                of several versions or of an old one, and nothing that could be saved.
            size: how far it has read, bytes, if that was the end when it opened the mailbox.
        """
        self.refresh()
        base = self.now if began is None else self.now._replace(rewrites=began)
        self._readers.saw(process, base if size is None else Base(base.rewrites, size, size))

    def is_file(self, inode: int) -> bool:
        """Whether the mailbox is this file, as of the last look, and not one renamed over it."""
        return self._state is not None and self._state.inode == inode

    def opened(self, process: Process | None) -> Window | None:
        """A process has opened the mailbox to read it without our seeing; `closed` must follow."""
        return self._readers.opened(process, self.now) if process is not None else None

    def closed(self, window: Window) -> None:
        """What was opened so is closed."""
        with contextlib.suppress(OSError):  # what cannot be looked at is as it was
            self.refresh()
        self._readers.closed(window, self.now)

    def unlocking(self, requester: Requester) -> None:
        """The agent is about to give back a lock of its own, and what it wrote under it is committed."""
        held = [c.since for c in self.lock.claims if c.explicit and c.agent.same_as(requester)]
        if held and requester.process is not None:
            with contextlib.suppress(OSError):
                self.refresh()
            self._readers.unlocked(requester.process, min(held), self.now)

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
            staging = Staging(self._around.spill_limit, self._around.journal.slot)
            session = Session(requester, base, staging, trusted)
            self.sessions[key] = session
        if session.fenced:
            raise Refused(Cause.FENCED, repr(requester))
        session.last_write = trio.current_time()
        return session

    def write(self, session: Session, offset: int, data: bytes) -> None:
        """Lay bytes over a draft, and set room aside for them in the mailbox.

        Raises:
            OSError: there is none; the draft is then as before.

        """
        end = max(session.size, offset + len(data))
        self._reserve(end - session.size)
        session.write(offset, data)

    def _reserve(self, growth: int) -> None:
        """Make sure that what is staged, and ``growth`` bytes more, will find room."""
        staged = sum(s.appended for s in self.sessions.values())
        staged += sum(s.appended for s in self.deferred)
        end = self.size + staged + growth
        if growth <= 0 or end <= self._reserved or self._state is None:
            return
        start = max(self.size, self._reserved)
        end += -end % BLOCK
        self.refresh()
        try:
            self.store.reserve(start, end - start)
        finally:
            self._own_change()
        self._reserved = end

    def set_times(self, times: Times) -> None:
        """Set the mailbox's time stamps. Raises OSError."""
        self.refresh()
        try:
            self.store.set_times(times)
        finally:
            self._own_change()

    def _own_change(self) -> None:
        """What the real file looks like now is our doing (fallocate(2) sets its mtime)."""
        if self.settled.is_set() and self.stuck is None:
            self._look()

    async def sync(self, key: object) -> None:
        """fsync(2) under a lock of the client's own: the draft is on the disk, and still a draft.

        Raises:
            OSError: of the backing filesystem.

        """
        session = self.sessions.get(key)
        if session is None or not session.dirty:
            return
        session.synced = True
        enter(session, State.SYNCED, self.name, self.store, self._around.journal, synced=True)
        slot = session.staging.slot()
        await self._around.offload(slot.sync)

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

    def fence(self, claim: Claim) -> None:
        """The agent of ``claim`` lost its lock: its drafts do not count, and it hears of it at its next write."""
        for session in self.sessions.values():
            if claim.agent.covers(session.requester):
                session.fenced = True
