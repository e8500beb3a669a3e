"""Listings. A listing is a snapshot taken at opendir, so that no rename meanwhile makes a name missing (P12)."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailfs.errors import Refused
from mailfs.fuse.bridge import pyfuse3
from mailfs.fuse.nodes import ControlNode, Node
from mailfs.policy.names import LOCK_SUFFIX
from mailfs.spool.dotlock import is_temporary
from mailfs.spool.private import PRIVATE

if TYPE_CHECKING:
    from mailfs.fuse.context import Context, Who
    from mailfs.fuse.namespace import Namespace


@dataclass(slots=True)
class Listing:
    """An open directory: its node, the names it had when it was opened, and who reads it."""

    node: Node
    names: list[bytes]
    who: Who


class Directories:
    """opendir, readdir, releasedir."""

    def __init__(self, context: Context, namespace: Namespace) -> None:
        self._context = context
        self._namespace = namespace
        self._open: dict[int, Listing] = {}

    async def opendir(self, node: Node, who: Who) -> int:
        """Take the snapshot."""
        if isinstance(node, ControlNode):
            if node.path:
                raise NotADirectoryError(errno.ENOTDIR, "a control file")
            names = sorted(self._context.control) if who.trusted else []
        elif node is self._context.nodes.root:
            names = await self._root(who)
        else:
            directory = self._namespace.directory(node)
            names = [entry.name for entry in self._context.door.listdir(directory.path)]
        number = self._context.handles.number()
        self._open[number] = Listing(node, names, who)
        return number

    async def _root(self, who: Who) -> list[bytes]:
        """What this client would find: mailboxes, directories, its own scratch files, locks it would be denied."""
        names: dict[bytes, None] = {}
        if who.trusted:
            names[PRIVATE] = None
        locked = {row.mailbox for row in self._context.locks.rows()}
        for entry in self._context.door.listdir():
            name = entry.name
            if name == PRIVATE or is_temporary(name):
                continue
            if name.endswith(LOCK_SUFFIX):
                locked.add(name[: -len(LOCK_SUFFIX)])
                if self._namespace.is_mailbox(name[: -len(LOCK_SUFFIX)]):
                    continue
            names[name] = None
        for entry in self._context.private.scratch_files(who.uid):
            names[entry.name] = None
        for mailbox in locked:
            try:
                await self._namespace.child(self._context.nodes.root, mailbox + LOCK_SUFFIX, who)
            except (OSError, Refused):
                continue
            names[mailbox + LOCK_SUFFIX] = None
        return list(names)

    async def readdir(self, number: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        """Reply with names from position ``start`` on, with attributes; what has gone meanwhile is left out."""
        listing = self._open.get(number)
        if listing is None:
            raise OSError(errno.EBADF, "no such directory handle")
        nodes = self._context.nodes
        for position in range(start, len(listing.names)):
            name = listing.names[position]
            try:
                node = await self._namespace.child(listing.node, name, listing.who)
                entry = self._namespace.attributes(node, listing.who)
            except (OSError, Refused):
                continue
            if not pyfuse3.readdir_reply(token, name, entry, position + 1):
                nodes.drop_unreferenced(node)
                return
            node.lookups += 1

    def releasedir(self, number: int) -> None:
        """Drop the snapshot."""
        self._open.pop(number, None)
