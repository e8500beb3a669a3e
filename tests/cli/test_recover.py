"""``mailfs recover``: what a dead daemon left, told of and brought to an end."""

from __future__ import annotations

import fcntl
import json
import os
from typing import TYPE_CHECKING

import pytest

from mailfs.cli.main import main
from mailfs.daemon.errors import Exit
from mailfs.locking.model import Requester
from mailfs.sessions.journalling import enter
from mailfs.sessions.record import State
from mailfs.sessions.session import Base, Session
from mailfs.sessions.staging import Staging
from mailfs.spool.door import Door
from mailfs.spool.journal import JournalDirectory
from mailfs.spool.mailbox_file import MailboxFile
from mailfs.spool.private import PrivateDirectory
from tests.support.mbox import message, verify_mbox

if TYPE_CHECKING:
    from pathlib import Path

A, B = message("a", 0), message("b", 0)


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """A spool with a message in alice's mailbox."""
    (tmp_path / "alice").write_bytes(A)
    return tmp_path


def journalled(spool: Path, state: State, text: bytes = B) -> Path:
    """Leave an append in the journal, as a daemon that is killed does. Gives its file."""
    with Door.at(str(spool)) as door:
        private, journal = PrivateDirectory(door), JournalDirectory(door)
        store = MailboxFile(door, (b"alice",))
        found = store.state()
        assert found is not None
        base = Base(0, found.size, found.size)
        session = Session(Requester(None, os.geteuid(), 0), base, Staging(0, journal.slot))
        session.write(found.size, text)
        enter(session, state, b"alice", store, journal, at=found.size, synced=False)
        session.staging.leave()
        store.rest()
        private.close()
    return max((spool / ".mailfs/journal").iterdir())


def everything(spool: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in spool.rglob("*") if path.is_file()}


def recover(*arguments: str) -> int:
    return main(["recover", "--wait", "0.5", *arguments])


def test_a_dry_run_changes_nothing(spool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journalled(spool, State.PENDING)
    before = everything(spool)
    assert recover("--dry-run", str(spool)) == Exit.OK
    told = capsys.readouterr().out
    assert "alice  commit  its writer was told of success" in told
    assert everything(spool) == before


def test_what_was_acknowledged_is_committed(
    spool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journalled(spool, State.PENDING)
    journalled(spool, State.PENDING, message("b", 1))
    assert recover("--json", str(spool)) == Exit.OK
    report = json.loads(capsys.readouterr().out)
    assert [record["action"] for record in report["records"]] == ["commit", "commit"]
    assert report["left"] == []
    verify_mbox((spool / "alice").read_bytes(), ["a-0", "b-0", "b-1"])
    assert recover(str(spool)) == Exit.OK
    assert "Nothing is left" in capsys.readouterr().out
    assert list((spool / ".mailfs/journal").iterdir()) == []


def test_half_an_append_is_cut_back(spool: Path) -> None:
    journalled(spool, State.INTENT)
    with (spool / "alice").open("ab") as file:
        file.write(B[:40])
    assert recover(str(spool)) == Exit.OK
    assert (spool / "alice").read_bytes() == A


def test_a_damaged_journal_changes_no_mailbox(spool: Path) -> None:
    path = journalled(spool, State.PENDING)
    damaged = path.read_bytes().replace(b"pending", b"pEnding")
    path.write_bytes(damaged)
    assert recover(str(spool)) == Exit.OK
    assert (spool / "alice").read_bytes() == A
    (kept,) = (spool / ".mailfs/rescue").iterdir()
    assert kept.read_bytes() == damaged


def test_a_mailbox_that_is_locked_waits(spool: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journalled(spool, State.PENDING)
    (spool / "alice.lock").write_text("somebody else's\n")
    assert recover(str(spool)) == Exit.TEMPFAIL
    assert "alice" in capsys.readouterr().err
    assert (spool / "alice").read_bytes() == A
    (spool / "alice.lock").unlink()
    assert recover(str(spool)) == Exit.OK
    assert (spool / "alice").read_bytes() == A + B


def test_a_spool_that_is_served_is_left_alone(
    spool: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    journalled(spool, State.PENDING)
    with (spool / ".mailfs/daemon.lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert recover(str(spool)) == Exit.TEMPFAIL
    assert "another mailfs" in capsys.readouterr().err
    assert (spool / "alice").read_bytes() == A


def test_no_spool(tmp_path: Path) -> None:
    assert recover("--dry-run", str(tmp_path / "none")) == Exit.NOINPUT
