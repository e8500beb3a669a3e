"""The header of a journal file: whole, or seen not to be."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.sessions.record import (
    DATA,
    FREE,
    MAGIC,
    PLACE,
    Damaged,
    Record,
    State,
    decode,
    encode,
    escaped,
    newest,
)
from mailfs.sessions.storage import FileState, Times

NUMBERS = st.integers(0, 1 << 62)
NAMES = st.binary(min_size=1, max_size=255)
RECORDS = st.builds(
    Record,
    state=st.sampled_from(State),
    mailbox=NAMES.map(escaped),
    rewrite=st.booleans(),
    sequence=NUMBERS,
    boot=st.uuids().map(str),
    uid=st.integers(0, (1 << 32) - 1),
    who=st.text(max_size=20),
    base=NUMBERS,
    horizon=NUMBERS,
    floor=NUMBERS,
    size=NUMBERS,
    trusted=st.booleans(),
    found=st.none() | st.builds(FileState, NUMBERS, NUMBERS, NUMBERS),
    last=st.integers(0, (1 << 32) - 1),
    owner=st.none() | st.tuples(NUMBERS, NUMBERS, st.integers(0, 0o7777)),
    at=NUMBERS,
    length=NUMBERS,
    table=st.tuples(NUMBERS, NUMBERS),
    kept=st.tuples(NUMBERS, NUMBERS),
    checksum=st.integers(0, (1 << 32) - 1),
    times=st.none() | st.builds(Times, st.none() | NUMBERS, NUMBERS),
    synced=st.booleans(),
)
ONE = Record(state=State.PENDING, mailbox="alice", sequence=1)
TWO = Record(state=State.COMMITTED, mailbox="alice", sequence=1, at=7)


def place(record: Record, generation: int) -> bytes:
    return encode(record, generation).ljust(PLACE, b"\0")


@given(RECORDS, st.integers(1, (1 << 32) - 1))
def test_a_record_is_read_as_it_was_written(record: Record, generation: int) -> None:
    assert decode(place(record, generation)) == (generation, record)


def test_the_longest_name_has_room() -> None:
    name = b"\xff" * 255
    most = 1 << 62
    record = Record(
        state=State.COMMITTED, mailbox=escaped(name), who="x" * 15 + "[4194304]", boot="b" * 36, uid=1 << 31,
        sequence=most, base=most, horizon=most, floor=most, size=most, at=most, length=most, rewrite=True,
        found=FileState(most, most, most), last=1 << 31, table=(most, most), kept=(most, most), checksum=1 << 31,
        times=Times(most, most), owner=(1 << 31, 1 << 31, 0o7777), synced=True, trusted=True,
    )  # fmt: skip
    assert len(encode(record, (1 << 32) - 1)) < PLACE
    assert record.name == name


@pytest.mark.parametrize("name", [b"\n", b"a\0b", b"%41", b'"\\', b"\xc3("])
def test_a_strange_name_comes_back(name: bytes) -> None:
    found = decode(place(Record(state=State.PENDING, mailbox=escaped(name)), 1))
    assert isinstance(found, tuple)
    assert found[1].name == name


def test_what_was_never_written_is_free() -> None:
    assert newest(b"") == newest(bytes(DATA)) == (0, FREE)


def test_the_later_of_two_holds() -> None:
    assert newest(place(TWO, 2) + place(ONE, 1)) == (2, TWO)
    assert newest(place(ONE, 4) + place(FREE, 5)) == (5, FREE)


@pytest.mark.parametrize("length", range(len(encode(TWO, 2))))
def test_a_header_cut_short_leaves_the_one_before(length: int) -> None:
    """Wherever the writing over an older generation ended: the newer one is there, or the one before."""
    older = place(ONE, 0xFFFF)  # longer numbers, other bytes
    torn = encode(TWO, 2)[:length] + older[length:]
    assert newest(torn + place(ONE, 1)) in ((1, ONE), (2, TWO), (0xFFFF, ONE))
    alone = newest(encode(TWO, 2)[:length].ljust(PLACE, b"\0") + bytes(PLACE))
    assert isinstance(alone, Damaged) if length else alone == (0, FREE)


@given(st.integers(0, len(encode(TWO, 2)) * 8 - 1))
def test_no_flipped_bit_is_overlooked(bit: int) -> None:
    text = bytearray(encode(TWO, 2))
    text[bit // 8] ^= 1 << bit % 8
    assert isinstance(decode(bytes(text)), Damaged)
    assert newest(bytes(text).ljust(PLACE, b"\0") + place(ONE, 1)) == (1, ONE)
    assert isinstance(newest(bytes(text).ljust(PLACE, b"\0") + place(FREE, 1)), Damaged)


def test_another_version_is_not_guessed_at() -> None:
    other = MAGIC[:-1] + b"2" + encode(TWO, 2)[len(MAGIC) :]
    found = newest(other.ljust(PLACE, b"\0") + bytes(PLACE))
    assert isinstance(found, Damaged)
    assert "version 2" in found.why


@given(st.binary(max_size=DATA))
def test_anything_else_is_damage(text: bytes) -> None:
    found = newest(text)
    assert isinstance(found, Damaged) or found == (0, FREE)
