"""What one agent is doing to one mailbox: a draft of it, which is committed as a whole or never.

A draft is the mailbox as it was (the *base*) with the session's own bytes laid over it. As long as nothing below the
end of the base was touched the session is an *append*: its bytes may land behind whatever the mailbox has become by
then. Otherwise it is a *rewrite*, and is judged against what has happened since its base.

Offsets that a client gives are its own idea of the mailbox. The kernel keeps one size an inode, so a client that
seeks to the end may be told another's, and the offset of an O_APPEND write is the kernel's guess; ``place`` turns such
an offset into one of the draft.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from mailfs.sessions.extents import Extents

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailfs.locking.model import Requester
    from mailfs.locking.rules import Claim
    from mailfs.sessions.record import Record
    from mailfs.sessions.staging import Staging
    from mailfs.sessions.storage import Store, Times

CHUNK = 1 << 20


class Base(NamedTuple):
    """A committed state of a mailbox, as far as an agent knows it.

    ``size`` is what it has surely read, ``horizon`` what it may have read at most (both bytes); ``rewrites`` counts
    the changes before it that were not appends.
    """

    rewrites: int
    size: int
    horizon: int


@dataclass(eq=False, slots=True)
class Cursor:
    """One handle's idea of where its own appended bytes lie.

    The client believes they begin at ``start``; in the draft they begin ``behind`` bytes after the base.
    """

    told: int | None = None  # the size this handle was last told
    start: int | None = None
    behind: int = 0

    def forget(self) -> None:
        """Start anew: the session these offsets spoke of is over."""
        self.start = None


@dataclass(eq=False)
class Session:
    """A draft and what is known of its writer.

    Attributes:
        requester: who writes; decides which claims are its own.
        trusted: the writer holds an explicit exclusive lock, so what it saw is what is there.
        claim: the implicit claim taken at the first write, if it could be had, and not given up yet.
        claimed: that first write is over: the claim is not taken again.
        synced: the client asked for fsync, so the commit must reach the disk.
        times: time stamps the client set on the draft; they are applied after the commit.
        fenced: the agent lost its lock; nothing of this lands.
        record: what the journal says of it; None if it is not there.
        broken: why a write to it failed, and where (bytes): what its writer meant is not what is here, and it is not
            committed unless the writer cuts it back to before that.

    """

    requester: Requester
    base: Base
    staging: Staging
    trusted: bool = False
    extents: Extents = field(default_factory=Extents)
    claim: Claim | None = None
    claimed: bool = False
    synced: bool = False
    times: Times | None = None
    fenced: bool = False
    truncated: bool = False
    last_write: float = 0.0
    record: Record | None = None
    broken: tuple[OSError, int] | None = None

    def __post_init__(self) -> None:
        self.size = self.base.size
        self.floor = self.base.size  # bytes of the base that are still in the view
        self.known = self.base.size  # bytes of the base that its writer has surely read

    @property
    def dirty(self) -> bool:
        """Whether a commit would change the mailbox."""
        return len(self.extents) > 0 or self.rewriting

    @property
    def rewriting(self) -> bool:
        """Whether bytes of the base were overwritten or cut off."""
        lowest = self.extents.lowest
        return self.truncated or (lowest is not None and lowest < self.base.size)

    @property
    def appended(self) -> int:
        """Bytes the session has behind its base."""
        return max(0, self.size - self.base.size)

    def place(self, cursor: Cursor, offset: int, committed: int) -> int:
        """Where in the draft a write at a client's offset belongs (see the module's text).

        Args:
            cursor: the handle's.
            offset: what the client (or the kernel) said, bytes.
            committed: the mailbox's size now.

        """
        if cursor.start is not None and offset >= cursor.start:
            return min(self.base.size + cursor.behind + offset - cursor.start, self.size)
        if self.size < offset < self.base.horizon and offset not in (cursor.told, committed):
            self._widen()
        if self.rewriting:
            return offset
        if offset > self.size or offset in (cursor.told, committed, self.size):
            cursor.start, cursor.behind = offset, self.size - self.base.size
            return self.size
        return offset

    def write(self, offset: int, data: bytes) -> None:
        """Lay ``data`` over the draft. OSError when it cannot be kept; the draft is then as before."""
        self.extents.put(offset, len(data), self.staging.append(data))
        self.size = max(self.size, offset + len(data))

    def truncate(self, size: int) -> None:
        """Make the draft ``size`` bytes long; what a longer one gains are zeros."""
        if self.broken is not None and size <= self.broken[1]:
            self.broken = None
        if self.size < size <= self.base.horizon:
            self._widen()
        if size < self.base.size or size > self.size:
            self.truncated = True
        self.extents.cut(size)
        self.floor = min(self.floor, size)
        self.size = size

    def _widen(self) -> None:
        """The writer has touched what it was not sure to have read: then it has read that, and offsets count in it."""
        if not self.truncated and self.size == self.base.size:
            self.base = self.base._replace(size=self.base.horizon)
            self.size = self.floor = self.base.size

    def back_to_synced(self) -> bool:
        """Take a broken append back to what its writer was told is on the disk. Returns whether that can be done."""
        record = self.record
        if record is None or record.rewrite or self.rewriting:
            return False
        self.truncate(self.base.size + record.size - record.base)
        return self.dirty

    def read(self, store: Store, offset: int, size: int) -> bytes:
        """What the session's own agent sees at ``offset``."""
        end = min(offset + size, self.size)
        if offset >= end:
            return b""
        return b"".join(self._piece(store, *piece) for piece in self.extents.pieces(offset, end))

    def _piece(self, store: Store, start: int, end: int, position: int | None) -> bytes:
        if position is not None:
            return self.staging.read(position, end - start)
        below = min(end, self.floor)
        text = store.read(start, below - start) if start < below else b""
        return text.ljust(end - start, b"\0")

    def tail(self) -> Iterator[bytes]:
        """The appended bytes, in chunks of at most ``CHUNK``."""
        return self._chunks(self.base.size, self.size)

    def text(self, start: int) -> Iterator[bytes]:
        """The draft from ``start`` on, which must not be below ``floor``, in chunks of at most ``CHUNK``."""
        return self._chunks(start, self.size)

    def changes(self) -> Iterator[tuple[int, bytes]]:
        """Everything the session wrote, as (offset, bytes), in chunks of at most ``CHUNK``."""
        for extent in self.extents:
            for at in range(extent.start, extent.end, CHUNK):
                length = min(CHUNK, extent.end - at)
                yield at, self.staging.read(extent.position + at - extent.start, length)

    def rebase(self, base: Base) -> None:
        """Move an append behind a newer end of the mailbox."""
        distance = base.size - self.base.size
        self.extents.shift(distance)
        self.size += distance
        if self.broken is not None:
            self.broken = (self.broken[0], self.broken[1] + distance)
        self.floor = self.known = base.size
        self.base = base

    def _chunks(self, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, CHUNK):
            for piece in self.extents.pieces(at, min(end, at + CHUNK)):
                length = piece.end - piece.start
                if piece.position is None:
                    yield bytes(length)
                else:
                    yield self.staging.read(piece.position, length)

    def remains(self, store: Store | None) -> Iterator[bytes]:
        """What is worth rescuing: appended messages, or the whole text of a rewrite, in chunks.

        Args:
            store: the mailbox; None if it is gone or was rewritten, and with it what the session did not write itself.
        """
        if not self.rewriting:
            yield from self.tail()
        elif store is None:
            yield from (data for _, data in self.changes())
        else:
            for at in range(0, self.size, CHUNK):
                yield self.read(store, at, CHUNK)
        if self.record is not None and self.record.kept[1]:
            yield self.staging.read(*self.record.kept)  # newer mail that was to follow

    def describe(self) -> str:
        """For people: what it would do, and whose it is."""
        what, size = ("rewrite", self.size) if self.rewriting else ("append", self.appended)
        return f"{what} of {size} bytes by uid {self.requester.uid} {self.who}"

    @property
    def who(self) -> str:
        """Its writer, for people."""
        if self.record is not None:
            return self.record.who
        process = self.requester.process
        return f"{process.name}[{process.pid}]" if process else f"pid {self.requester.pid}"

    def close(self) -> None:
        """Drop what was staged."""
        self.staging.close()
