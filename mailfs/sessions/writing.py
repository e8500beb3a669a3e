"""How a draft gets into the real file: behind it, or over it.

Space is reserved first, so a full disk is found out before anything is changed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailfs.sessions.merge import line_break_before

if TYPE_CHECKING:
    from mailfs.sessions.session import Session
    from mailfs.sessions.storage import Store


class Append:
    """Write the session's bytes behind the mailbox; on failure the mailbox is cut back to what it was."""

    def __init__(self, store: Store, session: Session, end: int) -> None:
        self._store = store
        self._session = session
        self._end = end
        self.bytes = session.appended

    def run(self) -> None:
        """Do it. Raises OSError."""
        end = at = self._end
        last = self._store.read(end - 1, 1) if end else b""
        self._store.reserve(end, self._session.appended + 1)
        try:
            for chunk in self._session.tail():
                text = chunk
                if at == end:
                    text = line_break_before(last, chunk) + chunk
                self._store.write(at, text)
                at += len(text)
            if self._session.synced:
                self._store.sync()
        except OSError:
            self._store.truncate(end)
            raise


class Rewrite:
    """Bring the real file to the session's content, with newer mail behind it.

    Space is reserved first. An I/O error in the middle, or our own death, leaves a part of it written: there is no log
    of it yet to finish it from.
    """

    def __init__(self, store: Store, session: Session, kept: bytes) -> None:
        self._store = store
        self._session = session
        self._kept = kept
        self.bytes = session.staging.size + len(kept)

    def run(self) -> None:
        """Do it. Raises OSError."""
        store, session = self._store, self._session
        state = store.state()
        end = session.size + len(self._kept) + 1
        if state is not None and end > state.size:
            store.reserve(state.size, end - state.size)
        if state is not None and state.size > session.floor:
            store.truncate(session.floor)
        for offset, data in session.changes():
            store.write(offset, data)
        store.truncate(session.size)
        if self._kept:
            last = store.read(session.size - 1, 1) if session.size else b""
            store.write(session.size, line_break_before(last, self._kept) + self._kept)
        if session.synced:
            store.sync()
