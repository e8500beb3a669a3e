"""The staging log of one session: bytes in memory, kept in a journal file when they become many or must survive us."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.sessions.storage import Slot


class Staging:
    """An append-only byte log.

    Args:
        limit: bytes kept in memory before everything moves to a file.
        make_slot: takes a journal file for it; may raise OSError (ENOSPC, EDQUOT), which reaches the client's write().

    """

    def __init__(self, limit: int, make_slot: Callable[[], Slot]) -> None:
        self._limit = limit
        self._make_slot = make_slot
        self._memory = bytearray()
        self._slot: Slot | None = None
        self.size = 0
        self.checksum = 0  # CRC-32 of all of it

    @classmethod
    def recovered(cls, slot: Slot, size: int, checksum: int) -> Staging:
        """The log of a journal file that an earlier daemon wrote."""
        staging = cls(0, lambda: slot)
        staging._slot = slot
        staging.size, staging.checksum = size, checksum
        return staging

    def append(self, data: bytes) -> int:
        """Keep ``data``; returns its position in the log. OSError when it cannot be kept: the log is as before."""
        position = self.size
        if self._slot is None and position + len(data) > self._limit:
            self.slot()
        if self._slot is not None:
            self._slot.write(position, data)
            if len(self._memory) + len(data) > self._limit:
                self._memory.clear()
        if len(self._memory) == position:
            self._memory += data
        self.size = position + len(data)
        self.checksum = zlib.crc32(data, self.checksum)
        return position

    def read(self, position: int, size: int) -> bytes:
        """``size`` bytes from ``position`` on."""
        if self._slot is None or position + size <= len(self._memory):
            return bytes(self._memory[position : position + size])
        return self._slot.read(position, size)

    def slot(self) -> Slot:
        """The journal file that holds the log, from now on all of it. Raises OSError."""
        if self._slot is None:
            slot = self._make_slot()
            try:
                if self._memory:
                    slot.write(0, bytes(self._memory))
            except OSError:
                slot.close()
                raise
            self._slot = slot
        return self._slot

    def leave(self) -> None:
        """Forget the log, but not its journal file: the record there stays."""
        self._memory.clear()
        if self._slot is not None:
            self._slot.leave()
            self._slot = None

    def close(self, *, synced: bool = False) -> None:
        """Drop the log; ``synced``: that it is not needed any more must be on the disk, too."""
        self._memory.clear()
        if self._slot is not None:
            self._slot.close(synced=synced)
            self._slot = None
