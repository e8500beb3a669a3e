"""Where a session's bytes lie: offsets in its view mapped to positions in its staging log.

The log only grows; a later write of the same bytes takes their place in the map, not in the log. Neighbours that
continue each other in the view *and* in the log are one extent, so a mailbox rewritten in a million small writes is
still a single entry.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Extent(NamedTuple):
    """Bytes [start, end) of the view, found at ``position`` of the staging log."""

    start: int
    end: int
    position: int


class Piece(NamedTuple):
    """Bytes [start, end) of the view; ``position`` is None where the session wrote nothing."""

    start: int
    end: int
    position: int | None


class Extents:
    """A sorted list of extents that do not overlap."""

    def __init__(self, extents: Iterable[Extent] = ()) -> None:
        self._extents = list(extents)

    def __iter__(self) -> Iterator[Extent]:
        return iter(self._extents)

    def __len__(self) -> int:
        return len(self._extents)

    @property
    def lowest(self) -> int | None:
        """The first byte written, None when there is none."""
        return self._extents[0].start if self._extents else None

    def put(self, start: int, length: int, position: int) -> None:
        """Say that ``length`` bytes from ``start`` on now lie at ``position`` of the log."""
        if length <= 0:
            return
        new = Extent(start, start + length, position)
        extents = self._extents
        if extents:
            last = extents[-1]
            if last.end == start and last.position + (last.end - last.start) == position:
                extents[-1] = Extent(last.start, new.end, last.position)
                return
        first, behind = self._overlapping(new.start, new.end)
        covered = extents[first:behind]
        left = [Extent(e.start, start, e.position) for e in covered if e.start < start]
        right = [
            Extent(new.end, e.end, e.position + new.end - e.start)
            for e in covered
            if e.end > new.end
        ]
        extents[first:behind] = [*left, new, *right]

    def cut(self, size: int) -> None:
        """Forget everything at ``size`` and behind it."""
        index = bisect_left(self._extents, size, key=lambda extent: extent.start)
        del self._extents[index:]
        if index and self._extents[-1].end > size:
            last = self._extents[-1]
            self._extents[-1] = Extent(last.start, size, last.position)

    def shift(self, distance: int) -> None:
        """Move the whole map: an append is rebased when its base changed under it."""
        self._extents = [Extent(e.start + distance, e.end + distance, e.position) for e in self]

    def pieces(self, start: int, end: int) -> Iterator[Piece]:
        """What the view consists of between two offsets, in order and without gaps."""
        at = start
        first, behind = self._overlapping(start, end)
        for extent in self._extents[first:behind]:
            low, high = max(extent.start, start), min(extent.end, end)
            if low >= high:
                continue
            if at < low:
                yield Piece(at, low, None)
            yield Piece(low, high, extent.position + low - extent.start)
            at = high
        if at < end:
            yield Piece(at, end, None)

    def _overlapping(self, start: int, end: int) -> tuple[int, int]:
        first = bisect_right(self._extents, start, key=lambda extent: extent.end)
        behind = bisect_left(self._extents, end, lo=first, key=lambda extent: extent.start)
        return first, behind
