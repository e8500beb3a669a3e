"""Listings. A listing is a snapshot taken at opendir, so that no rename meanwhile makes a name missing (P12)."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Refused
from mailfs.fuse.bridge import pyfuse3
from mailfs.fuse.namespace import blank_entry
from mailfs.fuse.nodes import ControlNode, FileNode, Node, RescueNode
from mailfs.fuse.replace import REPLACING
from mailfs.fuse.rescue import NAME as RESCUE
from mailfs.policy.names import LOCK_SUFFIX
from mailfs.spool.door import Entry
from mailfs.spool.dotlock import is_temporary
from mailfs.spool.private import PRIVATE

if TYPE_CHECKING:
    from mailfs.fuse.context import Context, Who
    from mailfs.fuse.namespace import Namespace

BREATH = 100
"""Entries after which a long listing lets other requests run."""


@dataclass(slots=True)
class Listing:
    """An open directory: its node, the names it had when it was opened, and who reads it."""

    node: Node
    names: list[Entry]
    who: Who
    read: bool = False


class Directories:
    """opendir, readdir, releasedir."""

    def __init__(self, context: Context, namespace: Namespace) -> None:
        self._context = context
        self._namespace = namespace
        self._open: dict[int, Listing] = {}

    async def opendir(self, node: Node, who: Who) -> int:
        """Take the snapshot."""
        number = self._context.handles.number()
        self._open[number] = Listing(node, await self._names(node, who), who)
        return number

    async def _names(self, node: Node, who: Who) -> list[Entry]:
        if isinstance(node, RescueNode) and len(node.path) == 1:
            return self._namespace.rescue.names(who)
        if isinstance(node, ControlNode):
            if node.path:
                raise NotADirectoryError(errno.ENOTDIR, "a control file")
            names = sorted(self._context.control) if who.trusted else []
            return [Entry(name, 0, 0) for name in [*names, RESCUE]]
        if node is self._context.nodes.root:
            return await self._root(who)
        return self._context.door.listdir(self._namespace.directory(node).path)

    async def _root(self, who: Who) -> list[Entry]:
        """What this client would find: mailboxes, directories, its own scratch files, locks it would be denied."""
        names: dict[bytes, Entry] = {}
        if who.trusted:
            names[PRIVATE] = Entry(PRIVATE, 0, 0)
        locked = {row.mailbox for row in self._context.locks.rows()}
        for entry in self._context.door.listdir():
            if entry.name == PRIVATE or is_temporary(entry.name):
                continue
            if entry.name.endswith(LOCK_SUFFIX):
                mailbox = entry.name[: -len(LOCK_SUFFIX)]
                if self._namespace.is_mailbox(mailbox) or mailbox in locked:
                    locked.add(mailbox)
                    continue
            names[entry.name] = entry
        for entry in self._context.private.scratch_files(who.uid):
            if not entry.name.startswith(REPLACING):
                names[entry.name] = Entry(entry.name, 0, 0)
        for mailbox in locked:
            name = mailbox + LOCK_SUFFIX
            try:
                await self._namespace.child(self._context.nodes.root, name, who)
            except (OSError, Refused):
                continue
            names[name] = Entry(name, 0, 0)
        return list(names.values())

    async def readdir(self, number: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        """Reply with names from position ``start`` on, with attributes.

        A name that has gone meanwhile is still told of, with what the snapshot says, so that a file renamed while the
        listing is read is never missing. rewinddir(3) takes a new snapshot.
        """
        listing = self._open.get(number)
        if listing is None:
            raise OSError(errno.EBADF, "no such directory handle")
        if start == 0 and listing.read:
            listing.names = await self._names(listing.node, listing.who)
        listing.read = True
        nodes = self._context.nodes
        for position in range(start, len(listing.names)):
            if position % BREATH == BREATH - 1:
                await trio.lowlevel.checkpoint()
            name = listing.names[position]
            try:
                node = await self._namespace.child(listing.node, name.name, listing.who)
                entry = self._namespace.attributes(node, listing.who)
            except (OSError, Refused):
                if not name.inode:
                    continue
                node = self._gone(listing.node, name)
                entry = blank_entry(node)
                entry.st_mode = name.type << 12
            if not pyfuse3.readdir_reply(token, name.name, entry, position + 1):
                nodes.drop_unreferenced(node)
                return
            nodes.refer(node)

    def _gone(self, directory: Node, entry: Entry) -> Node:
        """A node for a name that was there when the directory was opened; looking it up says that it is gone."""
        assert isinstance(directory, FileNode)  # entries of others have no inode
        number = self._context.nodes.virtual()
        node = FileNode(number, ("gone", number), directory, entry.name)
        self._context.nodes.add(node)
        return node

    def releasedir(self, number: int) -> None:
        """Drop the snapshot."""
        self._open.pop(number, None)
