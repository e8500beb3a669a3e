"""flock(2) and fcntl(2): from the bridge's requests to the lock of a mailbox, or of any other file.

A request is decided at once if that is possible; one that has to wait is parked in a task of ours, which occupies no
worker of pyfuse3 and ends by grant, or by the client's interrupt.
"""

from __future__ import annotations

import errno
import fcntl
import logging
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Cause, Refused
from mailfs.fuse.context import Context, Who
from mailfs.fuse.errnos import Asked, errno_of
from mailfs.fuse.nodes import LockNode, MailboxNode, Node, ScratchNode
from mailfs.locking.model import Mode, Requester

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from mailfs.fuse.bridge import LockRequest
    from mailfs.fuse.handles import Handle
    from mailfs.sessions.mailbox import Mailbox

log = logging.getLogger(__name__)

MODES = {fcntl.F_RDLCK: Mode.READ, fcntl.F_WRLCK: Mode.WRITE, fcntl.F_UNLCK: None}
TYPES = {Mode.READ: fcntl.F_RDLCK, Mode.APPEND: fcntl.F_WRLCK, Mode.WRITE: fcntl.F_WRLCK}


class Locks:
    """Implements the bridge's LockHandler."""

    def __init__(self, context: Context) -> None:
        self._context = context

    # The bridge's calls: they run inside libfuse and must neither wait nor raise

    def flock(self, request: LockRequest) -> None:
        """flock(2)."""
        self._start(self._flock, request)

    def setlk(self, request: LockRequest) -> None:
        """fcntl(2), F_SETLK and F_SETLKW, POSIX and OFD locks alike."""
        self._start(self._setlk, request)

    def getlk(self, request: LockRequest) -> None:
        """fcntl(2), F_GETLK."""
        self._start(self._getlk, request)

    def _start(
        self, handler: Callable[[LockRequest], Awaitable[None]], request: LockRequest
    ) -> None:
        self._context.surroundings.nursery.start_soon(self._serve, handler, request)

    async def _serve(
        self, handler: Callable[[LockRequest], Awaitable[None]], request: LockRequest
    ) -> None:
        try:
            with trio.CancelScope() as scope:
                request.on_interrupt(scope.cancel)
                await handler(request)
            code = errno.EINTR if scope.cancelled_caught else 0
        except Refused as refusal:
            code = errno_of(refusal, Asked.KERNEL_LOCK)
        except OSError as error:
            code = error.errno or errno.EIO
        except Exception:
            log.exception("%s failed", request.name)
            code = errno.EIO
        if not request.answered:
            request.reply(code)

    # flock

    async def _flock(self, request: LockRequest) -> None:
        node, handle, who = self._asked(request)
        mode = MODES[request.type]
        handle.flocked = True
        if isinstance(node, MailboxNode):
            mailbox, requester = await self._mailbox(node, who)
            lock = mailbox.lock
            if mode is None:
                try:
                    await _commit_first(mailbox, requester)
                    mailbox.unlocking(requester)
                finally:  # whatever became of the draft, the lock goes
                    lock.flock(requester, handle, None)
            elif request.wait:
                await lock.flock_wait(requester, handle, mode)
            else:
                lock.flock(requester, handle, mode)
            self._granted(mailbox, mode)
            return
        self._refuse_lock_file(node, who, mode)
        files, pid = self._context.file_locks, request.pid
        if request.wait and mode is not None:
            await files.flock_wait(node.number, handle, mode, pid=pid, uid=who.uid)
        else:
            files.flock(node.number, handle, mode, pid=pid, uid=who.uid)

    # fcntl

    async def _setlk(self, request: LockRequest) -> None:
        node, handle, who = self._asked(request)
        mode, owner = MODES[request.type], request.owner
        start, end = request.start, request.end
        handle.owners.add(owner)
        if isinstance(node, MailboxNode):
            mailbox, requester = await self._mailbox(node, who)
            lock = mailbox.lock
            if mode is None:
                try:
                    await _commit_first(mailbox, requester)
                    mailbox.unlocking(requester)
                finally:
                    lock.setlk(requester, owner, None, start, end)
            elif request.wait:
                await lock.setlk_wait(requester, owner, mode, start, end)
            else:
                lock.setlk(requester, owner, mode, start, end)
            self._granted(mailbox, mode)
            return
        self._refuse_lock_file(node, who, mode)
        files, pid = self._context.file_locks, request.lock_pid
        key = node.number
        if request.wait and mode is not None:
            await files.setlk_wait(key, owner, mode, start, end, pid=pid, uid=who.uid)
        else:
            files.setlk(key, owner, mode, start, end, pid=pid, uid=who.uid)

    async def _getlk(self, request: LockRequest) -> None:
        node, _, who = self._asked(request)
        mode = MODES[request.type]
        if mode is None:
            raise OSError(errno.EINVAL, "F_GETLK asks for a lock")
        if isinstance(node, MailboxNode):
            mailbox, requester = await self._mailbox(node, who)
            conflict = mailbox.lock.getlk(
                requester, request.owner, mode, request.start, request.end
            )
        else:
            conflict = self._context.file_locks.getlk(
                node.number, request.owner, mode, request.start, request.end
            )
        if conflict is None:
            request.reply_lock(fcntl.F_UNLCK)
        else:
            request.reply_lock(TYPES[conflict.mode], conflict.start, conflict.end, conflict.pid)

    # Closing

    def closed(self, node: Node, owner: int) -> None:
        """A process closed a descriptor: its record locks on the file go, whatever handle they were made on."""
        if owner == 0:
            return
        if isinstance(node, MailboxNode):
            node.mailbox.lock.drop_owner(owner)
        else:
            self._context.file_locks.drop_owner(node.number, owner)

    def released(self, handle: Handle) -> None:
        """The last descriptor is gone, and with it flock and OFD locks, for which the kernel sends no unlock."""
        node = handle.node
        if isinstance(node, MailboxNode):
            if handle.flocked:
                node.mailbox.lock.drop_handle(handle)
            for owner in handle.owners:
                node.mailbox.lock.drop_owner(owner)
        else:
            if handle.flocked:
                self._context.file_locks.drop_handle(node.number, handle)
            for owner in handle.owners:
                self._context.file_locks.drop_owner(node.number, owner)

    # What they share

    def _asked(self, request: LockRequest) -> tuple[Node, Handle, Who]:
        node = self._context.nodes.get(request.ino)
        handle = self._context.handles.get(request.fh)
        if node is None or handle is None:
            raise OSError(errno.EBADF, "no such file")
        return handle.node, handle, Who(self._context, request)

    async def _mailbox(self, node: MailboxNode, who: Who) -> tuple[Mailbox, Requester]:
        mailbox = node.mailbox
        may_write = await who.may_write_mailbox(mailbox.name)
        return mailbox, who.requester(mailbox.name, may_write=may_write)

    def _granted(self, mailbox: Mailbox, mode: Mode | None) -> None:
        if mode is not None:
            mailbox.refresh()

    def _refuse_lock_file(self, node: Node, who: Who, mode: Mode | None) -> None:
        """A live lock file refuses a foreign flock() or record lock: c-client v3 would take it for stale."""
        lock = node.lock if isinstance(node, LockNode | ScratchNode) else None
        if lock is None or not lock.live or mode is None:
            return
        requester = who.requester(lock.mailbox, may_write=True)
        if lock.claim is None or not lock.claim.agent.covers(requester):
            raise Refused(Cause.LOCK_HELD, "somebody else's lock file")


async def _commit_first(mailbox: Mailbox, requester: Requester) -> None:
    """What was written under a lock is committed before the lock is given back."""
    try:
        await mailbox.commit_own(requester)
    except Refused as refusal:
        if refusal.cause is not Cause.FENCED:  # its unlock succeeds without effect (design 4.5)
            raise
