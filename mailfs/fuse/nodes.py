"""What the kernel knows by number: nodes, and the table that hands their numbers out.

A real file's node id is its backing inode number, so ``st_ino`` is the same for every caller and survives a remount
(c-client and lockmail name a second lock after it). What has no file of its own (lock files, scratch files, control
files) gets a number from a range that no filesystem uses. A number whose file is gone may come back for another
file; the generation then tells the kernel that it is not the same one (fs/fuse/inode.c, ``fuse_stale_inode``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from mailfs.fuse.lockfile import LockFile
    from mailfs.sessions.mailbox import Mailbox

ROOT = 1
VIRTUAL = 1 << 62
"""Node ids from here on are ours; ext4, xfs and btrfs inode numbers stay far below."""

Path = tuple[bytes, ...]


class Node:
    """Something the kernel may hold a reference to.

    Attributes:
        number: node id and ``st_ino``.
        lookups: references the kernel holds (its lookup count).

    """

    def __init__(self, number: int, key: Hashable) -> None:
        self.number = number
        self.key = key
        self.generation = 0
        self.lookups = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.number} {self.key!r} lookups {self.lookups}>"


class FileNode(Node):
    """A real file or directory below the spool that is not a mailbox, found by its path.

    Paths are kept as parent and name, so that renaming a directory moves everything below it. A file may have several
    (hard links); the last one that was seen is used.
    """

    def __init__(self, number: int, key: Hashable, parent: FileNode | None, name: bytes) -> None:
        super().__init__(number, key)
        self._names: dict[tuple[FileNode, bytes], None] = {}
        if parent is not None:
            self.seen_as(parent, name)

    def seen_as(self, parent: FileNode, name: bytes, *, only: bool = False) -> None:
        """It was found under this name; ``only`` says that it has no other."""
        if only:
            self._names.clear()
        self._names.pop((parent, name), None)
        self._names[(parent, name)] = None

    def gone_from(self, parent: FileNode, name: bytes) -> None:
        """It has lost this name; the last one known is kept, for want of a better."""
        if len(self._names) > 1:
            self._names.pop((parent, name), None)

    @property
    def last_name(self) -> tuple[FileNode, bytes] | None:
        """The directory and name it was last seen under; None for the root."""
        return next(reversed(self._names)) if self._names else None

    @property
    def parent(self) -> FileNode | None:
        """The directory it was last seen in; None for the root."""
        return self.last_name[0] if self.last_name else None

    @property
    def path(self) -> Path:
        """Where it lies below the spool's root."""
        names: list[bytes] = []
        place = self.last_name
        while place is not None:
            names.append(place[1])
            place = place[0].last_name
        return tuple(reversed(names))


class ScratchNode(FileNode):
    """A file private to one user; its path leads into the scratch directory. It may have become a lock file."""

    def __init__(
        self, number: int, key: Hashable, parent: FileNode | None, name: bytes, uid: int
    ) -> None:
        super().__init__(number, key, parent, name)
        self.name = name
        self.uid = uid
        self.lock: LockFile | None = None
        self.replaces: bytes | None = None  # the mailbox it takes the place of when it is closed
        self.owner_set = False  # the client set the owner or group itself
        self.mode_set = False

    def move(self, parent: FileNode, name: bytes) -> None:
        """It was renamed, within the user's scratch files."""
        self.seen_as(parent, name, only=True)
        self.name = name


class MailboxNode(Node):
    """A mailbox: the name's state, and the backing inode it had when this node was made."""

    def __init__(self, number: int, key: Hashable, mailbox: Mailbox) -> None:
        super().__init__(number, key)
        self.mailbox = mailbox


class LockNode(Node):
    """A lock file that was created as such (one that was linked from a scratch file keeps the scratch file's node)."""

    def __init__(self, number: int, key: Hashable, lock: LockFile) -> None:
        super().__init__(number, key)
        self.lock = lock


class ControlNode(Node):
    """A file or directory of the control tree; ``path`` is below ``.mailfs``."""

    def __init__(self, number: int, key: Hashable, path: Path) -> None:
        super().__init__(number, key)
        self.path = path


class RescueNode(ControlNode):
    """``.mailfs/rescue`` and what is in it: real files, each for its owner."""


class NodeTable:
    """All nodes, by number and by what they stand for."""

    def __init__(self, root: FileNode) -> None:
        self._by_number: dict[int, Node] = {root.number: root}
        self._by_key: dict[Hashable, Node] = {root.key: root}
        self._generations: dict[int, int] = {}
        self._next_virtual = VIRTUAL
        self.root = root

    def __len__(self) -> int:
        return len(self._by_number)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._by_number.values())

    def get(self, number: int) -> Node | None:
        """The node of a number the kernel named."""
        return self._by_number.get(number)

    def find(self, key: Hashable) -> Node | None:
        """The node that stands for ``key``, if there is one."""
        return self._by_key.get(key)

    def virtual(self) -> int:
        """A number for something that has no file."""
        self._next_virtual += 1
        return self._next_virtual

    def real(self, inode: int) -> int:
        """The node id for a backing inode."""
        return inode if ROOT < inode < VIRTUAL else self.virtual()

    def add(self, node: Node) -> None:
        """Enter a node; one of the same number that is still there is detached first."""
        old = self._by_number.get(node.number)
        if old is not None and old is not node:
            self.detach(old)
            node.lookups += old.lookups  # FORGET names numbers, not generations
        node.generation = self._generations.get(node.number, 0)
        self._by_number[node.number] = node
        self._by_key[node.key] = node

    def detach(self, node: Node) -> None:
        """The file is gone: its key finds nothing any more, its number is of another generation next time."""
        if self._by_key.get(node.key) is node:
            del self._by_key[node.key]
            if node.number < VIRTUAL:
                self._generations[node.number] = node.generation + 1

    def rekey(self, node: Node, key: Hashable) -> None:
        """The node now stands for something else (a rename)."""
        if self._by_key.get(node.key) is node:
            del self._by_key[node.key]
        node.key = key
        self._by_key[key] = node

    def refer(self, node: Node) -> None:
        """The kernel is told of a node, and holds a reference from now on.

        It may have given back all earlier ones while something else kept the node (a lock its lock file).
        """
        if self._by_number.get(node.number) is not node:
            self.add(node)
        node.lookups += 1

    def drop_unreferenced(self, node: Node) -> None:
        """Forget a node that was made for an answer the kernel did not take."""
        if node.lookups <= 0:
            self.forget(node.number, 0)

    def forget(self, number: int, lookups: int) -> None:
        """The kernel gave back references; a node without any goes."""
        node = self._by_number.get(number)
        if node is None:
            return
        node.lookups -= lookups
        if node.lookups <= 0 and node is not self.root:
            if self._by_number.get(number) is node:
                del self._by_number[number]
            if self._by_key.get(node.key) is node:
                del self._by_key[node.key]
