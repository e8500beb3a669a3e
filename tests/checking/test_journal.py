"""What a dead daemon has left in the journal, as `mailfs check` tells it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from mailfs.checking.findings import Finding, Kind, Severity
from mailfs.checking.holders import Holders
from mailfs.checking.state import state_findings
from mailfs.locking.model import Requester
from mailfs.sessions.journalling import enter
from mailfs.sessions.record import State
from mailfs.sessions.session import Base, Session
from mailfs.sessions.staging import Staging
from mailfs.spool.door import Door
from mailfs.spool.journal import JournalDirectory
from mailfs.spool.mailbox_file import MailboxFile
from mailfs.spool.private import PrivateDirectory
from tests.checking.test_mailbox import WHOLE

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

N = len(WHOLE)


@pytest.fixture
def spool(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "alice").write_bytes(WHOLE)
    os.utime(tmp_path / "alice", (1000, 2000))
    return tmp_path


@pytest.fixture
def door(spool: pathlib.Path) -> Iterator[Door]:
    with Door.at(str(spool)) as door:
        PrivateDirectory(door).close()
        yield door


def leave(door: Door, state: State, *, name: bytes = b"alice") -> bytes:
    """Journal an append of `WHOLE`, as a daemon that is about to die; gives the journal file's name."""
    journal = JournalDirectory(door)
    slot = journal.slot()
    session = Session(Requester(None, 7, 0), Base(0, N, N), Staging(0, lambda: slot))
    session.write(N, WHOLE)
    enter(session, state, name, MailboxFile(door, (name,)), journal, at=N, synced=False)
    slot.leave()
    return slot.name


def records(door: Door) -> list[Finding]:
    return [f for f in state_findings(door, Holders.now()) if f.kind is Kind.JOURNAL]


@pytest.mark.parametrize(
    ("state", "written", "severity", "does"),
    [
        (State.PENDING, 0, Severity.SUSPICIOUS, "commit"),
        (State.SYNCED, 0, Severity.SUSPICIOUS, "commit"),
        (State.INTENT, 0, Severity.INFORMATION, "nothing to do"),
        (State.INTENT, 10, Severity.SUSPICIOUS, "cut back"),
        (State.COMMITTED, 10, Severity.SUSPICIOUS, "finish"),
        (State.COMMITTED, N, Severity.INFORMATION, "nothing to do"),
    ],
)
def test_what_recovery_would_do(
    spool: pathlib.Path, door: Door, state: State, written: int, severity: Severity, does: str
) -> None:
    leave(door, state)
    with (spool / "alice").open("ab") as file:
        file.write(WHOLE[:written])
    os.utime(spool / "alice", (1000, 2000))
    (finding,) = records(door)
    assert finding.severity is severity
    assert f"alice: {state.value} append, " in finding.detail
    assert f"of uid 7; recovery: {does}: " in finding.detail
    assert (spool / "alice").stat().st_atime == 1000


def test_a_damaged_record_is_damage(spool: pathlib.Path, door: Door) -> None:
    name = leave(door, State.PENDING)
    path = spool / ".mailfs" / "journal" / os.fsdecode(name)
    kept = path.read_bytes()
    path.write_bytes(kept[:4096] + b"x" + kept[4097:])
    assert [(f.severity, "rescue" in f.detail) for f in records(door)] == [(Severity.DAMAGE, True)]
    path.write_bytes(b"x" * 5000)
    assert [(f.severity, "rescue" in f.detail) for f in records(door)] == [(Severity.DAMAGE, True)]


def test_a_daemons_work_is_none_of_ours(door: Door) -> None:
    leave(door, State.INTENT)
    private = PrivateDirectory(door)
    assert [(f.severity, "recovery" in f.detail) for f in records(door)] == [
        (Severity.INFORMATION, False)
    ]
    private.close()


def test_an_empty_journal_is_not_worth_a_word(door: Door) -> None:
    journal = JournalDirectory(door)
    journal.prepare()
    assert records(door) == []
    journal.close()
    assert records(door) == []
