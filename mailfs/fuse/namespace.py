"""What a name is, for the client that says it.

In the root of the spool a name is, in this order,

1. the control tree (``.mailfs``);
2. the lock file ``X.lock`` of a mailbox or account X, which is there exactly if this client would be denied the lock,
   or holds it by that file;
3. a scratch file of this client's user;
4. what the backing directory has: a mailbox (regular files), or a directory or link that is passed through.

Below the root's directories everything is passed through. Names of 2 and 3 differ by caller, so nothing in the root is
cached by the kernel, and look-up and creation decide by the same functions.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from typing import TYPE_CHECKING

from mailfs.errors import Refused
from mailfs.fuse.bridge import pyfuse3
from mailfs.fuse.handles import FileHandle, MailboxHandle
from mailfs.fuse.lockfile import MODE, LockFile
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
from mailfs.fuse.rescue import NAME as RESCUED
from mailfs.fuse.rescue import Rescue
from mailfs.policy.names import LOCK_SUFFIX, Kind, Name, accounts_of, classify
from mailfs.policy.rights import directory_mode
from mailfs.spool.private import PRIVATE, RESCUE

if TYPE_CHECKING:
    from collections.abc import Hashable

    from mailfs.fuse.context import Context, Who

CACHED = 1.0
"""Seconds the kernel may remember what lies below the root's directories; others may change it in the real spool."""


def backing_key(found: os.stat_result) -> Hashable:
    """What a real file is known by."""
    return ("file", found.st_dev, found.st_ino)


