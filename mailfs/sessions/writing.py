"""How a draft gets into the real file: behind it, or over it.

Both are entered in the journal first and reserve their space first, so a full disk is found out before anything is
changed, and whatever ends us in the middle, recovery (``recovery``) brings the mailbox to the state before or after.

An error of the disk in the middle is answered here: an append is cut back, a rewrite is written again, which its record
allows as often as it takes. If that fails too the work is *stuck* (`StuckError`): its record stays in the journal, and
nothing else is written to this mailbox before the work is finished. It is over when its record is withdrawn: one that
is left there by accident would be carried out again, on a mailbox that has gone on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, Protocol

from mailfs.sessions.journalling import enter, withdraw
from mailfs.sessions.merge import line_break_before
from mailfs.sessions.record import State

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailfs.sessions.session import Session
    from mailfs.sessions.storage import Journal, Store

TRIES = 3
"""How often a rewrite is tried at once."""


class Work(Protocol):
    """One change of a mailbox."""

    session: Session
    bytes: int

    def run(self) -> None:
        """Do it. Raises OSError: nothing was changed; StuckError: something was."""

    def finish(self) -> None:
        """Bring stuck work to an end. Raises OSError: it is stuck still."""


class StuckError(OSError):
    """A mailbox was left between two states. ``work`` is to be finished before anything else is done to it."""

    def __init__(self, work: Work, error: OSError) -> None:
        super().__init__(error.errno, error.strerror)
        self.work = work


class Target(NamedTuple):
    """Where drafts are written: a mailbox, and the journal they are entered in first.

    ``durable``: they must survive a loss of power, whether or not their writers called fsync.
    """

    name: bytes
    store: Store
    journal: Journal
    durable: bool


class Append:
    """Write the session's bytes behind the mailbox; on failure the mailbox is cut back to what it was.

    Args:
        target: the mailbox.
        session: the draft.
        end: the mailbox's size, bytes.

    """

    def __init__(self, target: Target, session: Session, end: int) -> None:
        self._name, self._store, self._journal, durable = target
        self.session = session
        self._end = end
        self._synced = durable or session.synced
        self._former = State.FREE  # what stands in the journal if it comes to nothing
        self.bytes = session.appended

    def run(self) -> None:
        """Do it. Raises OSError."""
        session, store = self.session, self._store
        store.reserve(self._end, session.appended + 1)
        former = session.record
        if former is not None:
            self._former = State.SYNCED if former.state is State.SYNCED else State.PENDING
        state = State.INTENT if former is None else State.COMMITTED
        enter(session, state, self._name, store, self._journal, at=self._end, synced=self._synced)
        try:
            if self._synced:
                session.staging.slot().sync()
            self._write()
            if self._synced:
                store.sync()
            withdraw(session, State.FREE)
        except OSError as error:
            try:
                self.finish()
            except OSError:
                raise StuckError(self, error) from error
            raise
        session.staging.close(synced=self._synced and state is State.COMMITTED)

    def _write(self) -> None:
        at = self._end
        for text in appended_text(self._store, self.session, self._end):
            self._store.write(at, text)
            at += len(text)

    def finish(self) -> None:
        """Undo it."""
        self._store.truncate(self._end)
        withdraw(self.session, self._former)
        if self._former is State.FREE:
            self.session.record = None


def appended_text(store: Store, session: Session, end: int) -> Iterator[bytes]:
    """What an append writes at the mailbox's ``end``, in chunks: on a line of its own if it begins with a separator."""
    last = store.read(end - 1, 1) if end else b""
    for number, chunk in enumerate(session.tail()):
        yield chunk if number else line_break_before(last, chunk) + chunk


class Rewrite:
    """Bring the real file to the session's content, with newer mail behind it.

    Args:
        target: the mailbox.
        session: the draft.
        kept: newer mail.

    """

    def __init__(self, target: Target, session: Session, kept: bytes) -> None:
        self._name, self._store, self._journal, durable = target
        self.session = session
        self._kept = kept
        self._synced = durable or session.synced
        self.bytes = session.staging.size + len(kept)

    def run(self) -> None:
        """Do it. Raises OSError."""
        session, store = self.session, self._store
        state = store.state()
        end = session.size + len(self._kept) + 1
        if state is not None and end > state.size:
            store.reserve(state.size, end - state.size)
        self._commit()
        for _ in range(TRIES):
            try:
                self.finish()
            except OSError as error:
                failure = error
            else:
                return
        raise StuckError(self, failure) from failure

    def _commit(self) -> None:
        """From here on it happens, now or at recovery."""
        session, former = self.session, self.session.record
        try:
            enter(
                session,
                State.COMMITTED,
                self._name,
                self._store,
                self._journal,
                kept=self._kept,
                synced=self._synced,
            )
            if self._synced:
                session.staging.slot().sync()
        except OSError as error:
            if session.record is not former:  # it is in the journal, though not on the disk
                try:
                    withdraw(session, State.FREE if former is None else former.state)
                except OSError:
                    raise StuckError(self, error) from error
                session.record = former
            raise

    def finish(self) -> None:
        """Do the rest of it, or all of it again."""
        rewrite(self._store, self.session, self._kept)
        if self._synced:
            self._store.sync()
        withdraw(self.session, State.FREE)
        self.session.staging.close(synced=self._synced)


def rewrite(store: Store, session: Session, kept: bytes) -> None:
    """Write a draft over the mailbox; the same again leads to the same. Raises OSError."""
    state = store.state()
    if state is not None and state.size > session.floor:
        store.truncate(session.floor)
    for offset, data in session.changes():
        store.write(offset, data)
    store.truncate(session.size)
    if kept:
        last = store.read(session.size - 1, 1) if session.size else b""
        store.write(session.size, line_break_before(last, kept) + kept)
