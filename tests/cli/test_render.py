"""What is rendered: aligned, one line each, and safe whatever a name contains."""

from __future__ import annotations

import math
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.control.render import (
    HEADER,
    LockRow,
    Status,
    duration,
    locks_from_json,
    locks_json,
    locks_text,
    printable,
    status_from_json,
    status_json,
    status_text,
    unprintable,
)

ALICE = LockRow(
    mailbox="alice",
    state="held",
    mode="write",
    kind="dotlock",
    uid=1000,
    pid=4711,
    program="mutt",
    generation=3,
    age=3.24,
    idle=75,
    lease_left=61,
    detail="lock file",
)

STATUS = Status(
    version="0.1.0",
    spool="/srv/mail spool",
    mountpoint="/var/mail",
    pid=12,
    started=1e9,
    uptime=4000,
    mailboxes_known=1,
    claims=2,
    waiting=3,
    sessions=4,
    handles=5,
    readers="direct I/O (it needs root)",
    limits={"locks.lease": 60.0, "policy.scratch_bytes": 268435456},
)

names = st.binary(max_size=40).map(os.fsdecode)
strings = names | st.text(max_size=20)

rows = st.builds(
    LockRow,
    mailbox=names,
    state=st.sampled_from(["held", "waiting"]),
    program=names,
    detail=names,
    age=st.floats(0, 1e9),
    idle=st.floats(0, 1e9),
    lease_left=st.none() | st.floats(0, 1e9),
)


def test_the_table() -> None:
    bob = LockRow(
        mailbox="bob\n x",
        state="waiting",
        mode="append",
        kind="fcntl",
        uid=0,
        pid=1,
        program="",
        generation=0,
        age=0,
        idle=0,
    )
    lines = locks_text([ALICE, bob]).splitlines()
    assert lines[1].split()[:11] == (
        ["alice", "held", "write", "dotlock", "1000", "4711", "mutt", "3", "3.2s", "1m15s", "1m01s"]
    )
    assert lines[2].split() == (
        [
            r"bob\x0a\x20x",
            r"waiting",
            r"append",
            r"fcntl",
            r"0",
            r"1",
            r"-",
            r"0",
            r"0.0s",
            r"0.0s",
            r"-",
            r"-",
        ]
    )
    for title in ("STATE", "MODE", "PROGRAM", "DETAIL"):
        column = lines[0].index(title)
        assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_an_empty_table_has_its_header() -> None:
    assert locks_text([]).split() == list(HEADER)


@given(st.lists(rows, max_size=4))
def test_nothing_forges_a_line_or_a_column(table: list[LockRow]) -> None:
    lines = locks_text(table).splitlines()
    assert len(lines) == 1 + len(table)
    for line in lines:
        assert line.isascii()
        assert line.isprintable()
    for line in lines[1:]:
        assert len(line.split(maxsplit=11)) == 12


@given(st.lists(rows, max_size=4))
def test_json_reads_back(table: list[LockRow]) -> None:
    document = locks_json(table)
    assert document.isascii()
    assert locks_from_json(document.encode()) == table


@given(st.binary())
def test_names_read_back(name: bytes) -> None:
    assert unprintable(printable(name)) == os.fsdecode(name)
    assert unprintable(printable(name, spaces=True)) == os.fsdecode(name)
    assert " " not in printable(name)


@given(strings, strings)
def test_different_names_are_written_differently(one: str, other: str) -> None:
    assert (printable(one) == printable(other)) == (one == other)


def test_strange_strings_are_written() -> None:
    assert printable("\ud800") == r"\xed\xa0\x80"
    assert printable("m\N{LATIN SMALL LETTER U WITH DIAERESIS}ller") == r"m\xc3\xbcller"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0s"),
        (0.44, "0.4s"),
        (9.96, "10s"),
        (59.4, "59s"),
        (59.6, "1m00s"),
        (185, "3m05s"),
        (3600, "1h00m"),
        (93600, "1d02h"),
        (-5, "0.0s"),
        (math.inf, "?"),
        (math.nan, "?"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_status() -> None:
    assert status_text(STATUS).splitlines() == [
        "version: 0.1.0",
        r"spool: /srv/mail\x20spool",
        "mountpoint: /var/mail",
        "pid: 12",
        "started: 2001-09-09 01:46:40+00:00",
        "uptime: 1h06m",
        "mailboxes known: 1",
        "claims: 2",
        "waiting: 3",
        "sessions: 4",
        "handles: 5",
        "readers: direct I/O (it needs root)",
        "limit locks.lease: 60",
        "limit policy.scratch_bytes: 268435456",
    ]
    assert status_from_json(status_json(STATUS).encode()) == STATUS
