"""The only place where a draft changes the real file (but for a rename over it, `Mailbox.replace`).

Everything here is done under a COMMIT claim, that is, with the mailbox's lock and the real file's locks held.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Refused
from mailfs.locking.model import Mode
from mailfs.sessions.drafts import BLOCK, Drafts
from mailfs.sessions.journalling import is_mail, withdraw
from mailfs.sessions.merge import missing_messages
from mailfs.sessions.record import State
from mailfs.sessions.storage import Times
from mailfs.sessions.writing import Append, Rewrite, StuckError, Target

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.locking.model import Requester
    from mailfs.sessions.session import Session
    from mailfs.sessions.writing import Work

log = logging.getLogger(__name__)

SMALL = 256 * 1024
"""Bytes that are written in the loop; more than that, or a sync, goes to a thread."""


class Changes(Drafts):
    """Writes drafts to the real file, and keeps apart what cannot be written."""

    async def _write(self, session: Session) -> None:
        """Write the session to the real file; a COMMIT claim is held."""
        await self._finish_stuck()
        self.refresh()
        if self._state is None:
            self.store.create_again()
            self._state = self.store.state()
        durable = self._around.durable
        target = Target(self.name, self.store, self._around.journal, durable)
        work: Work
        if session.rewriting:
            work = Rewrite(target, session, self._newer_mail(session))
        else:
            work = Append(target, session, self.size)
        before = self.now
        try:
            if work.bytes > SMALL or session.synced or durable:
                await self._in_thread(work.run)
            else:
                work.run()
        except StuckError as error:
            log.error("%r is half written: %s", self.name, error)  # noqa: TRY400 -- the disk's
            self.stuck = error.work
            raise
        except OSError:
            self._reserved = 0
            self._own_change()  # it was cut back
            raise
        finally:
            self.store.rest()
        self._look()
        self.version += 1
        if session.rewriting:
            self._rewritten()
            self._refuse_stale()
            self._readers.saved(session.requester.process, self.rewrites, session.size)
            self._around.note(self.name, "rewrite", session.describe())
        else:
            self._readers.appended(session.requester.process, before, self.now)

    async def _in_thread(self, function: Callable[[], None]) -> None:
        """Run what changes the file; reads wait meanwhile."""
        self.settled = trio.Event()
        try:
            await self._around.offload(function)
        finally:
            self.settled.set()

    async def _finish_stuck(self) -> None:
        """Bring to an end what the disk kept from it. Raises OSError: it is not over."""
        work = self.stuck
        if work is None:
            return
        await self._in_thread(work.finish)
        if is_synced(work.session) and is_mail(work.session):
            withdraw(work.session, State.PENDING)  # its writer was told that it is on the disk
        self.stuck = None
        log.warning("%r is whole again", self.name)
        record = work.session.record
        if record is not None and record.state is State.PENDING:
            self.deferred.appendleft(work.session)
        else:
            if is_synced(work.session):
                self._rescue(work.session, "an error of the disk, at its commit")
            self._end(work.session)
        self._look()
        self.version += 1
        self._reserved = 0
        if work.session.rewriting:
            self._rewritten()
            self._refuse_stale()

    def _refuse_stale(self) -> None:
        """Drafts that wait and can be nothing but stale go to rescue at once: the next daemon could not tell."""
        for session in [s for s in self.deferred if s.rewriting]:
            try:
                self.check_stale(session)
            except Refused as refusal:
                log.error("%r: deferred commit refused: %s", self.name, refusal)  # noqa: TRY400 -- no bug
                self.deferred.remove(session)
                self._rescue(session, str(refusal))
                self._end(session)

    def _newer_mail(self, session: Session) -> bytes:
        """The messages that must follow what the session saves.

        Raises:
            Refused: STALE.
        """
        self.check_stale(session)
        known = session.known
        if self.size <= known:
            return b""
        horizon = min(session.base.horizon, self.size)
        window = self.store.read(known, horizon - known)
        later = self.store.read(horizon, self.size - horizon)
        if window:
            saved = session.read(self.store, 0, session.size)
            window = missing_messages(window, saved, lambda: self.store.read(0, known))
        if window or later:
            kept = len(window) + len(later)
            self._around.note(self.name, "merge", f"{kept} bytes of newer mail kept behind a save")
        return window + later

    def _rescue(self, session: Session, why: str) -> bool:
        # Laid over a text that it was not made for it would be neither's.
        same = session.base.rewrites == self.rewrites
        with contextlib.suppress(OSError):  # what cannot be looked at can be read even less
            same = same and self.store.state() is not None
        store = self.store if same else None
        kept = self._around.rescue(self.name, session.requester.uid, session.remains(store), why)
        stuck = self.stuck is not None and self.stuck.session is session
        if not kept and session.record is not None and not stuck:
            session.staging.leave()  # in the journal, for the next daemon
        return kept

    def _end(self, session: Session) -> None:
        """A draft is over; one whose work is stuck is not."""
        self._give_up(session)
        if self.stuck is not None and self.stuck.session is session:
            return
        if session.times is not None:
            try:
                self.set_times(session.times)
            except OSError as error:
                log.info("%r: time stamps not set: %s", self.name, error)
        session.close()

    # Room that was set aside

    @property
    def _spare_room(self) -> bool:
        """Whether more is set aside than what is staged can need."""
        return self._reserved > self.size + BLOCK and not (self.sessions or self.deferred)

    def _trim(self) -> None:
        """Give back room set aside for drafts that are no more; the lock is held."""
        if not self._spare_room or self.stuck is not None:
            return
        self._reserved = 0
        try:
            before = self.store.state()
            if before is not None and self._state is not None and before[:2] == self._state[:2]:
                self.store.truncate(before.size)
                self.store.set_times(Times(None, before.mtime_ns))
        except OSError as error:
            log.info("%r: room set aside is not given back: %s", self.name, error)
        finally:
            self.store.rest()
        self._look()

    def _trim_later(self, requester: Requester) -> None:
        """The same, if the lock is free; else the next commit does it."""
        try:
            claim = self.lock.try_commit(requester, Mode.WRITE)
        except Refused:
            return
        if claim is not None:
            self._trim()
            self.lock.release(claim)


def is_synced(session: Session) -> bool:
    """Whether its writer was told that it is on the disk, but not that it is in the mailbox."""
    return session.record is not None and session.record.state is State.SYNCED
