"""Making, linking, renaming and removing names. None of it may wait: the kernel holds the directory's lock.

What a request means depends on what its names are (`Namespace.classify`):

* a lock name asks for the mailbox's lock, or gives it back;
* a mailbox's name is its account's: creating, removing, and replacing are for its owner and trusted users;
* any other name in the root is scratch, in the user's own directory beside the journal;
* names below the root's directories are passed through.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from mailfs.errors import Cause, Refused
from mailfs.fuse.lockfile import LockFile
from mailfs.fuse.nodes import ControlNode, FileNode, LockNode, MailboxNode, Node, Path, ScratchNode
from mailfs.policy.names import LOCK_SUFFIX, Kind, may_create
from mailfs.policy.rights import Credentials
from mailfs.spool.door import RENAME_EXCHANGE, RENAME_NOREPLACE
from mailfs.spool.private import SCRATCH

if TYPE_CHECKING:
    from mailfs.fuse.context import Context, Who
    from mailfs.fuse.namespace import Namespace
    from mailfs.fuse.replace import Replacing

PERMISSIONS = 0o7777


class Entries:
    """The operations on names."""

    def __init__(self, context: Context, namespace: Namespace, replacing: Replacing) -> None:
        self._context = context
        self._namespace = namespace
        self._replacing = replacing

    # Creating

    async def create(self, parent: Node, name: bytes, mode: int, who: Who) -> tuple[Node, bool]:
        """Make a regular file, or take a lock. Returns the node, and whether it is new.

        A file that is there already is returned as it is: O_EXCL is the caller's to judge.
        """
        self._refuse_control(parent, name)
        if parent is not self._context.nodes.root:
            return self._create_below(self._namespace.directory(parent), name, mode, who)
        away = self._context.replacements.get(name)
        if away is not None and away.by(who.process):
            return self._replacing.begin(away, mode, who), True
        what = await self._namespace.classify(name)
        if what.kind is Kind.LOCK and what.mailbox is not None:
            return await self.take_lock(what.mailbox, who), True
        if self._namespace.is_mailbox(name):
            return self._namespace.backing(name, who), False
        scratch = self._namespace.scratch(who.uid, name)
        if scratch is not None:
            return scratch, False
        if await self._becomes(name, who) is Kind.MAILBOX:
            self._make((name,), mode, who)
            self._context.refresh_backing(name)
            return self._namespace.mailbox_node(name, self._context.door.stat((name,))), True
        self._context.scratch_files.take(who.uid)
        path = (*self._context.private.scratch(who.uid), name)
        try:
            self._make(path, mode, who)
        except OSError:
            self._context.give_scratch(who.uid)
            raise
        node = self._namespace.scratch(who.uid, name)
        if node is None:
            raise FileNotFoundError(errno.ENOENT, "swept at once", name)
        return node, True

    def _create_below(
        self, parent: FileNode, name: bytes, mode: int, who: Who
    ) -> tuple[Node, bool]:
        try:
            self._make((*parent.path, name), mode, who)
        except FileExistsError:
            return self._namespace.passed_through(parent, name), False
        return self._namespace.passed_through(parent, name), True

    async def _becomes(self, name: bytes, who: Who) -> Kind:
        """Mailbox or scratch: what a new file of this name is, if this client may make it."""
        what = await self._namespace.classify(name)
        account = await self._context.accounts.lookup(name)
        trusted = self._context.trusted_uids
        groups = who.groups if what.kind is Kind.MAILBOX else frozenset()
        return may_create(
            what,
            Credentials(who.uid, who.gid, groups),
            account_uid=account.uid if account else None,
            trusted=trusted,
            host=self._context.host,
        )

    def _make(self, path: Path, mode: int, who: Who) -> None:
        """A new, empty regular file that belongs to the client."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        fd = self._context.door.open(path, flags, 0o600)
        try:
            self._own(fd, path, mode, who)
        finally:
            os.close(fd)

    def _own(self, fd: int, path: Path, mode: int, who: Who) -> None:
        """Owner and mode of a new file: the client's, the group by the directory's set-gid bit."""
        if os.geteuid() == 0:
            os.fchown(fd, who.uid, self.group_for(path, who))
        os.fchmod(fd, stat.S_IMODE(mode) & self.allowed_mode(who))

    def group_for(self, path: Path, who: Who) -> int:
        """inode_init_owner() in fs/inode.c: a set-gid directory gives its group to what is made in it."""
        directory = self._directory(path[:-1])
        return directory.st_gid if directory.st_mode & stat.S_ISGID else who.gid

    def _directory(self, path: Path) -> os.stat_result:
        """What a directory is; the root has no name to ask by. Scratch directories stand for the root."""
        door = self._context.door
        if not path or path[: len(SCRATCH)] == SCRATCH:
            return os.fstat(door.fileno)
        return door.stat(path)

    @staticmethod
    def allowed_mode(who: Who) -> int:
        """No set-id bits on a nosuid mount, except by root."""
        return PERMISSIONS if who.uid == 0 else 0o777

    async def take_lock(
        self, mailbox: bytes, who: Who, source: ScratchNode | None = None, content: bytes = b""
    ) -> Node:
        """Take the dotlock of a mailbox; with ``source`` that scratch file becomes the lock file.

        Raises:
            Refused: LOCK_HELD; NOT_ALLOWED for those who may not write the mailbox.

        """
        if not await who.may_write_mailbox(mailbox):
            raise Refused(Cause.NOT_ALLOWED, f"uid {who.uid} may not lock {mailbox!r}")
        lock = LockFile(mailbox, who.uid, who.gid, content)
        nodes = self._context.nodes
        node: LockNode | ScratchNode
        if source is None:
            number = nodes.virtual()
            node = LockNode(number, ("dotlock", number), lock)
        else:
            node = source
        requester = who.requester(mailbox, may_write=True)
        lock.claim = self._context.locks.lock(mailbox).dotlock(requester, node)
        self._context.mailbox(mailbox).refresh()
        node.lock = lock
        nodes.add(node)
        return node

    async def mknod(self, parent: Node, name: bytes, mode: int, rdev: int, who: Who) -> Node:
        """mknod(2): regular files as create with O_EXCL; anything else below the root's directories, by root."""
        if stat.S_IFMT(mode) in (0, stat.S_IFREG):
            node, new = await self.create(parent, name, mode, who)
            if not new:
                raise FileExistsError(errno.EEXIST, "exists", name)
            return node
        self._refuse_control(parent, name)
        device = stat.S_ISBLK(mode) or stat.S_ISCHR(mode)
        if parent is self._context.nodes.root or (device and who.uid != 0):
            raise Refused(Cause.NOT_ALLOWED, "no such nodes in a spool")
        directory = self._namespace.directory(parent)
        path = (*directory.path, name)
        self._context.door.mknod(path, mode, rdev)
        self._chown_new(path, who)
        return self._namespace.passed_through(directory, name)

    async def mkdir(self, parent: Node, name: bytes, mode: int, who: Who) -> Node:
        """mkdir(2); in the root only for those who may make any mailbox."""
        self._refuse_control(parent, name)
        directory = self._namespace.directory(parent)
        if parent is self._context.nodes.root:
            await self._check_directory_name(name, who)
        path = (*directory.path, name)
        group = self._directory(directory.path)
        self._context.door.mkdir(path, stat.S_IMODE(mode) & (0o7777 if who.uid == 0 else 0o1777))
        self._chown_new(path, who)
        if group.st_mode & stat.S_ISGID:
            made = self._context.door.stat(path)
            self._context.door.chmod(path, stat.S_IMODE(made.st_mode) | stat.S_ISGID)
        return self._namespace.passed_through(directory, name)

    async def symlink(self, parent: Node, name: bytes, target: bytes, who: Who) -> Node:
        """symlink(2); in the root only by trusted users, as its names are mailboxes."""
        self._refuse_control(parent, name)
        directory = self._namespace.directory(parent)
        if parent is self._context.nodes.root:
            await self._check_directory_name(name, who)
        path = (*directory.path, name)
        self._context.door.symlink(target, path)
        self._chown_new(path, who)
        return self._namespace.passed_through(directory, name)

    async def _check_directory_name(self, name: bytes, who: Who) -> None:
        if not who.trusted:
            raise Refused(Cause.NOT_ALLOWED, "only mailboxes and temporary files in a spool's root")
        what = await self._namespace.classify(name)
        if what.kind is Kind.LOCK:
            raise Refused(Cause.NOT_ALLOWED, "the name of a lock")

    def _chown_new(self, path: Path, who: Who) -> None:
        if os.geteuid() == 0:
            self._context.door.chown(path, who.uid, self.group_for(path, who))

    # Linking

    async def link(self, node: Node, parent: Node, name: bytes, who: Who) -> Node:
        """link(2): how most programs take a dotlock, and how procmail makes a mailbox."""
        self._refuse_control(parent, name)
        if parent is not self._context.nodes.root:
            return self._link_below(node, self._namespace.directory(parent), name, who)
        what = await self._namespace.classify(name)
        if what.kind is Kind.LOCK and what.mailbox is not None:
            return await self._link_lock(node, what.mailbox, who)
        if not isinstance(node, ScratchNode):
            if isinstance(node, MailboxNode) and who.uid == 0:
                self._context.door.link((node.mailbox.name,), (name,))
                return self._namespace.backing(name, who)
            raise Refused(Cause.NOT_ALLOWED, "no hard links to mailboxes")
        if self._namespace.scratch(who.uid, name) is not None:
            raise FileExistsError(errno.EEXIST, "exists", name)
        if self._namespace.is_mailbox(name):
            raise FileExistsError(errno.EEXIST, "exists", name)
        if await self._becomes(name, who) is Kind.MAILBOX:
            self._context.door.link(node.path, (name,))
            self._context.refresh_backing(name)
            return self._namespace.mailbox_node(name, self._context.door.stat((name,)))
        self._context.scratch_files.take(who.uid)
        path = (*self._context.private.scratch(who.uid), name)
        self._context.door.link(node.path, path)
        return self._namespace.scratch_node(who.uid, name, self._context.door.stat(path))

    async def _link_lock(self, node: Node, mailbox: bytes, who: Who) -> Node:
        if not isinstance(node, ScratchNode) or node.uid != who.uid:
            raise Refused(Cause.NOT_ALLOWED, "a lock file is made from one's own temporary file")
        if node.lock is not None and node.lock.live:
            raise Refused(Cause.LOCK_HELD, "this file is a lock already")
        fd = self._context.door.open(node.path, os.O_RDONLY)
        try:
            content = os.pread(fd, 4096, 0)
        finally:
            os.close(fd)
        lock = await self.take_lock(mailbox, who, node, content)
        if node.lock is not None:
            node.lock.links = 2
        return lock

    def _link_below(self, node: Node, parent: FileNode, name: bytes, who: Who) -> Node:
        if isinstance(node, MailboxNode) and who.uid != 0:
            raise Refused(Cause.NOT_ALLOWED, "no hard links to mailboxes")
        if isinstance(node, MailboxNode):
            source: Path = (node.mailbox.name,)
        elif isinstance(node, FileNode):
            source = node.path
        else:
            raise Refused(Cause.NOT_ALLOWED, "not a file to link")
        self._context.door.link(source, (*parent.path, name))
        return self._namespace.passed_through(parent, name)

    # Removing

    async def unlink(self, parent: Node, name: bytes, who: Who) -> None:
        """unlink(2): gives back a lock, removes a scratch file, a mailbox by its owner, or what is passed through."""
        self._refuse_control(parent, name)
        if parent is not self._context.nodes.root:
            directory = self._namespace.directory(parent)
            path = (*directory.path, name)
            below = self._namespace.passed_through(directory, name)
            last = self._context.door.stat(path).st_nlink <= 1
            self._context.door.unlink(path)
            below.gone_from(directory, name)
            if last:  # otherwise the same node goes on under its other names
                self._forget(below)
            return
        if name.endswith(LOCK_SUFFIX):
            what = await self._namespace.classify(name)
            if what.kind is Kind.LOCK and what.mailbox is not None:
                await self.release_lock(what.mailbox, who)
                return
        scratch = self._namespace.scratch(who.uid, name)
        if scratch is not None:
            self.remove_scratch(scratch)
            return
        node = self._namespace.backing(name, who)
        if isinstance(node, ScratchNode):  # the new file of a mailbox renamed away
            self.remove_scratch(node)
            return
        found = self._context.door.stat((name,))
        if not who.trusted and who.uid != found.st_uid:
            raise Refused(Cause.NOT_ALLOWED, f"{name!r} belongs to uid {found.st_uid}")
        if isinstance(node, MailboxNode):
            requester = who.requester(name, may_write=True)
            await node.mailbox.remove(requester, lambda: self._context.door.unlink((name,)))
            self._context.refresh_backing(name)
        else:
            self._context.door.unlink((name,))
        self._forget(node)

    def remove_scratch(self, scratch: ScratchNode) -> None:
        """Remove a scratch name; a lock file that was linked from it lives on."""
        size = self._context.door.stat(scratch.path).st_size
        self._context.door.unlink(scratch.path)
        self._context.give_scratch(scratch.uid, size)
        if scratch.lock is not None:
            scratch.lock.links = 1
        self._forget(scratch)

    async def release_lock(self, mailbox: bytes, who: Who) -> None:
        """Remove the lock file, after what was written under the lock is committed.

        Raises:
            Refused: NO_SUCH_LOCK if this agent has lost it, NOT_OWNER if it is another's.

        """
        may_write = await who.may_write_mailbox(mailbox)
        requester = who.requester(mailbox, may_write=may_write)
        lock = self._context.locks.lock(mailbox)
        try:
            if self._context.mailbox(mailbox).sessions:
                await self._context.mailbox(mailbox).commit_own(
                    requester, lock.releasable(requester)
                )
        except Refused as refusal:
            if refusal.cause is not Cause.FENCED:
                raise
        finally:  # whatever became of the draft, the lock goes; if it was lost before, that is the answer
            lock.release_dotlock(requester)

    async def rmdir(self, parent: Node, name: bytes, who: Who) -> None:
        """rmdir(2); in the root by the directory's owner."""
        self._refuse_control(parent, name)
        directory = self._namespace.directory(parent)
        if parent is self._context.nodes.root and not who.trusted:
            found = self._context.door.stat((name,))
            if found.st_uid != who.uid:
                raise Refused(Cause.NOT_ALLOWED, f"{name!r} belongs to uid {found.st_uid}")
        path = (*directory.path, name)
        node = self._namespace.passed_through(directory, name)
        self._context.door.rmdir(path)
        self._forget(node)

    # Renaming

    async def rename(
        self, old_parent: Node, old: bytes, new_parent: Node, new: bytes, flags: int, who: Who
    ) -> None:
        """renameat2(2). Exchanging is for what is passed through."""
        self._refuse_control(old_parent, old)
        self._refuse_control(new_parent, new)
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
            self._check_owner(old, who)
            requester = who.requester(old, may_write=True)
            await node.mailbox.remove(requester, lambda: door.rename((old,), path, flags))
            self._context.refresh_backing(old)
        elif isinstance(node, FileNode):
            self._check_owner(old, who)
            door.rename((old,), path, flags)
            node.seen_as(target, new, only=True)
            return
        else:
            raise Refused(Cause.NOT_ALLOWED, "a lock file stays in the spool's root")
        self._forget(node)

    async def _rename_private(
        self, node: LockNode | ScratchNode, old: bytes, new: bytes, flags: int, who: Who
    ) -> None:
        """A lock file or scratch file to another name in the root."""
        if node.lock is not None and node.lock.live and old.endswith(LOCK_SUFFIX):
            await self.release_lock(node.lock.mailbox, who)  # renamed away: the lock is given back
            return
        if not isinstance(node, ScratchNode):
            raise FileNotFoundError(errno.ENOENT, "the lock is gone", old)
        what = await self._namespace.classify(new)
        if what.kind is Kind.LOCK and what.mailbox is not None:
            await self._link_lock(node, what.mailbox, who)
            self.remove_scratch(node)
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
        if await self._becomes(new, who) is Kind.MAILBOX:
            self._context.door.rename(node.path, (new,), flags)
            self._context.give_scratch(node.uid)
            self._context.refresh_backing(new)
            self._forget(node)
            return
        replaced = self._namespace.scratch(who.uid, new)
        path = (*self._context.private.scratch(who.uid), new)
        self._context.door.rename(node.path, path, flags)
        if replaced is not None and replaced is not node:
            self._context.give_scratch(who.uid)
            self._forget(replaced)
        key = ("scratch", who.uid, new, self._context.door.stat(path).st_ino)
        node.move(self._namespace.scratch_parent(who.uid), new)
        self._context.nodes.rekey(node, key)

    async def _rename_mailbox(
        self, node: MailboxNode, old: bytes, new: bytes, flags: int, who: Who
    ) -> None:
        """A mailbox to another name in the root: away for its agent, or for good by trusted users."""
        self._check_owner(old, who)
        what = await self._namespace.classify(new)
        if what.kind is Kind.LOCK:
            raise Refused(Cause.NOT_ALLOWED, "the name of a lock")
        if old == new:
            return
        exists = self._namespace.is_mailbox(new)
        if exists:
            if flags & RENAME_NOREPLACE:
                raise FileExistsError(errno.EEXIST, "exists", new)
            self._check_owner(new, who)
        elif await self._becomes(new, who) is not Kind.MAILBOX:
            if flags & RENAME_NOREPLACE and self._namespace.scratch(who.uid, new) is not None:
                raise FileExistsError(errno.EEXIST, "exists", new)
            self._replacing.away(old, new, who)
            return
        requester = who.requester(old, may_write=True)
        door = self._context.door
        await node.mailbox.remove(requester, lambda: door.rename((old,), (new,), flags))
        self._context.refresh_backing(old)
        self._context.refresh_backing(new)
        self._context.mailbox(new).refresh()
        self._forget(node)

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
            self._forget(node)
        else:
            node.seen_as(self._context.nodes.root, new, only=True)

    # What they share

    def _check_owner(self, name: bytes, who: Who) -> None:
        """The sticky rule, which the kernel does not apply, as the root shows no sticky bit."""
        found = self._context.door.stat((name,))
        if not who.trusted and who.uid != found.st_uid:
            raise Refused(Cause.NOT_ALLOWED, f"{name!r} belongs to uid {found.st_uid}")

    def _forget(self, node: Node) -> None:
        """A name is gone; nodes of several names, and of open files, live on."""
        self._context.nodes.detach(node)

    def _refuse_control(self, parent: Node, name: bytes) -> None:
        if isinstance(parent, ControlNode):
            raise PermissionError(errno.EPERM, "the control tree is made by mailfs", name)
        if parent is self._context.nodes.root and name == b".mailfs":
            raise PermissionError(errno.EPERM, "the control tree is made by mailfs", name)
