"""One mailbox: what is committed, who has a draft of it, and what agents ask of it as a whole."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Cause, Refused
from mailfs.locking.model import Kind, Mode
from mailfs.sessions.images import Images
from mailfs.sessions.merge import missing_messages

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mailfs.locking.model import Process, Requester
    from mailfs.locking.rules import Claim

log = logging.getLogger(__name__)

SETTLE = 10.0
"""Seconds that an unmount waits for a mailbox which a program outside the mount has locked."""


class Mailbox(Images):
    """The state of one mailbox name."""

    async def commit_own(self, requester: Requester, claim: Claim | None = None) -> None:
        """Commit the drafts that were written under a lock, before the lock is given back.

        Args:
            requester: who gives it back: its own drafts.
            claim: the lock: drafts of the process it belongs to, if a helper (``dotlockfile -u``) gives it back.
        """
        await self.keep_changes(requester.process)
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
        swap: Callable[[bytes, bool], Awaitable[None]],
    ) -> None:
        """Let a whole new file take the mailbox's place (rename(2), which must answer at once).

        Args:
            requester: who saves.
            content: the new text; only called if it must be compared with newer mail.
            swap: puts the new file in place, with the bytes it is given behind it; told whether the new text ends a
                line.

        Raises:
            Refused: STALE if the mailbox was rewritten since the agent read it, LOCK_HELD if somebody holds it, FENCED
                if the agent lost its lock.
            OSError: of the backing filesystem.

        """
        if self.lock.fenced(requester):
            raise Refused(Cause.FENCED, repr(requester))
        claim = self.lock.try_commit(requester, Mode.WRITE)
        beside = claim is None and self._may_go_beside(requester)
        if beside:  # those who read go on reading the old file
            claim = self.lock.try_commit(requester, Mode.WRITE, beside_readers=True)
        if claim is None:
            raise Refused(Cause.LOCK_HELD, f"{self.name!r} cannot be replaced now")
        try:
            await self._finish_stuck()
            await self._work_off(requester, own_only=beside)
            self.refresh()
            base, trusted = self._base_for(requester)
            if not trusted and base.rewrites != self.rewrites:
                raise Refused(Cause.STALE, f"{self.name!r} was rewritten since it was read")
            kept, ends_line = b"", True
            if self.size > base.size:
                horizon = min(base.horizon, self.size)
                text = content()
                window = missing_messages(
                    self.store.read(base.size, horizon - base.size),
                    text,
                    lambda: self.store.read(0, base.size),
                )
                kept = window + self.store.read(horizon, self.size - horizon)
                ends_line = not text or text.endswith(b"\n")
            await swap(kept, ends_line)
            self.replaced(requester.process, kept=len(kept))
            self.lock.end_readers()
            self._around.note(self.name, "replace", f"by uid {requester.uid} pid {requester.pid}")
        finally:
            self.lock.release(claim)

    def _may_go_beside(self, requester: Requester) -> bool:
        """Whether a new file may take the mailbox's place before those who read the old one are done.

        Not before what was begun is finished, nor before a save that was taken, as that would make it stale; but who
        has the lock comes before saves that wait for it.
        """
        locked = self.lock.locked_by(requester)
        return self.stuck is None and not any(
            session.rewriting and (not locked or session.requester.process is requester.process)
            for session in self.deferred
        )

    async def remove(self, requester: Requester, action: Callable[[], None]) -> None:
        """Take the file away from this name (unlink, or rename to another), with the lock held for the moment.

        What others have staged is theirs to commit: it will make the mailbox anew.

        Raises:
            Refused: LOCK_HELD if somebody else holds the mailbox.
            OSError: of ``action``.

        """
        await self.commit_own(requester)
        if self.lock.fenced(requester):
            raise Refused(Cause.FENCED, repr(requester))
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

    async def settle(self) -> None:
        """Commit everything now, whoever holds the mailbox: the mount is going away and with it all its clients."""
        if self._image is not None:
            await self.undo_changes(self._image.session.requester.process, "unmount")
        for key in list(self.sessions):
            try:
                await self.commit(key, patience=0, reported=False)
            except (Refused, OSError) as error:
                log.warning("%r: a draft could not be committed at unmount: %s", self.name, error)
        with trio.move_on_after(SETTLE):
            while self.deferred or self.stuck:
                await self.retry_stuck()
                self.lock.end_readers()
                for claim in self.lock.claims:
                    if claim.kind is not Kind.COMMIT:
                        self.lock.revoke(claim, "unmount")
                await trio.sleep(0.01)
        self.leave()

    def leave(self) -> bool:
        """Leave what could not be committed in the journal. Returns whether there was anything."""
        left = [*self.deferred, *([self.stuck.session] if self.stuck is not None else [])]
        for session in left:
            log.error(
                "%r: %s stays in the journal for the next mount or `mailfs recover`: "
                "the mailbox is locked outside the mount, or cannot be written",
                self.name,
                session.describe(),
            )
            session.staging.leave()
        self.deferred.clear()
        self.stuck = None
        return bool(left)


def _is_one_of(process: Process | None, others: list[Process | None]) -> bool:
    return process is not None and any(process is other for other in others)
