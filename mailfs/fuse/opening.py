"""What an open() of a mailbox claims beyond the file: a reader's moment, a program's session.

* **Young readers** (design 4.7). Who opens a mailbox for reading reads it by many calls, and must not see one commit's
  work in the first of them and another's in the last. So the handle keeps commits away while it is young: until its
  last close, or for `YOUNG` seconds and one more for each `PER_SECOND` bytes. If a commit waits for such readers, or is
  being written, the open waits for it. Who has a lock needs none of this, and who takes one does so no longer.
  A reader who may not write the mailbox gets `STRANGER` seconds: enough for cat, too little to hold up mail.
* **Session hold** (design 4.6). A program that the configuration names has the mailbox's exclusive lock from its first
  open to its last close; the first open waits for it as for any lock.

Both waits end at ``waits.open``, with EAGAIN, or by a signal. A create must not wait (design 2.3), so there what cannot
be had at once is refused (session) or done without (reader: the mailbox is new).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Cause, Refused

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mailfs.fuse.bridge import Interrupt
    from mailfs.fuse.context import Context, Who
    from mailfs.fuse.handles import MailboxHandle
    from mailfs.locking.model import Process
    from mailfs.locking.rules import Claim
    from mailfs.sessions.mailbox import Mailbox

YOUNG = 2.0
"""Seconds for which a handle is young; as long as a close may be kept waiting for it (``waits.flush``)."""

PER_SECOND = 100_000_000
"""Bytes of mailbox for which a reader has one more second."""

STRANGER = 0.2
"""Seconds for which the handle of somebody who may not write the mailbox is young."""


class Opening:
    """The claims of opens."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def admit(
        self, number: int, mailbox: Mailbox, flags: int, who: Who, interrupt: Interrupt | None
    ) -> Claim | None:
        """Let a client open a mailbox, when it may.

        Args:
            number: the handle's.
            mailbox: what is opened.
            flags: of open(2).
            who: the client.
            interrupt: tells of the client's giving up; None where the request must not wait.

        Returns:
            The reader's claim, for `closed`.

        Raises:
            Refused: LOCK_HELD, WAIT_LIMIT, INTERRUPTED, TOO_MANY_WAITERS; NO_SPACE, QUOTA, IO of the backing lock.
        """
        if self._context.programs and await self._holds_session(who):
            await self._hold_session(mailbox, who, interrupt)
            return None
        if flags & os.O_ACCMODE == os.O_WRONLY:
            return None
        may_write = flags & os.O_ACCMODE == os.O_RDWR or self._may_write(mailbox, who)
        requester = who.requester(mailbox.name, may_write=may_write)
        lock = mailbox.lock
        if lock.locked_by(requester):
            return None
        hold = YOUNG + mailbox.size / PER_SECOND if may_write else STRANGER
        claim = lock.reader(requester, number, hold)
        if claim is None and interrupt is not None:
            claim = await self._wait(interrupt, lambda: lock.reader_wait(requester, number, hold))
        return claim

    def closed(self, handle: MailboxHandle) -> None:
        """The handle's last descriptor is gone, and what was written through it is committed."""
        lock = handle.mailbox.lock
        if handle.young is not None:
            lock.release(handle.young)
        if handle.opener is not None and self._context.programs:
            claim = lock.session_of(handle.opener)
            if claim is not None and not self._has_open(handle.mailbox, handle.opener):
                lock.release(claim)

    def failed(self, mailbox: Mailbox, young: Claim | None, who: Who) -> None:
        """The open came to nothing."""
        if young is not None:
            mailbox.lock.release(young)
        if self._context.programs and who.process is not None:
            claim = mailbox.lock.session_of(who.process)
            if claim is not None and not self._has_open(mailbox, who.process):
                mailbox.lock.release(claim)

    async def _holds_session(self, who: Who) -> bool:
        """Whether the client is a program that holds mailboxes for its session. Asks /proc where that cannot hang."""
        process = who.process
        if process is None:
            return False
        return self._context.programs.holds_session(await process.executable())

    async def _hold_session(self, mailbox: Mailbox, who: Who, interrupt: Interrupt | None) -> None:
        may_write = await who.may_write_mailbox(mailbox.name)
        requester = who.requester(mailbox.name, may_write=may_write)
        if interrupt is None:
            mailbox.lock.try_session(requester)
        elif mailbox.lock.session_of(who.process) is None:
            await self._wait(interrupt, lambda: mailbox.lock.session(requester))

    async def _wait(self, interrupt: Interrupt, wait: Callable[[], Awaitable[Claim]]) -> Claim:
        with trio.move_on_after(self._context.limits.open_wait) as scope:
            interrupt.on_interrupt(scope.cancel)
            return await wait()
        raise Refused(Cause.INTERRUPTED if interrupt.fired else Cause.WAIT_LIMIT, "open")

    def _may_write(self, mailbox: Mailbox, who: Who) -> bool:
        return who.may_write_file((mailbox.name,), self._context.door.stat((mailbox.name,)))

    def _has_open(self, mailbox: Mailbox, process: Process) -> bool:
        openers = self._context.openers.get(mailbox.name)
        return bool(openers and openers[process] > 0)
