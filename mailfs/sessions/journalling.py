"""Drafts into the journal, and out of it again."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING

import msgspec

from mailfs.locking.model import Requester
from mailfs.sessions.extents import Extent, Extents
from mailfs.sessions.merge import SEPARATOR
from mailfs.sessions.record import Record, State, escaped
from mailfs.sessions.session import CHUNK, Base, Session
from mailfs.sessions.staging import Staging

if TYPE_CHECKING:
    from mailfs.sessions.storage import Journal, Slot, Store


LAST = 4096
"""Bytes at the end of a mailbox that `last_of` looks at."""

_EXTENT = struct.Struct(">QQQ")  # start, end, position: one entry of the table of extents


def enter(
    session: Session,
    state: State,
    name: bytes,
    store: Store,
    journal: Journal,
    *,
    at: int = 0,
    kept: bytes = b"",
    synced: bool,
) -> Record:
    """Write a draft to the journal, or its next state; returns what stands there now.

    Args:
        session: the draft.
        state: what it is from now on.
        name: of its mailbox.
        store: its mailbox.
        journal: gives boot id and sequence.
        at: where an append is about to be written, bytes.
        kept: newer mail that goes behind a rewrite.
        synced: the caller is about to sync it.

    Raises:
        OSError: it is not in the journal, or still in its former state.

    """
    staging = session.staging
    slot = staging.slot()
    extents = list(session.extents)
    table = staging.append(pack_extents(extents)), len(extents)
    tail = (staging.append(kept) if kept else 0), len(kept)
    former, found = session.record, store.state()
    record = Record(
        state=state,
        mailbox=escaped(name),
        rewrite=session.rewriting,
        sequence=former.sequence if former is not None else journal.sequence(),
        boot=journal.boot,
        uid=session.requester.uid,
        who=session.who,
        base=session.known if session.rewriting else session.base.size,
        horizon=session.base.horizon,
        floor=session.floor,
        size=session.size,
        trusted=session.trusted,
        found=found,
        last=last_of(store, found.size) if session.rewriting and found is not None else 0,
        owner=store.owner,
        at=at,
        length=staging.size,
        table=table,
        kept=tail,
        checksum=staging.checksum,
        times=session.times,
        synced=synced,
    )
    slot.mark(record)
    session.record = record
    return record


def last_of(store: Store, end: int) -> int:
    """A checksum of the last bytes of a mailbox before ``end``. Raises OSError.

    By it recovery sees whether a mailbox that was to be cut is as it was.
    """
    start = max(0, end - LAST)
    return zlib.crc32(store.read(start, end - start))


def withdraw(session: Session, state: State) -> None:
    """Put the record of a draft back to an earlier state. Raises OSError."""
    if session.record is not None:
        record = msgspec.structs.replace(session.record, state=state)
        session.staging.slot().mark(record)
        session.record = record


def recovered(slot: Slot, record: Record) -> Session:
    """The draft of a record that an earlier daemon wrote; of one that is not whole it is not all. Raises OSError."""
    position, count = record.table
    extents = unpack_extents(slot.read(position, count * _EXTENT.size))
    session = Session(
        Requester(None, record.uid, 0),
        Base(0, record.base, record.horizon),
        Staging.recovered(slot, record.length, record.checksum),
    )
    session.extents = Extents(extents)
    session.size, session.floor = record.size, record.floor
    session.truncated = record.rewrite
    session.times, session.synced = record.times, record.synced
    session.record = record
    return session


def is_whole(slot: Slot, record: Record) -> bool:
    """Whether the log is what it was when the record was written. Raises OSError."""
    checksum = at = 0
    while at < record.length:
        data = slot.read(at, min(CHUNK, record.length - at))
        if not data:
            return False
        checksum = zlib.crc32(data, checksum)
        at += len(data)
    return checksum == record.checksum


def is_mail(session: Session) -> bool:
    """Whether a draft is an append of whole messages, as far as can be told: a separator first, an end of line last."""
    if session.rewriting or not session.appended:
        return False
    first = last = b""
    for chunk in session.tail():
        first = first or chunk[: len(SEPARATOR)]
        last = chunk[-1:]
        if b"\0" in chunk:
            return False
    return first == SEPARATOR and last == b"\n"


def pack_extents(extents: list[Extent]) -> bytes:
    """The table of extents as it stands in the log."""
    return b"".join(_EXTENT.pack(*extent) for extent in extents)


def unpack_extents(table: bytes) -> list[Extent]:
    """The reverse of `pack_extents`."""
    whole = len(table) - len(table) % _EXTENT.size
    return [Extent(*each) for each in _EXTENT.iter_unpack(table[:whole])]
