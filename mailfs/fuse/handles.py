"""Open files: one handle for each open file description of a client."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mailfs.fuse.passthrough import Way
from mailfs.sessions.session import Base, Cursor

if TYPE_CHECKING:
    from mailfs.fuse.lockfile import LockFile
    from mailfs.fuse.nodes import Node
    from mailfs.locking.model import Process
    from mailfs.locking.rules import Claim
    from mailfs.sessions.mailbox import Mailbox
    from mailfs.sessions.readers import Window


@dataclass(eq=False, slots=True)
class Handle:
    """What every open file has.

    Attributes:
        number: the ``fh`` the kernel names it by.
        node: what was opened.
        owners: lock owners that took record locks through it; those that are open file descriptions (OFD locks) lose
            them with the last descriptor, of which the kernel only tells by RELEASE.
        flocked: flock() was used on it.

    """

    number: int
    node: Node
    uid: int = 0
    owners: set[int] = field(default_factory=set)
    flocked: bool = False

    @property
    def cached(self) -> bool:
        """Whether the kernel may keep pages of it."""
        return False

    def close(self) -> None:
        """Give back what it holds."""


@dataclass(eq=False, slots=True)
class FileHandle(Handle):
    """A real file: reads and writes go straight to it."""

    fd: int = -1

    @property
    def cached(self) -> bool:
        """As any file's (it may be mapped); pages are dropped at the next open."""
        return True

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


UNKNOWN = Base(0, 0, 0)


@dataclass(eq=False, slots=True)
class MailboxHandle(Handle):
    """A mailbox.

    Attributes:
        fd: the inode it was opened on, for reading; it stays readable when another file is renamed over the mailbox.
        opener: the process that opened it.
        writer: who decides by its end what becomes of the draft: the process that wrote through it last, or the opener
            that was killed after that.
        duplicated: a flush came without a release, so other descriptors refer to it and only RELEASE ends the session.
        cursor: where this handle's appended bytes lie.
        opened: the mailbox as it was then.
        began: how often the mailbox had been rewritten when reading through it last began at the beginning.
        young: the claim of an unlocked reader, which may be over long since.
        way: how it reads and writes.
        backing: the kernel's id of the real file its node is passed through to; None: it is not.
        window: what its opener may have read through it, where its reads do not reach us.

    """

    mailbox: Mailbox = field(kw_only=True)
    fd: int = -1
    opener: Process | None = None
    writer: Process | None = None
    duplicated: bool = False
    cursor: Cursor = field(default_factory=Cursor)
    opened: Base = UNKNOWN
    began: int = 0
    young: Claim | None = None
    way: Way = Way.DIRECT
    backing: int | None = None
    window: Window | None = None

    @property
    def cached(self) -> bool:
        """Passed through: there are pages only of the real file."""
        return self.way is Way.PASSED

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.fd)


@dataclass(eq=False, slots=True)
class LockHandle(Handle):
    """A lock file."""

    lock: LockFile = field(kw_only=True)


@dataclass(eq=False, slots=True)
class TextHandle(Handle):
    """A control file: a snapshot of its text, made when it was opened."""

    text: bytes = b""


class HandleTable:
    """All open files by number."""

    def __init__(self) -> None:
        self._handles: dict[int, Handle] = {}
        self._next = 0

    def __len__(self) -> int:
        return len(self._handles)

    def values(self) -> list[Handle]:
        """All of them, as a list of its own."""
        return list(self._handles.values())

    def number(self) -> int:
        """A number for a new handle."""
        self._next += 1
        return self._next

    def add(self, handle: Handle) -> None:
        """Enter it."""
        self._handles[handle.number] = handle

    def get(self, number: int) -> Handle | None:
        """The handle the kernel named."""
        return self._handles.get(number)

    def remove(self, number: int) -> Handle | None:
        """The last descriptor is gone."""
        return self._handles.pop(number, None)

    def of(self, node: Node) -> list[Handle]:
        """The open files of a node."""
        return [handle for handle in self._handles.values() if handle.node is node]
