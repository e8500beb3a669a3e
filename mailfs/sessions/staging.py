"""The staging log of one session: bytes in memory, moved to a file when they become many."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.sessions.storage import Spill


class Staging:
    """An append-only byte log.

    Args:
        limit: bytes kept in memory before everything moves to a file.
        spill: makes that file; may raise OSError (ENOSPC, EDQUOT), which reaches the client's write().

    """

    def __init__(self, limit: int, spill: Callable[[], Spill]) -> None:
        self._limit = limit
        self._make_spill = spill
        self._memory = bytearray()
        self._spill: Spill | None = None
        self.size = 0

    def append(self, data: bytes) -> int:
        """Keep ``data``; returns its position in the log."""
        position = self.size
        if self._spill is None and position + len(data) > self._limit:
            spill = self._make_spill()
            try:
                spill.write(0, bytes(self._memory))
            except OSError:
                spill.close()
                raise
            self._spill = spill
            self._memory.clear()
        if self._spill is None:
            self._memory += data
        else:
            self._spill.write(position, data)
        self.size = position + len(data)
        return position

    def read(self, position: int, size: int) -> bytes:
        """``size`` bytes from ``position`` on."""
        if self._spill is None:
            return bytes(self._memory[position : position + size])
        return self._spill.read(position, size)

    def close(self) -> None:
        """Drop the log."""
        self._memory.clear()
        if self._spill is not None:
            self._spill.close()
            self._spill = None
