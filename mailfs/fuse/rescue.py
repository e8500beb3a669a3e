"""``.mailfs/rescue``: what refused drafts contained, to be read and removed by those who wrote them.

Administrators see all of it, others what is theirs; nobody makes or changes anything there.
"""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from mailfs.fuse.nodes import RescueNode
from mailfs.spool.door import Entry
from mailfs.spool.private import RESCUE

if TYPE_CHECKING:
    from mailfs.fuse.context import Context, Who
    from mailfs.fuse.nodes import Path

NAME = b"rescue"


class Rescue:
    """The directory and its files."""

    def __init__(self, context: Context) -> None:
        self._context = context

    def node(self, path: Path, who: Who) -> RescueNode:
        """The node of a path below ``.mailfs``. Raises FileNotFoundError: this client sees none."""
        if len(path) > 1:
            self._stat(path[1:], who)
        key = ("rescue", path)
        node = self._context.nodes.find(key)
        if not isinstance(node, RescueNode):
            node = RescueNode(self._context.nodes.virtual(), key, path)
            self._context.nodes.add(node)
        return node

    def _stat(self, below: Path, who: Who) -> os.stat_result:
        found = self._context.door.stat((*RESCUE, *below))
        if not stat.S_ISREG(found.st_mode) or not (who.trusted or found.st_uid == who.uid):
            raise FileNotFoundError(2, "nothing of yours", below[-1])
        return found

    def names(self, who: Who) -> list[Entry]:
        """What this client sees there."""
        names = []
        for entry in self._context.door.listdir(RESCUE):
            try:
                self._stat((entry.name,), who)
            except OSError:
                continue
            names.append(Entry(entry.name, 0, 0))
        return names

    def open(self, node: RescueNode, who: Who) -> int:
        """A descriptor for reading a file."""
        self._stat(node.path[1:], who)
        return self._context.door.open((*RESCUE, *node.path[1:]), os.O_RDONLY)

    def remove(self, name: bytes, who: Who) -> None:
        """unlink(2)."""
        self._stat((name,), who)
        self._context.door.unlink((*RESCUE, name))
