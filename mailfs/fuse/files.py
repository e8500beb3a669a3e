"""Open files: open, read, write, flush, fsync, release.

Of these only open, read and flush may wait, and flush only for a moment (the kernel holds no lock there, but a process
that is ending cannot be killed while its flush waits). When a mailbox's draft is committed is decided by
``flush`` and ``release``:

* flush by the process that opened the handle: commit; unless an earlier flush came without a release, or the process
  has another descriptor of the mailbox: then this one was, or may be, a duplicate (a shell's ``printf x >&3`` makes
  and closes one), and RELEASE decides;
* flush by another process that has inherited the descriptor: nothing yet;
* release, when the last descriptor is gone: commit;
* release, when the process that wrote last has died by a signal, or its opener after that process had ended: discard.
  What an earlier one left passes on to those who hold the handle still, and is theirs to finish.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Cause, Refused
from mailfs.fuse.bridge import Caller, watch_interrupt
from mailfs.fuse.context import Context, Who
from mailfs.fuse.handles import FileHandle, Handle, LockHandle, MailboxHandle, TextHandle
from mailfs.fuse.nodes import (
    ControlNode,
    FileNode,
    LockNode,
    MailboxNode,
    Node,
    RescueNode,
    ScratchNode,
)
from mailfs.fuse.opening import Opening
from mailfs.fuse.passthrough import Way
from mailfs.host.processes import HostProcess
from mailfs.locking.model import Ending, Requester
from mailfs.sessions.readers import GONE

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailfs.fuse.bridge import Interrupt
    from mailfs.fuse.namespace import Namespace
    from mailfs.fuse.replace import Replacing
    from mailfs.locking.model import Process
    from mailfs.spool.door import Path

log = logging.getLogger(__name__)

# What of a client's open flags makes sense for a descriptor of ours. O_APPEND would make pwrite(2) ignore offsets.
_KEPT = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC
WRITING = (os.O_WRONLY, os.O_RDWR)


class Files:
    """The operations on open files."""

    def __init__(self, context: Context, namespace: Namespace, replacing: Replacing) -> None:
        self._context = context
        self._namespace = namespace
        self._replacing = replacing
        self._opening = Opening(context)

    def handle(self, number: int) -> Handle:
        """The open file of a number; EBADF if there is none."""
        handle = self._context.handles.get(number)
        if handle is None:
            raise OSError(errno.EBADF, "no such handle")
        return handle

    # Opening

    @contextmanager
    def reserved(self, who: Who) -> Iterator[None]:
        """Count one more open file; it goes with the handle, or at once if none was made. Raises Refused: BUDGET."""
        self._context.open_files.take(who.uid)
        try:
            yield
        except BaseException:
            self._context.open_files.give(who.uid)
            raise

    async def open(self, node: Node, flags: int, who: Who, *, may_wait: bool = True) -> Handle:
        """Open a node, within `reserved`. The kernel has checked the mode bits; a create must not wait."""
        interrupt = watch_interrupt() if may_wait and isinstance(node, MailboxNode) else None
        handle = await self._open(node, flags, who, interrupt)
        handle.uid = who.uid
        self._context.handles.add(handle)
        return handle

    async def _open(self, node: Node, flags: int, who: Who, interrupt: Interrupt | None) -> Handle:
        number = self._context.handles.number()
        if isinstance(node, RescueNode) and flags & os.O_ACCMODE == os.O_RDONLY:
            return FileHandle(number, node, fd=self._namespace.rescue.open(node, who))
        if isinstance(node, ControlNode):
            if flags & os.O_ACCMODE != os.O_RDONLY:
                raise PermissionError(errno.EACCES, "control files are read")
            return TextHandle(number, node, text=self._context.control[node.path[0]]())
        lock = node.lock if isinstance(node, LockNode | ScratchNode) else None
        if lock is not None and lock.live:
            if flags & os.O_ACCMODE in WRITING and not self._holds(lock.mailbox, node, who):
                raise Refused(Cause.NAME_TAKEN, "somebody else's lock file")
            if flags & os.O_TRUNC:
                lock.truncate(0)
            return LockHandle(number, node, lock=lock)
        if isinstance(node, MailboxNode):
            return await self._open_mailbox(number, node, flags, who, interrupt)
        if isinstance(node, FileNode):
            fd = self._context.door.open(node.path, flags & _KEPT)
            if stat.S_ISDIR(os.fstat(fd).st_mode):
                os.close(fd)
                raise IsADirectoryError(errno.EISDIR, "a directory")
            return FileHandle(number, node, fd=fd)
        raise FileNotFoundError(errno.ENOENT, "the lock is gone")

    def _holds(self, mailbox: bytes, node: Node, who: Who) -> bool:
        lock = node.lock if isinstance(node, LockNode | ScratchNode) else None
        requester = who.requester(mailbox, may_write=True)
        return bool(lock and lock.claim and lock.claim.agent.covers(requester))

    async def _open_mailbox(
        self, number: int, node: MailboxNode, flags: int, who: Who, interrupt: Interrupt | None
    ) -> Handle:
        mailbox = node.mailbox
        if mailbox.closing and interrupt is not None:
            await self._wait_closed(node, interrupt)
        young = await self._opening.admit(number, mailbox, flags, who, interrupt)
        try:
            handle = self._mailbox_handle(number, node, flags, who)
        except BaseException:
            self._opening.failed(mailbox, young, who)
            raise
        handle.young = young
        return handle

    def _mailbox_handle(
        self, number: int, node: MailboxNode, flags: int, who: Who
    ) -> MailboxHandle:
        mailbox = node.mailbox
        writable = flags & os.O_ACCMODE in WRITING
        fd = self._context.door.open((mailbox.name,), os.O_RDONLY)
        process = who.process
        handle = MailboxHandle(number, node, mailbox=mailbox, fd=fd, opener=process)
        try:
            handle.cursor.told = mailbox.refresh()
            handle.opened = mailbox.now
            handle.began = mailbox.rewrites
            if flags & os.O_TRUNC and writable:
                session = mailbox.draft(handle, who.requester(mailbox.name, may_write=True))
                mailbox.check_stale(session)
                session.truncate(0)
        except BaseException:
            mailbox.discard(handle, "could not be opened")
            os.close(fd)
            raise
        if process is not None:
            self._context.openers.setdefault(mailbox.name, Counter())[process] += 1
        draft = mailbox.session_of(handle, process)
        self._context.passthrough.opened(handle, apart=writable or draft is not None)
        if handle.way is Way.PASSED:
            handle.window = mailbox.opened(process)
            mailbox.touch(Requester(process, who.uid, who.pid))
        return handle

    async def _wait_closed(self, node: MailboxNode, interrupt: Interrupt) -> None:
        """What a program wrote before it ended is there when the next one opens the mailbox.

        RELEASE is sent in the background, but before the parent hears of its child's end; whether the writer was
        killed takes a moment to find out.
        """
        with trio.move_on_after(self._context.limits.open_wait) as scope:
            interrupt.on_interrupt(scope.cancel)
            await node.mailbox.closing.wait()
        if interrupt.fired:
            raise Refused(Cause.INTERRUPTED, "open")

    # Reading and writing

    async def read(self, number: int, offset: int, size: int) -> bytes:
        """Bytes of an open file."""
        handle = self.handle(number)
        if isinstance(handle, FileHandle):
            return os.pread(handle.fd, size, offset)
        if isinstance(handle, MailboxHandle):
            return await self._read_mailbox(handle, offset, size)
        if isinstance(handle, LockHandle):
            return handle.lock.read(offset, size)
        if isinstance(handle, TextHandle):
            return handle.text[offset : offset + size]
        raise OSError(errno.EBADF, "not readable")

    async def _read_mailbox(self, handle: MailboxHandle, offset: int, size: int) -> bytes:
        mailbox = handle.mailbox
        if not mailbox.settled.is_set():
            await self._wait_settled(handle)
        if mailbox.stuck is not None:
            raise OSError(errno.EIO, "the mailbox is half written")
        if handle.opener is not None:
            mailbox.touch(Requester(handle.opener, handle.uid, handle.opener.pid))
        session = mailbox.session_of(handle, handle.opener)
        if session is not None and session.dirty:
            return session.read(mailbox.store, offset, size)
        if not mailbox.is_file(os.fstat(handle.fd).st_ino):
            handle.began = GONE
        elif offset == 0:
            handle.began = mailbox.rewrites
        text = os.pread(handle.fd, size, offset)
        if handle.opener is not None:
            self._note_read(handle, handle.opener, offset + len(text))
        return text

    @staticmethod
    def _note_read(handle: MailboxHandle, process: Process, end: int) -> None:
        """A process has read to ``end``: all there is, or all there was when it opened the mailbox."""
        mailbox = handle.mailbox
        if end >= mailbox.size:
            mailbox.saw(process, handle.began)
        elif end == handle.opened.size and handle.opened.rewrites == handle.began:
            mailbox.saw(process, handle.began, end)

    async def _wait_settled(self, handle: MailboxHandle) -> None:
        """Wait for the end of a commit that is being written, or for the client to give up."""
        interrupt = watch_interrupt()
        with trio.CancelScope() as scope:
            interrupt.on_interrupt(scope.cancel)
            await handle.mailbox.settled.wait()
        if scope.cancelled_caught:
            raise Refused(Cause.INTERRUPTED, "read")

    def write(self, number: int, offset: int, data: bytes, caller: Caller) -> int:
        """Write through a handle; a mailbox's bytes go to the draft of whoever opened it."""
        handle = self.handle(number)
        if isinstance(handle, FileHandle):
            return self._write_file(handle, offset, data, caller)
        if isinstance(handle, LockHandle):
            return handle.lock.write(offset, data)
        if not isinstance(handle, MailboxHandle):
            raise OSError(errno.EBADF, "not writable")
        mailbox = handle.mailbox
        if handle not in mailbox.sessions:
            handle.cursor.forget()
        requester = self._writer(handle, caller)
        mailbox.touch(requester)
        session = mailbox.draft(handle, requester)
        if caller.flags & os.O_APPEND:
            at = session.size
        else:
            at = session.place(handle.cursor, offset, mailbox.size)
            if at < session.base.size:
                mailbox.check_stale(session)
        mailbox.write(session, at, data)
        if handle.opener is not None and caller.pid != handle.opener.pid:
            handle.writer = self._context.processes.find(caller.pid)
        else:
            handle.writer = handle.opener
        mailbox.claim_for(session, handle)
        return len(data)

    def _writer(self, handle: MailboxHandle, caller: Caller) -> Requester:
        """A draft belongs to whoever opened the file: its children write to it on its behalf (shell redirection)."""
        opener = handle.opener
        pid = opener.pid if opener is not None else caller.pid
        return Requester(opener, caller.uid, pid)

    def _write_file(self, handle: FileHandle, offset: int, data: bytes, caller: Caller) -> int:
        if isinstance(handle.node, ScratchNode):
            grown = offset + len(data) - os.fstat(handle.fd).st_size
            if grown > 0:
                self._context.scratch_bytes.take(handle.node.uid, grown)
        if caller.flags & os.O_APPEND:
            offset = os.fstat(handle.fd).st_size
        view = memoryview(data)
        while view:
            written = os.pwrite(handle.fd, view, offset)
            offset += written
            view = view[written:]
        return len(data)

    # Closing

    async def flush(self, number: int, caller: Caller) -> None:
        """A descriptor was closed."""
        handle = self.handle(number)
        if isinstance(handle, MailboxHandle):
            await self._flush_mailbox(handle, caller)
        elif isinstance(handle.node, ScratchNode) and handle.node.replaces is not None:
            who = Who(self._context, caller)
            await self._replacing.finish(handle.node, who)

    async def _flush_mailbox(self, handle: MailboxHandle, caller: Caller) -> None:
        mailbox = handle.mailbox
        session = mailbox.sessions.get(handle)
        first, handle.duplicated = not handle.duplicated, True
        if session is None or not session.dirty:
            return
        closer = self._context.processes.find(caller.pid)
        if closer is None or closer is not handle.opener:
            return
        if closer.exiting and await closer.being_killed():
            # The last descriptor's release tells whether anybody else goes on with it. If those who wrote for it are
            # done (a shell's commands), nobody does unless he writes, and what there is may be half a message.
            if handle.writer is None or not handle.writer.alive:
                handle.writer = closer
            return
        if not first or closer.has_descriptor_named(mailbox.name):
            return
        await mailbox.commit(handle, patience=self._context.limits.flush_wait)

    async def fsync(self, number: int, *, data_only: bool, caller: Caller) -> None:
        """fsync(2): commit, or under an exclusive lock of the client's own only bring the draft to the disk."""
        handle = self.handle(number)
        if isinstance(handle, FileHandle):
            sync = os.fdatasync if data_only else os.fsync
            fd = os.dup(handle.fd)
            try:
                await self._context.surroundings.offload(lambda: sync(fd))
            finally:
                os.close(fd)
        elif isinstance(handle, MailboxHandle):
            mailbox = handle.mailbox
            session = mailbox.sessions.get(handle)
            if session is None:
                return
            session.synced = True
            if mailbox.locked_since(self._writer(handle, caller)) is None:
                await mailbox.commit(handle, patience=0)
            else:
                await mailbox.sync(handle)

    async def release(self, number: int) -> None:
        """The last descriptor is gone. Nobody hears of an error here, so it goes to the log."""
        handle = self._context.handles.remove(number)
        if handle is None:
            return
        self._context.open_files.give(handle.uid)
        try:
            if isinstance(handle, MailboxHandle):
                try:
                    await self._release_mailbox(handle)
                finally:
                    self._opening.closed(handle)
            elif isinstance(handle.node, ScratchNode) and handle.node.replaces is not None:
                log.info("%r: its new file was not closed by its maker", handle.node.replaces)
        finally:
            handle.close()

    async def _release_mailbox(self, handle: MailboxHandle) -> None:
        mailbox = handle.mailbox
        opener = handle.opener
        self._context.passthrough.closed(handle)
        if handle.window is not None:
            mailbox.closed(handle.window)
        if opener is not None:
            openers = self._context.openers.get(mailbox.name, Counter())
            openers[opener] -= 1
            if openers[opener] <= 0:
                del openers[opener]
            if not openers:
                self._context.openers.pop(mailbox.name, None)
        session = mailbox.sessions.get(handle)
        if session is None:
            return
        with mailbox.closing.in_progress():
            await self._end_session(handle, session.dirty)

    async def _end_session(self, handle: MailboxHandle, dirty: bool) -> None:
        mailbox, writer = handle.mailbox, handle.writer
        if dirty and writer is not None and await self._killed(writer):
            mailbox.discard(handle, "its writer was killed")
            return
        try:
            await mailbox.commit(handle, patience=0, reported=False)
        except (Refused, OSError) as error:
            log.warning("%r: commit at last close failed: %s", mailbox.name, error)

    async def _killed(self, writer: object) -> bool:
        if not isinstance(writer, HostProcess):
            return False
        if writer.alive:
            return writer.exiting and await writer.being_killed()
        return await writer.ended() is Ending.SIGNAL


def path_of(node: Node) -> Path:
    """Where the real file of a node is."""
    if isinstance(node, MailboxNode):
        return (node.mailbox.name,)
    if isinstance(node, FileNode):
        return node.path
    raise Refused(Cause.NOT_ALLOWED, "no real file")