class Namespace:
    """Finds nodes by name and tells their attributes."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self.rescue = Rescue(context)
        self._device = os.fstat(context.door.fileno).st_dev

    # From names to nodes

    async def child(self, parent: Node, name: bytes, who: Who) -> Node:
        """The node of a name.

        Raises:
            FileNotFoundError: this client sees none.

        """
        if isinstance(parent, ControlNode):
            return self.control((*parent.path, name), who)
        if parent is not self._context.nodes.root:
            return self.passed_through(self.directory(parent), name)
        if name == PRIVATE:
            return self.control((), who)
        if name.endswith(LOCK_SUFFIX):
            what = await self.classify(name)
            if what.kind is Kind.LOCK and what.mailbox is not None:
                lock = await self.lock_file(what.mailbox, who)
                if lock is None:
                    raise FileNotFoundError(errno.ENOENT, "not locked", name)
                return lock
        scratch = self.scratch(who.uid, name)
        if scratch is not None:
            return scratch
        return self.backing(name, who)

    async def classify(self, name: bytes) -> Name:
        """What a name of the root is, whoever asks. Accounts are looked up where that decides."""
        for account in accounts_of(name):
            await self._context.accounts.lookup(account)
        return classify(name, is_mailbox=self.is_mailbox, is_account=self._is_account)

    def _is_account(self, name: bytes) -> bool:
        return self._context.accounts.cached(name) is not None

    def is_mailbox(self, name: bytes) -> bool:
        """Whether the spool has a mailbox of this name."""
        try:
            return stat.S_ISREG(self._context.door.stat((name,)).st_mode)
        except (OSError, Refused):
            return False

    def directory(self, node: Node) -> FileNode:
        """The node as a real directory; ENOTDIR if it is none."""
        if isinstance(node, FileNode) and not isinstance(node, ScratchNode):
            return node
        raise NotADirectoryError(errno.ENOTDIR, "not a directory")

    def passed_through(self, parent: FileNode, name: bytes) -> FileNode:
        """A file below one of the root's directories."""
        path = (*parent.path, name)
        return self._file_node(self._context.door.stat(path), parent, name)

    def backing(self, name: bytes, who: Who) -> Node:
        """What the backing directory has in its root: a mailbox, or something that is passed through."""
        found = self._context.door.stat((name,))
        if not stat.S_ISREG(found.st_mode):
            return self._file_node(found, self._context.nodes.root, name)
        away = self._context.replacements.get(name)
        if away is not None and away.by(who.process):
            return away.node(self)
        return self.mailbox_node(name, found)

    def mailbox_node(self, name: bytes, found: os.stat_result) -> MailboxNode:
        """The node of a mailbox as it is now; one for each backing inode."""
        nodes = self._context.nodes
        key = ("mailbox", name, found.st_ino)
        node = nodes.find(key)
        if not isinstance(node, MailboxNode):
            node = MailboxNode(nodes.real(found.st_ino), key, self._context.mailbox(name))
            nodes.add(node)
        return node

    def scratch(self, uid: int, name: bytes) -> ScratchNode | None:
        """A user's own scratch file."""
        path = self._context.private.scratch_of(uid, name)
        try:
            found = self._context.door.stat(path)
        except (OSError, Refused):
            return None
        return self.scratch_node(uid, name, found)

    def scratch_node(self, uid: int, name: bytes, found: os.stat_result) -> ScratchNode:
        """The node of a scratch file; it has a number of its own, as its inode comes and goes within milliseconds."""
        nodes = self._context.nodes
        key = ("scratch", uid, name, found.st_ino)
        node = nodes.find(key)
        if not isinstance(node, ScratchNode):
            node = ScratchNode(nodes.virtual(), key, self.scratch_parent(uid), name, uid)
            nodes.add(node)
        return node

    async def lock_file(self, mailbox: bytes, who: Who) -> Node | None:
        """The lock file of a mailbox as this client sees it."""
        may_write = await who.may_write_mailbox(mailbox)
        lock = self._context.locks.lock(mailbox)
        claim = lock.dotlock_seen_by(who.requester(mailbox, may_write=may_write))
        if claim is not None and isinstance(claim.content, Node):
            return claim.content
        if claim is None and not self._foreign_lock(mailbox):
            return None
        key = ("lock", mailbox)
        node = self._context.nodes.find(key)
        if not isinstance(node, LockNode):
            uid = claim.requester.uid if claim is not None else 0
            node = LockNode(self._context.nodes.virtual(), key, LockFile(mailbox, uid, 0))
            self._context.nodes.add(node)
        return node

    def _foreign_lock(self, mailbox: bytes) -> bool:
        """Whether somebody outside the mount has a lock file on the real mailbox, and we do not hold it."""
        if self._context.backing.lock_for((mailbox,)).held:
            return False
        try:
            self._context.door.stat((mailbox + b".lock",))
        except (OSError, Refused):
            return False
        return True

    def control(self, path: Path, who: Who) -> ControlNode:
        """A file or directory of the control tree. For administrators only, but for what is rescued."""
        if path[:1] == (RESCUED,):
            return self.rescue.node(path, who)
        if path and (len(path) > 1 or path[0] not in self._context.control):
            raise FileNotFoundError(errno.ENOENT, "no such control file")
        if path and not who.trusted:
            raise PermissionError(errno.EACCES, "control files are for administrators")
        key = ("control", path)
        node = self._context.nodes.find(key)
        if not isinstance(node, ControlNode):
            node = ControlNode(self._context.nodes.virtual(), key, path)
            self._context.nodes.add(node)
        return node

    def _file_node(self, found: os.stat_result, parent: FileNode, name: bytes) -> FileNode:
        nodes = self._context.nodes
        key = backing_key(found)
        node = nodes.find(key)
        if isinstance(node, FileNode):
            node.seen_as(parent, name, only=stat.S_ISDIR(found.st_mode) or found.st_nlink == 1)
            return node
        number = nodes.real(found.st_ino) if found.st_dev == self._device else nodes.virtual()
        node = FileNode(number, key, parent, name)
        nodes.add(node)
        return node

    def scratch_parent(self, uid: int) -> FileNode:
        """A chain of nodes that spells the path of a user's scratch directory; the kernel never hears of them."""
        node = self._context.nodes.root
        for name in self._context.private.scratch(uid):
            node = FileNode(0, ("path", name), node, name)
        return node

    # Attributes

    def attributes(self, node: Node, who: Who, handle: object = None) -> pyfuse3.EntryAttributes:
        """What stat(2) says of a node.

        Args:
            node: of what.
            who: the client; a lock file's times and a mailbox's size depend on it.
            handle: the open file it was asked through, if any.

        """
        if isinstance(node, ControlNode):
            return self._control_attributes(node)
        lock = node.lock if isinstance(node, LockNode | ScratchNode) else None
        if lock is not None and lock.live:
            return self._lock_attributes(node, lock, who)
        if isinstance(node, MailboxNode):
            return self._mailbox_attributes(node, who, handle)
        if isinstance(node, FileNode):
            return self._file_attributes(node, handle)
        raise FileNotFoundError(errno.ENOENT, "the lock is gone")

    def _file_attributes(self, node: FileNode, handle: object) -> pyfuse3.EntryAttributes:
        if isinstance(handle, FileHandle):
            found = os.fstat(handle.fd)
        elif node is self._context.nodes.root:
            found = os.fstat(self._context.door.fileno)
        else:
            found = self._by_path_or_handle(node, node.path)
        entry = entry_from(found, node)
        if node is self._context.nodes.root:
            entry.st_mode = stat.S_IFDIR | self.directory_mode(found.st_mode)
        in_root = node.parent is None or isinstance(node, ScratchNode)
        if not in_root and node.parent is not self._context.nodes.root:
            entry.entry_timeout = entry.attr_timeout = CACHED
        return entry

    def _by_path_or_handle(self, node: Node, path: Path) -> os.stat_result:
        """A file that was removed or replaced is still there for those who have it open.

        For others it is stale if another has taken its name: the kernel then looks the name up again (do_filp_open()
        and filename_lookup() in fs/namei.c), so that nobody is told that there is none.
        """
        replaced = False
        try:
            found = self._context.door.stat(path)
            if self._still(node, found):
                return found
            replaced = True
        except FileNotFoundError:
            pass
        for handle in self._context.handles.of(node):
            if isinstance(handle, FileHandle | MailboxHandle):
                return os.fstat(handle.fd)
        if replaced:
            raise OSError(errno.ESTALE, "another file has its name")
        raise FileNotFoundError(errno.ENOENT, "the file is gone")

    def _still(self, node: Node, found: os.stat_result) -> bool:
        if isinstance(node, ScratchNode):
            return isinstance(node.key, tuple) and node.key[3] == found.st_ino
        if isinstance(node, MailboxNode):
            return isinstance(node.key, tuple) and node.key[2] == found.st_ino
        return node.key == backing_key(found)

    def _mailbox_attributes(
        self, node: MailboxNode, who: Who, handle: object
    ) -> pyfuse3.EntryAttributes:
        mailbox = node.mailbox
        found = self._by_path_or_handle(node, (mailbox.name,))
        entry = entry_from(found, node)
        entry.st_nlink = (
            min(found.st_nlink, 1) if mailbox.name in self._context.replacements else found.st_nlink
        )
        size = mailbox.refresh()
        if not self._still(node, found):
            size = found.st_size
        if mailbox.sessions:
            if isinstance(handle, MailboxHandle):
                draft = mailbox.session_of(handle, handle.opener)
            else:  # fstat(2) does not say by which handle
                draft = mailbox.last_draft(who.process)
            size = draft.size if draft is not None else size
        if isinstance(handle, MailboxHandle):
            handle.cursor.told = size
        entry.st_size = size
        return entry

    def _lock_attributes(self, node: Node, lock: LockFile, who: Who) -> pyfuse3.EntryAttributes:
        entry = blank_entry(node)
        entry.st_mode = stat.S_IFREG | MODE
        entry.st_uid, entry.st_gid = lock.uid, lock.gid
        entry.st_size = len(lock.content)
        entry.st_nlink = lock.links
        if lock.claim is not None and lock.claim.agent.covers(
            who.requester(lock.mailbox, may_write=True)
        ):
            entry.st_atime_ns, entry.st_mtime_ns = lock.atime_ns, lock.mtime_ns
            entry.st_ctime_ns = lock.ctime_ns
        else:
            now = time.time_ns()
            entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = now
        return entry

    def _control_attributes(self, node: ControlNode) -> pyfuse3.EntryAttributes:
        entry = blank_entry(node)
        if isinstance(node, RescueNode) and len(node.path) > 1:
            found = self._context.door.stat((*RESCUE, *node.path[1:]))
            entry = entry_from(found, node)
            entry.st_mode = stat.S_IFREG | 0o400
            return entry
        directory = not node.path or isinstance(node, RescueNode)
        entry.st_mode = (stat.S_IFDIR | 0o555) if directory else (stat.S_IFREG | 0o400)
        if isinstance(node, RescueNode):
            entry.st_mode |= (
                0o222  # the kernel lets nobody remove anything otherwise; we decide who may
            )
        entry.st_nlink = 2 if directory else 1
        entry.st_uid = self._context.owner
        now = time.time_ns()
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = now
        return entry

    def directory_mode(self, backing: int) -> int:
        """The permissions the spool directory shows (every program may try, no sticky bit)."""
        return directory_mode(backing, self._context.limits.directory_mode)


def blank_entry(node: Node) -> pyfuse3.EntryAttributes:
    """Attributes with nothing but the node's number, not to be cached."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = node.number
    entry.generation = node.generation
    entry.entry_timeout = entry.attr_timeout = 0
    return entry


def entry_from(found: os.stat_result, node: Node) -> pyfuse3.EntryAttributes:
    """Attributes of a real file under the node's number."""
    entry = blank_entry(node)
    entry.st_mode = found.st_mode
    entry.st_nlink = found.st_nlink
    entry.st_uid, entry.st_gid = found.st_uid, found.st_gid
    entry.st_rdev = found.st_rdev
    entry.st_size = found.st_size
    entry.st_blocks, entry.st_blksize = found.st_blocks, found.st_blksize
    entry.st_atime_ns, entry.st_mtime_ns = found.st_atime_ns, found.st_mtime_ns
    entry.st_ctime_ns = found.st_ctime_ns
    return entry
