"""The journal on disk: its files are used again, and what cannot be read is kept apart."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from mailfs.sessions.record import DATA, PLACE, Damaged, Record, State
from mailfs.spool import journal as module
from mailfs.spool.journal import ROOM, SPARE, JournalDirectory, look
from mailfs.spool.private import PrivateDirectory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from mailfs.spool.door import Door

PENDING = Record(state=State.PENDING, mailbox="alice", sequence=5)


@pytest.fixture
def private(door: Door) -> Iterator[PrivateDirectory]:
    private = PrivateDirectory(door)
    yield private
    private.close()


@pytest.fixture
def journal(door: Door, private: PrivateDirectory) -> Iterator[JournalDirectory]:
    journal = JournalDirectory(door)
    yield journal
    journal.close()


def files(spool: Path) -> list[str]:
    return sorted(os.listdir(spool / ".mailfs/journal"))


def test_a_file_is_used_again(journal: JournalDirectory, spool: Path) -> None:
    journal.prepare()
    slot = journal.slot()
    slot.write(0, b"x" * (ROOM + 5000))
    slot.mark(PENDING)
    slot.close()
    (name,) = files(spool)
    assert (spool / ".mailfs/journal" / name).stat().st_size == DATA + ROOM
    again = journal.slot()
    assert again is slot
    assert again.header() == (2, Record(state=State.FREE))
    again.close()
    journal.close()
    assert files(spool) == []


def test_only_some_are_kept_in_reserve(journal: JournalDirectory, spool: Path) -> None:
    slots = [journal.slot() for _ in range(SPARE + 3)]
    for slot in slots:
        slot.close()
    assert len(files(spool)) == SPARE


def test_what_is_left_comes_in_order(door: Door, journal: JournalDirectory) -> None:
    for sequence in (9, 3, 7):
        slot = journal.slot()
        slot.write(0, b"%d" % sequence)
        slot.mark(Record(state=State.PENDING, mailbox="alice", sequence=sequence))
        slot.leave()
    journal.close()
    looked = list(look(door))
    for file, _ in looked:
        file.leave()
    after = JournalDirectory(door)
    left = after.left()
    headers = [header for _, header in left]
    assert headers == [header for _, header in looked]
    assert [h.sequence for h in headers if isinstance(h, Record)] == [3, 7, 9]
    assert [file.read(0, 9) for file, _ in left] == [b"3", b"7", b"9"]
    assert after.sequence() == 10
    fresh = after.slot()
    assert fresh.name not in [file.name for file, _ in left]
    for file, _ in left:
        file.close()
    fresh.close()
    after.close()


def test_a_damaged_file_goes_to_rescue(
    door: Door, private: PrivateDirectory, journal: JournalDirectory, spool: Path
) -> None:
    slot = journal.slot()
    slot.write(0, b"mail")
    slot.mark(PENDING)
    slot.leave()
    path = spool / ".mailfs/journal" / slot.name.decode()
    text = bytearray(path.read_bytes())
    text[PLACE + 40] ^= 1
    path.write_bytes(text)
    ((file, header),) = JournalDirectory(door).left()
    assert isinstance(header, Damaged)
    assert private.keep_damaged(file.name)
    file.leave()
    assert files(spool) == []
    (kept,) = (spool / ".mailfs/rescue").iterdir()
    assert kept.read_bytes() == text
    assert not private.keep_damaged(file.name)


def test_no_room_for_a_file(
    journal: JournalDirectory, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    journal.prepare()
    monkeypatch.setattr(module, "allocate", full)
    slot = journal.slot()
    with pytest.raises(OSError, match="full"):
        journal.slot()
    assert files(spool) == [slot.name.decode()]
    slot.close()


def test_a_record_that_cannot_be_removed_keeps_the_journal_shut(
    door: Door, journal: JournalDirectory, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would undo what is written afterwards."""

    def broken(*_: object) -> int:
        raise OSError(errno.EIO, "broken")

    slot = journal.slot()
    slot.mark(PENDING)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_all", broken)
        patch.setattr(door, "unlink", broken)
        slot.close()
        with pytest.raises(OSError, match="broken"):
            journal.slot()
    assert files(spool) == [slot.name.decode()]
    journal.slot().close()
    assert slot.name.decode() not in files(spool)


def test_other_names_are_no_journal_files(
    door: Door, journal: JournalDirectory, spool: Path
) -> None:
    (spool / ".mailfs/journal/notes").write_text("mine")
    assert journal.left() == []
    assert list(look(door)) == []
