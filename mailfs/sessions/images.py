"""Programs that write a mailbox through a shared mapping, around us (design 3.7).

What such a program maps is the real file, so its changes are there at once. When it first changes the size, under an
exclusive lock of its own, the mailbox as it is goes to the journal: the *image*. From then on what this program writes
goes straight to the file, and nobody else commits. When it unlocks or closes, the image is dropped and the mailbox is
what it has become; when it is killed, loses its lock, or we die, the image is restored.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from mailfs.errors import Cause, Refused
from mailfs.locking.model import Mode
from mailfs.sessions.commits import Commits
from mailfs.sessions.journalling import enter
from mailfs.sessions.record import State
from mailfs.sessions.session import CHUNK, Base, Session
from mailfs.sessions.staging import Staging
from mailfs.sessions.writing import StuckError, rewrite

if TYPE_CHECKING:
    from mailfs.locking.mailbox import MailboxLock
    from mailfs.locking.model import Process, Requester
    from mailfs.locking.rules import Claim
    from mailfs.sessions.storage import Store
    from mailfs.sessions.surroundings import Surroundings

log = logging.getLogger(__name__)


class Image:
    """A mailbox as it was (`writing.Work`: it can be brought back as often as it takes).

    Args:
        store: the mailbox.
        session: a draft that consists of nothing but what was there.
        claim: keeps others from committing.

    """

    def __init__(self, store: Store, session: Session, claim: Claim) -> None:
        self._store = store
        self.session = session
        self.claim = claim
        self.bytes = session.size

    def run(self) -> None:
        """Restore it. Raises OSError."""
        try:
            self.finish()
        except OSError as error:
            raise StuckError(self, error) from error

    def finish(self) -> None:
        """The same; may be repeated. Raises OSError."""
        rewrite(self._store, self.session, b"")
        self.session.staging.close()

    def is_prefix(self) -> bool:
        """Whether the mailbox still begins with what was there. Raises OSError."""
        for at in range(0, self.bytes, CHUNK):
            size = min(CHUNK, self.bytes - at)
            if self._store.read(at, size) != self.session.staging.read(at, size):
                return False
        return True


class Images(Commits):
    """A mailbox that a program may change by itself."""

    def __init__(self, name: bytes, store: Store, lock: MailboxLock, around: Surroundings) -> None:
        super().__init__(name, store, lock, around)
        self._image: Image | None = None

    def refresh(self) -> int:
        """Look at the real file; while a program writes by itself, whatever changes is its doing."""
        if self._image is not None:
            self._own_change()
        return super().refresh()

    def written_through_by(self, process: Process | None) -> bool:
        """Whether what this process writes goes straight to the file."""
        image = self._image
        return image is not None and image.session.requester.process is process

    def fence(self, claim: Claim) -> None:
        """The agent of ``claim`` lost its lock: what it has done by itself is undone."""
        super().fence(claim)
        image = self._image
        if image is not None and claim.agent.covers(image.session.requester):
            process = image.session.requester.process
            self._around.nursery.start_soon(self.undo_changes, process, "its lock was taken")

    async def write_through(self, requester: Requester) -> None:
        """Keep an image, as this agent is about to change the mailbox by itself.

        Raises:
            Refused: LOCK_HELD if it cannot be had for this agent alone; FENCED.
            OSError: there is no room for the image.

        """
        if self.written_through_by(requester.process):
            return
        if self.lock.fenced(requester):
            raise Refused(Cause.FENCED, repr(requester))
        claim = self.lock.try_commit(requester, Mode.WRITE)
        if claim is None:
            raise Refused(Cause.LOCK_HELD, f"{self.name!r} is being committed to")
        session = Session(
            requester, Base(self.rewrites, 0, 0), Staging(0, self._around.journal.slot)
        )
        session.truncated = True
        try:
            await self._finish_stuck()
            await self._work_off(requester)
            self.refresh()
            size = self.size
            await self._around.offload(lambda: self._copy(session, size))
            synced = self._around.durable
            enter(session, State.IMAGE, self.name, self.store, self._around.journal, synced=synced)
            if synced:
                await self._around.offload(session.staging.slot().sync)
        except BaseException:
            session.close()
            self.lock.release(claim)
            raise
        self._image = Image(self.store, session, claim)
        self._around.note(self.name, "image", f"{size} bytes kept: {session.who} writes by itself")

    def _copy(self, session: Session, size: int) -> None:
        session.staging.slot()
        for at in range(0, size, CHUNK):
            session.write(at, self.store.read(at, min(CHUNK, size - at)))

    def through(self, offset: int, data: bytes) -> None:
        """Write straight to the file. Raises OSError."""
        self.store.write(offset, data)
        self._own_change()

    def truncate_through(self, size: int) -> None:
        """Change the file's size. Raises OSError."""
        self.store.truncate(size)
        self._own_change()

    async def keep_changes(self, process: Process | None) -> None:
        """What the process has written by itself is the mailbox from now on; nothing if it has not. Never raises."""
        image = self._image
        if image is None or not self.written_through_by(process):
            return
        self._image = None
        before = Base(self.rewrites, image.bytes, image.bytes)
        self._own_change()
        self.version += 1
        grown = False
        try:
            if self._around.durable:
                await self._around.offload(self.store.sync)
            grown = self.size >= image.bytes and await self._around.offload(image.is_prefix)
        except OSError as error:
            log.warning("%r: what a mapping changed cannot be read: %s", self.name, error)
        if grown:
            self._readers.appended(process, before, self.now)
        else:
            self._rewritten()
            self._readers.saved(process, self.rewrites, self.size)
        image.session.staging.close(synced=self._around.durable)
        self._around.note(self.name, "image", f"dropped: {image.session.who} is done")
        self.store.rest()
        self.lock.release(image.claim)

    async def undo_changes(self, process: Process | None, why: str) -> None:
        """Bring back what was there before the process wrote by itself; nothing if it has not. Never raises."""
        image = self._image
        if image is None or not self.written_through_by(process):
            return
        self._image = None
        self._around.note(self.name, "image", f"restored: {why}")
        try:
            await self._in_thread(image.run)
        except StuckError as error:
            log.error("%r is half restored: %s", self.name, error)  # noqa: TRY400 -- the disk's
            self.stuck = error.work
        finally:
            self._own_change()
            self.version += 1
            self._rewritten()
            self.store.rest()
            self.lock.release(image.claim)
