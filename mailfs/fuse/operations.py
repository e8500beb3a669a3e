"""The face to pyfuse3: each method says who asks, calls the family it belongs to, and turns refusals into errnos.

An exception that leaves a handler would end the daemon, so ``_answer`` lets none through: a refusal or an OSError
becomes its errno, anything else is a bug of ours, logged with its traceback and answered EIO.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar, cast

from mailfs.errors import Refused
from mailfs.fuse.attributes import Attributes
from mailfs.fuse.bridge import Caller, caller, pass_through, pyfuse3
from mailfs.fuse.context import Context, Who
from mailfs.fuse.directories import Directories
from mailfs.fuse.entries import Entries
from mailfs.fuse.errnos import Asked, errno_of
from mailfs.fuse.files import Files
from mailfs.fuse.handles import Handle, MailboxHandle
from mailfs.fuse.locks import Locks
from mailfs.fuse.namespace import Namespace
from mailfs.fuse.renaming import Renaming
from mailfs.fuse.replace import Replacing
from mailfs.policy.names import LOCK_SUFFIX

if TYPE_CHECKING:
    from mailfs.fuse.nodes import Node

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[Concatenate["Operations", P], Coroutine[Any, Any, T]]


def _answer(handler: Handler[P, T]) -> Handler[P, T]:
    """Turn whatever a handler raises into an errno."""

    @functools.wraps(handler)
    async def guarded(self: Operations, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except Refused as refusal:
            log.debug("%s%r: %s", handler.__name__, args, refusal)
            named = any(isinstance(arg, bytes) and arg.endswith(LOCK_SUFFIX) for arg in args[:4])
            asked = Asked.DOTLOCK if named else Asked.FILE
            raise pyfuse3.FUSEError(errno_of(refusal, asked)) from None
        except OSError as error:
            code = error.errno or errno.EIO
            if code in (errno.EIO, errno.EMFILE, errno.ENFILE):
                log.warning("%s: %s", handler.__name__, error)
            raise pyfuse3.FUSEError(code) from None
        except Exception:
            log.exception("%s%r failed", handler.__name__, args)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return cast("Handler[P, T]", guarded)


class Operations(pyfuse3.Operations):
    """The filesystem, request by request."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True  # otherwise an ACL's mask would be read as the group's rights

    def __init__(self, context: Context) -> None:
        super().__init__()
        self._context = context
        self._namespace = Namespace(context)
        self._replacing = Replacing(context, self._namespace)
        self._entries = Entries(context, self._namespace, self._replacing)
        self._renaming = Renaming(context, self._namespace, self._replacing, self._entries)
        self._files = Files(context, self._namespace, self._replacing)
        self._directories = Directories(context, self._namespace)
        self._attributes = Attributes(context, self._namespace)
        self.locks = Locks(context)

    # Who and what

    def _who(self) -> tuple[Caller, Who]:
        asking = caller()
        return asking, Who(self._context, asking)

    def _node(self, number: int) -> Node:
        node = self._context.nodes.get(number)
        if node is None:
            raise OSError(errno.ESTALE, "no such node")
        return node

    def _entry(self, node: Node, who: Who, handle: Handle | None = None) -> pyfuse3.EntryAttributes:
        """Attributes for a reply that makes the kernel hold a reference."""
        entry = self._namespace.attributes(node, who, handle)
        self._context.nodes.refer(node)
        return entry

    # Names

    @_answer
    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _, who = self._who()
        node = await self._namespace.child(self._node(parent_inode), name, who)
        try:
            return self._entry(node, who)
        except OSError:
            self._context.nodes.drop_unreferenced(node)
            raise

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for number, lookups in inode_list:
            self._context.nodes.forget(number, lookups)

    @_answer
    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        _, who = self._who()
        parent = self._node(parent_inode)
        mode &= ~ctx.umask
        with self._files.reserved(who):
            node, new = await self._entries.create(parent, name, mode, who)
            if not new and flags & os.O_EXCL:
                raise OSError(errno.EEXIST, "exists")
            handle = await self._files.open(node, flags, who, may_wait=False)
        return self._file_info(handle), self._entry(node, who, handle)

    @_answer
    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _, who = self._who()
        parent = self._node(parent_inode)
        node = await self._entries.mknod(parent, name, mode & ~ctx.umask, rdev, who)
        return self._entry(node, who)

    @_answer
    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _, who = self._who()
        parent = self._node(parent_inode)
        node = await self._entries.mkdir(parent, name, mode & ~ctx.umask, who)
        return self._entry(node, who)

    @_answer
    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _, who = self._who()
        node = await self._entries.symlink(self._node(parent_inode), name, target, who)
        return self._entry(node, who)

    @_answer
    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        _, who = self._who()
        node, parent = self._node(inode), self._node(new_parent_inode)
        linked = await self._entries.link(node, parent, new_name, who)
        return self._entry(linked, who)

    @_answer
    async def unlink(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        _, who = self._who()
        await self._entries.unlink(self._node(parent_inode), name, who)

    @_answer
    async def rmdir(self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        _, who = self._who()
        await self._entries.rmdir(self._node(parent_inode), name, who)

    @_answer
    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        _, who = self._who()
        old, new = self._node(parent_inode_old), self._node(parent_inode_new)
        await self._renaming.rename(old, name_old, new, name_new, flags, who)

    @_answer
    async def readlink(self, inode: int, ctx: pyfuse3.RequestContext) -> bytes:
        return self._attributes.readlink(self._node(inode))

    # Attributes

    @_answer
    async def getattr(self, inode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        asking, who = self._who()
        handle = self._context.handles.get(asking.fh) if asking.fh is not None else None
        return self._namespace.attributes(self._node(inode), who, handle)

    @_answer
    async def setattr(
        self,
        inode: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        _, who = self._who()
        node = self._node(inode)
        handle = self._context.handles.get(fh) if fh is not None else None
        await self._attributes.setattr(node, attr, fields, handle, who)
        return self._namespace.attributes(node, who, handle)

    @_answer
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        return self._attributes.getxattr(self._node(inode), name)

    @_answer
    async def setxattr(
        self, inode: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext
    ) -> None:
        _, who = self._who()
        self._attributes.setxattr(self._node(inode), name, value, who)

    @_answer
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> list[bytes]:
        _, who = self._who()
        return self._attributes.listxattr(self._node(inode), who)

    @_answer
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        _, who = self._who()
        self._attributes.removexattr(self._node(inode), name, who)

    @_answer
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return self._attributes.statfs()

    # Directories

    @_answer
    async def opendir(self, inode: int, ctx: pyfuse3.RequestContext) -> int:
        _, who = self._who()
        return await self._directories.opendir(self._node(inode), who)

    @_answer
    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        await self._directories.readdir(fh, start_id, token)

    @_answer
    async def releasedir(self, fh: int) -> None:
        self._directories.releasedir(fh)

    @_answer
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        return

    # Files

    @_answer
    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        _, who = self._who()
        with self._files.reserved(who):
            return self._file_info(await self._files.open(self._node(inode), flags, who))

    @_answer
    async def read(self, fh: int, off: int, size: int) -> bytes:
        return await self._files.read(fh, off, size)

    @_answer
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return self._files.write(fh, off, buf, caller())

    @_answer
    async def flush(self, fh: int) -> None:
        asking = caller()
        node = self._files.handle(fh).node
        try:
            await self._files.flush(fh, asking)
        finally:
            self.locks.closed(node, asking.lock_owner)

    @_answer
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._files.fsync(fh, data_only=datasync, caller=caller())

    @_answer
    async def release(self, fh: int) -> None:
        handle = self._files.handle(fh)
        try:
            await self._files.release(fh)
        finally:
            self.locks.released(handle)

    def _file_info(self, handle: Handle) -> pyfuse3.FileInfo:
        """Mailboxes, locks and control files are read and written past the page cache: what they say differs by caller.

        Mailboxes may have a backing file that the kernel reads or maps by itself.
        """
        if isinstance(handle, MailboxHandle) and handle.backing is not None:
            pass_through(handle.number, handle.backing)
        info = pyfuse3.FileInfo(fh=handle.number)
        info.direct_io = not handle.cached
        info.keep_cache = False
        return info
