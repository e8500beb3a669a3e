"""What the journal says of one draft: the header of a journal file (docs/journal.md).

A journal file is two places for a header, and behind them the draft's staging log as it was written::

    0      header, place 0      magic, generation, length, checksum, JSON
    2048   header, place 1
    4096   the staging log: the draft's bytes, the table of its extents, newer mail to keep behind it

A header is replaced by writing the *other* place with the next generation, so there is no moment at which a whole one
is not there; of two valid ones the later generation counts. The header carries the length and the checksum of the log,
so a record is whole or it is seen not to be.
"""

from __future__ import annotations

import enum
import struct
import zlib
from dataclasses import dataclass
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from mailfs.sessions.storage import FileState, Times  # noqa: TC001 -- msgspec asks for them

VERSION = 1
MAGIC = b"MAILFSJ%d" % VERSION
PLACE = 2048
"""Bytes of one header place; the longest header (a name of 255 bytes, all escaped) has about 1,300."""

DATA = 2 * PLACE
"""Where the staging log begins, bytes."""

_PREFIX = struct.Struct(">8sIII")


class State(enum.Enum):
    """How far the draft is; says what recovery does with it."""

    FREE = "free"
    """No draft: the file waits for its next use."""
    INTENT = "intent"
    """An append is being written; its writer has not been told of success. Undone."""
    SYNCED = "synced"
    """Its writer has called fsync under a lock of its own, and goes on. Whole messages are delivered, the rest goes to
    rescue."""
    PENDING = "pending"
    """Its writer has been told of success; it waits for its turn. Committed."""
    IMAGE = "image"
    """A program changes the mailbox by itself (``images``): this is what was there before. Restored."""
    COMMITTED = "committed"
    """It is being written to the mailbox and can be written again from the start. Finished."""


class Record(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The header of a journal file.

    Attributes:
        state: see `State`.
        mailbox: its name, percent-encoded.
        rewrite: bytes of the mailbox are overwritten or cut off; else it is an append.
        sequence: order in which drafts were journalled.
        boot: the boot id of the host when it was written; after another boot the page cache was lost.
        uid: whose draft it is.
        who: its writer, for people.
        base: size of the mailbox that the draft builds on, bytes.
        horizon: size of it that its writer may have seen at most, bytes.
        floor: bytes of the base that are still in the draft.
        size: of the draft, bytes.
        trusted: its writer held an exclusive lock, so nothing newer is merged.
        found: the mailbox as it was when the draft was journalled: inode, size, mtime in ns.
        last: checksum of the last bytes of it, of a rewrite only (`journalling.last_of`).
        owner: of the mailbox: uid, gid, permission bits, in case it must be made anew.
        at: end of the mailbox when the write began, bytes; of an append only.
        length: bytes of the staging log that belong to the record.
        table: where in the log the table of extents is, and how many there are.
        kept: where in the log the newer mail is that goes behind the draft, and its length.
        checksum: CRC-32 of the log.
        times: atime and mtime to be set afterwards, in ns.
        synced: its writer asked for fsync.

    """

    state: State
    mailbox: str = ""
    rewrite: bool = False
    sequence: int = 0
    boot: str = ""
    uid: int = 0
    who: str = ""
    base: int = 0
    horizon: int = 0
    floor: int = 0
    size: int = 0
    trusted: bool = False
    found: FileState | None = None
    last: int = 0
    owner: tuple[int, int, int] | None = None
    at: int = 0
    length: int = 0
    table: tuple[int, int] = (0, 0)
    kept: tuple[int, int] = (0, 0)
    checksum: int = 0
    times: Times | None = None
    synced: bool = False

    @property
    def name(self) -> bytes:
        """The mailbox's name."""
        return unquote_to_bytes(self.mailbox)


FREE = Record(state=State.FREE)


def escaped(name: bytes) -> str:
    """A mailbox's name as it stands in a record."""
    return quote_from_bytes(name)


@dataclass(frozen=True, slots=True)
class Damaged:
    """A header that cannot be read, and why."""

    why: str


def encode(record: Record, generation: int) -> bytes:
    """The bytes of one header place."""
    text = msgspec.json.encode(record)
    block = _PREFIX.pack(MAGIC, generation, len(text), _checksum(generation, text)) + text
    if len(block) > PLACE:
        raise ValueError("a header that long cannot be")
    return block


def _checksum(generation: int, text: bytes) -> int:
    return zlib.crc32(text, generation & 0xFFFFFFFF)


def decode(block: bytes) -> tuple[int, Record] | Damaged | None:
    """The generation and record in a header place; None if nothing was ever written there."""
    if not block.strip(b"\0"):
        return None
    if len(block) < _PREFIX.size:
        return Damaged("cut off")
    magic, generation, length, checksum = _PREFIX.unpack_from(block)
    if magic != MAGIC:
        if magic[:-1] == MAGIC[:-1]:
            return Damaged(f"of version {magic[-1:].decode(errors='replace')}, not {VERSION}")
        return Damaged("no journal file")
    text = block[_PREFIX.size : _PREFIX.size + length]
    if len(text) < length or _checksum(generation, text) != checksum:
        return Damaged("the header's checksum is wrong")
    try:
        return generation, msgspec.json.decode(text, type=Record)
    except msgspec.DecodeError as error:
        return Damaged(str(error))


def newest(header: bytes) -> tuple[int, Record] | Damaged:
    """What holds of the two places at the beginning of a journal file.

    A place that cannot be read beside a free one may have held a record, so the file counts as damaged. Beside another
    record it was that record's successor, or its writing was cut short: the record is used.
    """
    best, damaged = (0, FREE), None
    for at in (0, PLACE):
        found = decode(header[at : at + PLACE])
        if isinstance(found, Damaged):
            damaged = found
        elif found is not None and found[0] > best[0]:
            best = found
    if damaged is not None and best[1].state is State.FREE:
        return damaged
    return best
