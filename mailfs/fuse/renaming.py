"""rename(2) in the spool's root and below: what it means depends on both names.

* a scratch file onto a lock name asks for the lock, a lock file renamed away gives it back;
* a scratch file onto a mailbox is a save (`Replacing.over`), a mailbox onto a scratch name the start of one
  (`Replacing.away`);
* a mailbox onto another mailbox's name is for its owner and trusted users, under the lock;
* below the root's directories everything is passed through.
"""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

from mailfs.errors import Cause, Refused
from mailfs.fuse.nodes import FileNode, LockNode, MailboxNode, Node, ScratchNode
from mailfs.policy.names import LOCK_SUFFIX, Kind
from mailfs.spool.door import RENAME_EXCHANGE, RENAME_NOREPLACE

if TYPE_CHECKING:
    from mailfs.fuse.context import Context, Who
    from mailfs.fuse.entries import Entries
    from mailfs.fuse.namespace import Namespace
    from mailfs.fuse.replace import Replacing


class Renaming:
    """rename(2)."""

    def __init__(
        self, context: Context, namespace: Namespace, replacing: Replacing, entries: Entries
    ) -> None:
        self._context = context
        self._namespace = namespace
        self._replacing = replacing
        self._entries = entries

    async def rename(
        self, old_parent: Node, old: bytes, new_parent: Node, new: bytes, flags: int, who: Who
    ) -> None:
        """renameat2(2). Exchanging is for what is passed through."""
        self._entries.refuse_control(old_parent, old)
        self._entries.refuse_control(new_parent, new)
        root = self._context.nodes.root
        if flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE):
            raise OSError(errno.EINVAL, "rename flags")
        if old_parent is not root and new_parent is not root:
            self._rename_below(old_parent, old, new_parent, new, flags)
            return
        if flags & RENAME_EXCHANGE:
            raise OSError(errno.EINVAL, "no exchange with a spool's root")
        node = await self._namespace.child(old_parent, old, who)
        if new_parent is not root:
            await self._rename_out(
                node, old, self._namespace.directory(new_parent), new, flags, who
            )
        elif isinstance(node, LockNode | ScratchNode):
            await self._rename_private(node, old, new, flags, who)
        elif isinstance(node, MailboxNode):
            await self._rename_mailbox(node, old, new, flags, who)
        elif isinstance(node, FileNode):
            await self._rename_in(node, new, flags, who)

    def _rename_below(
        self, old_parent: Node, old: bytes, new_parent: Node, new: bytes, flags: int
    ) -> None:
        source = self._namespace.directory(old_parent)
        target = self._namespace.directory(new_parent)
        nodes = self._context.nodes
        moved = self._namespace.passed_through(source, old)
        replaced: FileNode | None
        try:
            replaced = self._namespace.passed_through(target, new)
            found = self._context.door.stat((*target.path, new))
            last = stat.S_ISDIR(found.st_mode) or found.st_nlink <= 1
        except FileNotFoundError:
            replaced, last = None, False
        self._context.door.rename((*source.path, old), (*target.path, new), flags)
        if replaced is not None and replaced is not moved:
            replaced.gone_from(target, new)
            if flags & RENAME_EXCHANGE:
                replaced.seen_as(source, old)
            elif last:
                nodes.detach(replaced)
        if replaced is not moved:
            moved.gone_from(source, old)
        moved.seen_as(target, new)

    async def _rename_out(
        self, node: Node, old: bytes, target: FileNode, new: bytes, flags: int, who: Who
    ) -> None:
        """From the root into one of its directories."""
        door = self._context.door
        path = (*target.path, new)
        if isinstance(node, ScratchNode):
            door.rename(node.path, path, flags)
            self._context.give_scratch(node.uid)
        elif isinstance(node, MailboxNode):
            self._entries.check_owner(old, who)
            requester = who.requester(old, may_write=True)
            await node.mailbox.remove(requester, lambda: door.rename((old,), path, flags))
            self._context.refresh_backing(old)
        elif isinstance(node, FileNode):
            self._entries.check_owner(old, who)
            door.rename((old,), path, flags)
            node.seen_as(target, new, only=True)
            return
        else:
            raise Refused(Cause.NOT_ALLOWED, "a lock file stays in the spool's root")
        self._entries.forget(node)

    async def _rename_private(
        self, node: LockNode | ScratchNode, old: bytes, new: bytes, flags: int, who: Who
    ) -> None:
        """A lock file or scratch file to another name in the root."""
        if node.lock is not None and node.lock.live and old.endswith(LOCK_SUFFIX):
            await self._entries.release_lock(
                node.lock.mailbox, who
            )  # renamed away: the lock is given back
            return
        if not isinstance(node, ScratchNode):
            raise FileNotFoundError(errno.ENOENT, "the lock is gone", old)
        what = await self._namespace.classify(new)
        if what.kind is Kind.LOCK and what.mailbox is not None:
            await self._entries.link_lock(node, what.mailbox, who)
            self._entries.remove_scratch(node)
            return
        if self._namespace.is_mailbox(new):
            if flags & RENAME_NOREPLACE:
                raise FileExistsError(errno.EEXIST, "exists", new)
            away = self._context.replacements.get(new)
            if away is not None and away.by(who.process) and node.path == away.alias:
                self._replacing.restore(away)  # vim gives up and takes its backup back
                return
            await self._replacing.over(node, new, who)
            self._context.give_scratch(node.uid)
            return
        if await self._entries.becomes(new, who) is Kind.MAILBOX:
            self._context.door.rename(node.path, (new,), flags)
            self._context.give_scratch(node.uid)
            self._context.refresh_backing(new)
            self._entries.forget(node)
            return
        replaced = self._namespace.scratch(who.uid, new)
        path = (*self._context.private.scratch(who.uid), new)
        self._context.door.rename(node.path, path, flags)
        if replaced is not None and replaced is not node:
            self._context.give_scratch(who.uid)
            self._entries.forget(replaced)
        key = ("scratch", who.uid, new, self._context.door.stat(path).st_ino)
        node.move(self._namespace.scratch_parent(who.uid), new)
        self._context.nodes.rekey(node, key)

    async def _rename_mailbox(
        self, node: MailboxNode, old: bytes, new: bytes, flags: int, who: Who
    ) -> None:
        """A mailbox to another name in the root: away for its agent, or for good by trusted users."""
        self._entries.check_owner(old, who)
        what = await self._namespace.classify(new)
        if what.kind is Kind.LOCK:
            raise Refused(Cause.NOT_ALLOWED, "the name of a lock")
        if old == new:
            return
        exists = self._namespace.is_mailbox(new)
        if exists:
            if flags & RENAME_NOREPLACE:
                raise FileExistsError(errno.EEXIST, "exists", new)
            self._entries.check_owner(new, who)
        elif await self._entries.becomes(new, who) is not Kind.MAILBOX:
            if flags & RENAME_NOREPLACE and self._namespace.scratch(who.uid, new) is not None:
                raise FileExistsError(errno.EEXIST, "exists", new)
            await self._replacing.away(old, new, who)
            return
        requester = who.requester(old, may_write=True)
        door = self._context.door
        await node.mailbox.remove(requester, lambda: door.rename((old,), (new,), flags))
        self._context.refresh_backing(old)
        self._context.refresh_backing(new)
        self._context.mailbox(new).refresh()
        self._entries.forget(node)

    async def _rename_in(self, node: FileNode, new: bytes, flags: int, who: Who) -> None:
        """What is passed through, to a name in the root: directories, links; files become mailboxes."""
        if not who.trusted:
            raise Refused(Cause.NOT_ALLOWED, "names in a spool's root are mailboxes")
        what = await self._namespace.classify(new)
        if what.kind is Kind.LOCK or self._namespace.is_mailbox(new):
            raise Refused(Cause.NOT_ALLOWED, "the name of a mailbox or lock")
        self._context.door.rename(node.path, (new,), flags)
        if stat.S_ISREG(self._context.door.stat((new,)).st_mode):
            self._context.refresh_backing(new)
            self._entries.forget(node)
        else:
            node.seen_as(self._context.nodes.root, new, only=True)
