"""setattr, extended attributes, statfs. None of it may wait: the kernel holds the inode's lock."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from mailfs.errors import Cause, Refused
from mailfs.fuse.bridge import pyfuse3
from mailfs.fuse.files import path_of
from mailfs.fuse.handles import FileHandle, Handle, MailboxHandle
from mailfs.fuse.nodes import ControlNode, FileNode, LockNode, MailboxNode, Node, ScratchNode
from mailfs.sessions.storage import Times

if TYPE_CHECKING:
    from mailfs.fuse.context import Context, Who
    from mailfs.fuse.namespace import Namespace
    from mailfs.sessions.mailbox import Mailbox


class Attributes:
    """The operations on what a file is, rather than what it contains."""

    def __init__(self, context: Context, namespace: Namespace) -> None:
        self._context = context
        self._namespace = namespace

    async def setattr(
        self,
        node: Node,
        new: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        handle: Handle | None,
        who: Who,
    ) -> None:
        """chmod, chown, truncate, utimens. The kernel has checked who may (setattr_prepare in fs/attr.c)."""
        if isinstance(node, ControlNode):
            raise PermissionError(errno.EPERM, "the control tree is made by mailfs")
        if isinstance(node, LockNode | ScratchNode) and node.lock is not None and node.lock.live:
            self._set_lock(node, new, fields, who)
            return
        if isinstance(node, MailboxNode):
            await self._set_mailbox(node, new, fields, handle, who)
            return
        if isinstance(node, LockNode):
            raise FileNotFoundError(errno.ENOENT, "the lock is gone")
        assert isinstance(node, FileNode)
        self._set_file(node, new, fields, handle, who)

    def _set_lock(
        self,
        node: LockNode | ScratchNode,
        new: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        who: Who,
    ) -> None:
        """By the holder's agent it succeeds and changes nothing that matters."""
        lock = node.lock
        assert lock is not None
        requester = who.requester(lock.mailbox, may_write=True)
        if lock.claim is None or not lock.claim.agent.covers(requester):
            raise Refused(Cause.NOT_OWNER, "somebody else's lock file")
        self._context.locks.lock(lock.mailbox).touch(requester)
        if fields.update_size:
            lock.truncate(new.st_size)
        if fields.update_atime:
            lock.atime_ns = new.st_atime_ns
        if fields.update_mtime:
            lock.mtime_ns = new.st_mtime_ns

    async def _set_mailbox(
        self,
        node: MailboxNode,
        new: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        handle: Handle | None,
        who: Who,
    ) -> None:
        mailbox = node.mailbox
        path = (mailbox.name,)
        self._set_owner_and_mode(path, new, fields, who)
        opened = handle if isinstance(handle, MailboxHandle) else None
        if fields.update_size:
            await self._truncate(mailbox, new.st_size, opened, who)
        times = _times(new, fields)
        if times is None:
            return
        session = (
            mailbox.last_draft(who.process) if opened is None else mailbox.sessions.get(opened)
        )
        if session is not None and session.dirty:
            session.times = times  # applied when what was written before it is committed
        else:
            mailbox.set_times(times)

    async def _truncate(
        self, mailbox: Mailbox, size: int, opened: MailboxHandle | None, who: Who
    ) -> None:
        """ftruncate(2) is part of the handle's draft; truncate(2) a draft of its own, committed at once."""
        key = opened or object()
        draft = mailbox.draft(key, who.requester(mailbox.name, may_write=True))
        try:
            if size < draft.base.size:
                mailbox.check_stale(draft)
        except Refused:
            if opened is None:
                mailbox.discard(key, "stale")
            raise
        draft.truncate(size)
        if opened is not None:
            opened.cursor.told = size
            mailbox.claim_for(draft, key)
        else:
            await mailbox.commit(key, patience=0)

    def _set_file(
        self,
        node: FileNode,
        new: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        handle: Handle | None,
        who: Who,
    ) -> None:
        path = node.path
        if node is self._context.nodes.root and who.uid not in (0, self._context.owner):
            raise PermissionError(errno.EPERM, "the spool's root is its owner's")
        if isinstance(handle, FileHandle):
            self._set_by_handle(handle.fd, new, fields, who)
        else:
            self._set_owner_and_mode(path, new, fields, who)
            if fields.update_size:
                fd = self._context.door.open(path, os.O_WRONLY)
                try:
                    os.ftruncate(fd, new.st_size)
                finally:
                    os.close(fd)
            times = _times(new, fields)
            if times is not None:
                self._context.door.utime_ns(path, times.atime_ns, times.mtime_ns)
        if isinstance(node, ScratchNode):
            node.owner_set |= bool(fields.update_uid or fields.update_gid)
            node.mode_set |= bool(fields.update_mode)

    def _set_by_handle(
        self, fd: int, new: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields, who: Who
    ) -> None:
        """The name may be gone, the file is not."""
        if fields.update_uid or fields.update_gid:
            os.fchown(
                fd,
                new.st_uid if fields.update_uid else -1,
                new.st_gid if fields.update_gid else -1,
            )
        if fields.update_mode:
            os.fchmod(fd, _permissions(new.st_mode, who))
        if fields.update_size:
            writable = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.ftruncate(writable, new.st_size)
            finally:
                os.close(writable)
        times = _times(new, fields)
        if times is not None:
            found = os.fstat(fd)
            atime = found.st_atime_ns if times.atime_ns is None else times.atime_ns
            mtime = found.st_mtime_ns if times.mtime_ns is None else times.mtime_ns
            os.utime(fd, ns=(atime, mtime))

    def _set_owner_and_mode(
        self,
        path: tuple[bytes, ...],
        new: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        who: Who,
    ) -> None:
        door = self._context.door
        if fields.update_uid or fields.update_gid:
            uid = new.st_uid if fields.update_uid else -1
            gid = new.st_gid if fields.update_gid else -1
            if path:
                door.chown(path, uid, gid)
            else:
                os.fchown(door.fileno, uid, gid)
        if fields.update_mode:
            mode = _permissions(new.st_mode, who)
            if path:
                door.chmod(path, mode)
            else:
                os.fchmod(door.fileno, mode)

    def readlink(self, node: Node) -> bytes:
        """Where a symbolic link points."""
        return self._context.door.readlink(path_of(node))

    # Extended attributes

    def getxattr(self, node: Node, name: bytes) -> bytes:
        """An attribute of the real file; ENODATA where there is none."""
        if _virtual(node):
            raise OSError(errno.ENODATA, "no attributes here")
        path = path_of(node)
        return (
            self._context.door.getxattr(path, name)
            if path
            else os.getxattr(self._context.door.fileno, name)
        )

    def setxattr(self, node: Node, name: bytes, value: bytes, who: Who) -> None:
        """Set an attribute of the real file."""
        self._check_xattr(node, name, who)
        self._context.door.setxattr(path_of(node), name, value)

    def removexattr(self, node: Node, name: bytes, who: Who) -> None:
        """Remove one."""
        self._check_xattr(node, name, who)
        self._context.door.removexattr(path_of(node), name)

    def listxattr(self, node: Node, who: Who) -> list[bytes]:
        """The names; those of the trusted namespace for root only, as in xattr(7)."""
        if _virtual(node):
            return []
        path = path_of(node)
        if path:
            names = self._context.door.listxattr(path)
        else:
            names = [os.fsencode(name) for name in os.listxattr(self._context.door.fileno)]
        return [name for name in names if who.uid == 0 or not name.startswith(b"trusted.")]

    def _check_xattr(self, node: Node, name: bytes, who: Who) -> None:
        """The kernel has checked user.* (xattr_permission); the rest is root's."""
        if _virtual(node) or node is self._context.nodes.root:
            raise OSError(errno.EOPNOTSUPP, "no attributes here")
        if name.startswith(b"system.posix_acl_"):
            found = self._context.door.stat(path_of(node))
            if who.uid not in (0, found.st_uid):
                raise OSError(errno.EPERM, "the file belongs to somebody else")
        elif not name.startswith(b"user.") and who.uid != 0:
            raise OSError(errno.EPERM, "only user attributes")

    def statfs(self) -> pyfuse3.StatvfsData:
        """Of the backing filesystem."""
        found = self._context.door.statvfs()
        data = pyfuse3.StatvfsData()
        data.f_bsize, data.f_frsize = found.f_bsize, found.f_frsize
        data.f_blocks, data.f_bfree, data.f_bavail = found.f_blocks, found.f_bfree, found.f_bavail
        data.f_files, data.f_ffree, data.f_favail = found.f_files, found.f_ffree, found.f_favail
        data.f_namemax = found.f_namemax
        return data


def _virtual(node: Node) -> bool:
    """Whether there is no real file behind a node: control files, and lock files however they were made."""
    if isinstance(node, ScratchNode):
        return node.lock is not None and node.lock.live
    return isinstance(node, LockNode | ControlNode)


def _permissions(mode: int, who: Who) -> int:
    """No set-id bits, except by root."""
    return stat.S_IMODE(mode) if who.uid == 0 else stat.S_IMODE(mode) & 0o1777


def _times(new: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> Times | None:
    if not (fields.update_atime or fields.update_mtime):
        return None
    return Times(
        new.st_atime_ns if fields.update_atime else None,
        new.st_mtime_ns if fields.update_mtime else None,
    )
