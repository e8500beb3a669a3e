"""Byte ranges of one lock owner, as fcntl(2) wants them.

What an owner holds is a sorted list of ranges that do not overlap; neighbours of one mode are
merged. Setting a range cuts a hole where it goes, keeps what sticks out on both sides, and puts the
new range in; unlocking is the same without the last step. Everything POSIX says of splitting,
merging, upgrades and downgrades follows from that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from mailfs.errors import Cause, Refused
from mailfs.locking.model import Mode

if TYPE_CHECKING:
    from collections.abc import Sequence

OFFSET_MAX = 2**63 - 1
"""The last byte of a range "to the end of the file", as the kernel sends it (linux/fs.h)."""

MAX_RANGES = 4096
"""Ranges of one owner on one file. fcntl(2) has ENOLCK for this; Linux lets a user fill memory."""


class Range(NamedTuple):
    """Bytes ``start`` to ``end``, both included."""

    start: int
    end: int
    mode: Mode


def carve(held: Sequence[Range], mode: Mode | None, start: int, end: int) -> list[Range]:
    """What an owner holds after setting ``start..end`` to ``mode`` (None: unlocked).

    Raises:
        Refused: TOO_MANY_WAITERS (ENOLCK) if that would be more than `MAX_RANGES` ranges.
    """
    pieces: list[Range] = []
    for piece in held:
        if piece.end < start or piece.start > end:
            pieces.append(piece)
            continue
        if piece.start < start:
            pieces.append(Range(piece.start, start - 1, piece.mode))
        if piece.end > end:
            pieces.append(Range(end + 1, piece.end, piece.mode))
    if mode is not None:
        pieces.append(Range(start, end, mode))
    pieces.sort()
    merged: list[Range] = []
    for piece in pieces:
        if merged and merged[-1].mode is piece.mode and merged[-1].end + 1 == piece.start:
            merged[-1] = Range(merged[-1].start, piece.end, piece.mode)
        else:
            merged.append(piece)
    if len(merged) > MAX_RANGES and len(merged) > len(held):
        raise Refused(Cause.TOO_MANY_WAITERS, f"more than {MAX_RANGES} byte ranges locked")
    return merged


def clash(held: Sequence[Range], mode: Mode, start: int, end: int) -> Range | None:
    """The first range of another owner that excludes a lock in ``mode`` on ``start..end``."""
    for piece in held:
        if piece.start <= end and piece.end >= start and piece.mode.conflicts(mode):
            return piece
    return None


def strongest(held: Sequence[Range]) -> Mode | None:
    """The mode that stands for everything held; None if nothing is held.

    Reading here and appending there excludes readers and appenders, so together it is writing.
    """
    modes = {piece.mode for piece in held}
    if len(modes) > 1:
        return Mode.WRITE
    return modes.pop() if modes else None
