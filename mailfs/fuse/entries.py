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
from mailfs.fuse.nodes import (
    ControlNode,
    FileNode,
    LockNode,
    MailboxNode,
    Node,
    Path,
    RescueNode,
    ScratchNode,
)
from mailfs.policy.names import LOCK_SUFFIX, Kind, may_create
from mailfs.policy.rights import Credentials
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
        self.refuse_control(parent, name)
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
        if await self.becomes(name, who) is Kind.MAILBOX:
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

    async def becomes(self, name: bytes, who: Who) -> Kind:
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
        self.refuse_control(parent, name)
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
        self.refuse_control(parent, name)
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
        self.refuse_control(parent, name)
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
        self.refuse_control(parent, name)
        if parent is not self._context.nodes.root:
            return self._link_below(node, self._namespace.directory(parent), name, who)
        what = await self._namespace.classify(name)
        if what.kind is Kind.LOCK and what.mailbox is not None:
            return await self.link_lock(node, what.mailbox, who)
        if not isinstance(node, ScratchNode):
            if isinstance(node, MailboxNode) and who.uid == 0:
                self._context.door.link((node.mailbox.name,), (name,))
                return self._namespace.backing(name, who)
            raise Refused(Cause.NOT_ALLOWED, "no hard links to mailboxes")
        if self._namespace.scratch(who.uid, name) is not None:
            raise FileExistsError(errno.EEXIST, "exists", name)
        if self._namespace.is_mailbox(name):
            raise FileExistsError(errno.EEXIST, "exists", name)
        if await self.becomes(name, who) is Kind.MAILBOX:
            self._context.door.link(node.path, (name,))
            self._context.refresh_backing(name)
            return self._namespace.mailbox_node(name, self._context.door.stat((name,)))
        self._context.scratch_files.take(who.uid)
        path = (*self._context.private.scratch(who.uid), name)
        self._context.door.link(node.path, path)
        return self._namespace.scratch_node(who.uid, name, self._context.door.stat(path))

    async def link_lock(self, node: Node, mailbox: bytes, who: Who) -> Node:
        """Take the dotlock with a scratch file of the client's as lock file. Raises Refused."""
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
        if isinstance(parent, RescueNode):
            self._namespace.rescue.remove(name, who)
            return
        self.refuse_control(parent, name)
        if parent is not self._context.nodes.root:
            directory = self._namespace.directory(parent)
            path = (*directory.path, name)
            below = self._namespace.passed_through(directory, name)
            last = self._context.door.stat(path).st_nlink <= 1
            self._context.door.unlink(path)
            below.gone_from(directory, name)
            if last:  # otherwise the same node goes on under its other names
                self.forget(below)
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
        self.check_owner(name, who)
        if isinstance(node, MailboxNode):
            requester = who.requester(name, may_write=True)
            await node.mailbox.remove(requester, lambda: self._context.door.unlink((name,)))
            self._context.refresh_backing(name)
        else:
            self._context.door.unlink((name,))
        self.forget(node)

    def remove_scratch(self, scratch: ScratchNode) -> None:
        """Remove a scratch name; a lock file that was linked from it lives on."""
        size = self._context.door.stat(scratch.path).st_size
        self._context.door.unlink(scratch.path)
        self._context.give_scratch(scratch.uid, size)
        if scratch.lock is not None:
            scratch.lock.links = 1
        self.forget(scratch)

    async def release_lock(self, mailbox: bytes, who: Who) -> None:
        """Remove the lock file, after what was written under the lock is committed.

        Raises:
            Refused: NO_SUCH_LOCK if this agent has lost it, NOT_OWNER if it is another's.

        """
        may_write = await who.may_write_mailbox(mailbox)
        requester = who.requester(mailbox, may_write=may_write)
        lock = self._context.locks.lock(mailbox)
        try:
            await self._context.mailbox(mailbox).commit_own(requester, lock.releasable(requester))
            self._context.mailbox(mailbox).unlocking(requester)
        except Refused as refusal:
            if refusal.cause is not Cause.FENCED:
                raise
        finally:  # whatever became of the draft, the lock goes; if it was lost before, that is the answer
            lock.release_dotlock(requester)

    async def rmdir(self, parent: Node, name: bytes, who: Who) -> None:
        """rmdir(2); in the root by the directory's owner."""
        self.refuse_control(parent, name)
        directory = self._namespace.directory(parent)
        if parent is self._context.nodes.root:
            self.check_owner(name, who)
        path = (*directory.path, name)
        node = self._namespace.passed_through(directory, name)
        self._context.door.rmdir(path)
        self.forget(node)

    # What they share

    def check_owner(self, name: bytes, who: Who) -> None:
        """The sticky rule, which the kernel does not apply, as the root shows no sticky bit."""
        found = self._context.door.stat((name,))
        if not who.may_remove(found):
            raise Refused(Cause.NOT_ALLOWED, f"{name!r} belongs to uid {found.st_uid}")

    def forget(self, node: Node) -> None:
        """A name is gone; nodes of several names, and of open files, live on."""
        self._context.nodes.detach(node)

    def refuse_control(self, parent: Node, name: bytes) -> None:
        """Nobody makes or removes anything in the control tree."""
        if isinstance(parent, ControlNode):
            raise PermissionError(errno.EPERM, "the control tree is made by mailfs", name)
        if parent is self._context.nodes.root and name == b".mailfs":
            raise PermissionError(errno.EPERM, "the control tree is made by mailfs", name)
