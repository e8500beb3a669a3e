"""A spool of real files: names, lock files, state, a mailbox in use; and the command line."""

from __future__ import annotations

import fcntl
import json
import os
import pathlib
import pwd
import re
import socket
import subprocess
import sys
import time
from typing import Any

import pytest

from mailfs.checking import spool as checking
from mailfs.checking.findings import Finding, Kind, Severity
from mailfs.checking.spool import Checked, SpoolCheck
from mailfs.cli.main import main
from mailfs.daemon import mountinfo
from mailfs.daemon.errors import Exit
from mailfs.spool.door import Door
from mailfs.spool.private import PrivateDirectory
from tests.checking.test_mailbox import HEAD, WHOLE

HOST = socket.gethostname()
STRANGER = 4_000_000_000  # a uid that no account has
NAMES = (b"a\nb", b"\x1b[31m", b"\xff" * 255, b"-", b"--json", b" ")


@pytest.fixture
def spool(tmp_path: pathlib.Path) -> pathlib.Path:
    directory = tmp_path / "spool"
    directory.mkdir()
    (directory / "alice").write_bytes(WHOLE)
    (directory / "alice").chmod(0o600)
    return directory


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait(timeout=30)
    return child.pid


def run(spool: pathlib.Path, *names: bytes, mounted: bool = False) -> dict[bytes | None, Checked]:
    with Door.at(str(spool)) as door:
        results = SpoolCheck(door, host=HOST, mounted=mounted).run(names)
        return {checked.name: checked for checked in results}


def found(spool: pathlib.Path, name: bytes | None) -> list[Finding]:
    return run(spool)[name].findings


def kinds(spool: pathlib.Path, name: bytes | None = b"alice") -> list[tuple[Kind, Severity]]:
    return [(finding.kind, finding.severity) for finding in found(spool, name)]


def snapshot(spool: pathlib.Path) -> dict[str, object]:
    """All that must not change."""
    return {
        str(path): (stat.st_ino, stat.st_mode, stat.st_size, stat.st_atime_ns, stat.st_mtime_ns,
                    stat.st_ctime_ns)
        for path in [spool, *spool.rglob("*")]
        for stat in [path.lstat()]
    }  # fmt: skip


def test_a_spool_in_order(spool: pathlib.Path) -> None:
    assert kinds(spool) == []
    assert main(["check", "--strict", str(spool)]) == 0


def test_nothing_is_changed_not_even_the_time_of_access(spool: pathlib.Path) -> None:
    with Door.at(str(spool)) as door:
        PrivateDirectory(door).close()
    (spool / "bob").write_bytes(b"half")
    (spool / "bob.lock").write_text("1")
    (spool / ".mailfs" / "rescue" / "x").write_text("mail")
    for path in (spool / "alice", spool / "bob", spool / "bob.lock"):
        os.utime(path, (1000, 2000))  # unread mail: a read would move the access time
    before = {path: kept for path, kept in snapshot(spool).items() if not (spool / path).is_dir()}
    run(spool)
    after = snapshot(spool)
    lock = str(spool / "bob.lock")
    assert {path: after[path] for path in before if path != lock} == {
        path: kept for path, kept in before.items() if path != lock
    }
    assert set(os.listdir(spool)) == {"alice", "bob", "bob.lock", ".mailfs"}


def test_owner_mode_and_links(spool: pathlib.Path) -> None:
    alice = spool / "alice"
    os.chown(alice, STRANGER, -1)
    alice.chmod(0o4606)
    (spool / "twin").hardlink_to(alice)
    expected = {Kind.LINKS, Kind.SET_ID, Kind.WORLD_WRITABLE, Kind.NO_ACCOUNT}
    assert set(kinds(spool)) == {(kind, Severity.SUSPICIOUS) for kind in expected}


def test_what_is_no_file_is_neither_followed_nor_waited_for(spool: pathlib.Path) -> None:
    (spool / "link").symlink_to("alice")
    os.mkfifo(spool / "pipe")
    (spool / "Maildir").mkdir()
    (spool / "Maildir" / "x").write_text("not looked at")
    results = run(spool)
    for name in (b"link", b"pipe"):
        assert [f.kind for f in results[name].findings] == [Kind.NOT_A_FILE]
        assert not results[name].is_mailbox
    assert results[b"Maildir"].findings == []
    assert run(spool, b"link")[b"link"].findings == results[b"link"].findings


@pytest.mark.parametrize(
    "name", [".lk12345avm", "_abc.defgh.vm", ".alice.swp", ".mailfs-vm.1.2.abc"]
)
def test_temporary_files(spool: pathlib.Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (spool / name).write_text("0")
    assert kinds(spool, name.encode()) == [(Kind.TEMPORARY, Severity.INFORMATION)]
    monkeypatch.setattr(checking, "ABANDONED", -1.0)
    assert kinds(spool, name.encode()) == [(Kind.TEMPORARY, Severity.SUSPICIOUS)]


def test_a_lock_file_of_a_dead_process_is_stale(spool: pathlib.Path, dead_pid: int) -> None:
    lock = spool / "alice.lock"
    lock.write_text(f"{dead_pid}:{HOST}")
    assert kinds(spool, b"alice.lock") == [(Kind.LOCK_STALE, Severity.SUSPICIOUS)]
    lock.write_text(f"{os.getpid()}:{HOST}")
    assert kinds(spool, b"alice.lock") == [(Kind.LOCK_LIVE, Severity.INFORMATION)]
    lock.write_text(f"{dead_pid}:elsewhere")
    assert kinds(spool, b"alice.lock") == [(Kind.LOCK_LIVE, Severity.INFORMATION)]


def test_a_lock_file_without_a_holder_is_stale_by_age_and_kernel_locks(
    spool: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (spool / "alice.lock").write_text("0\n")
    assert kinds(spool, b"alice.lock") == [(Kind.LOCK_LIVE, Severity.INFORMATION)]
    later = time.time() + 200
    monkeypatch.setattr(time, "time", lambda: later)
    assert kinds(spool, b"alice.lock") == [(Kind.LOCK_STALE, Severity.SUSPICIOUS)]
    with (spool / "alice").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        assert kinds(spool, b"alice.lock") == [(Kind.LOCK_LIVE, Severity.INFORMATION)]


def test_a_strangers_lock_file_does_not_count(spool: pathlib.Path) -> None:
    (spool / "alice.lock").write_text("0")
    os.chown(spool / "alice.lock", STRANGER, -1)
    assert kinds(spool, b"alice.lock") == [(Kind.LOCK_VOID, Severity.SUSPICIOUS)]


def test_a_mailbox_may_be_called_like_a_lock(spool: pathlib.Path) -> None:
    (spool / "no-account.lock").write_bytes(WHOLE)
    assert run(spool)[b"no-account.lock"].is_mailbox
    (spool / "no-account.lock").write_bytes(b"123")
    assert not run(spool)[b"no-account.lock"].is_mailbox


def test_state(spool: pathlib.Path) -> None:
    with Door.at(str(spool)) as door:
        private = PrivateDirectory(door)
        private.rescue(b"alice", 0, iter([b"mail"]), "a test")
        (spool / ".mailfs" / "scratch" / "1000").mkdir()
        (spool / ".mailfs" / "scratch" / "1000" / "x").write_text("12345")
        details = [finding.detail for finding in found(spool, None)]
        private.close()
    assert details == [
        f"served by daemon {os.getpid()}",
        "rescued mail that nobody has fetched: 1 files, 4 bytes",
        "users' scratch files: 1, 5 bytes",
    ]
    assert found(spool, None)[0].detail == "no daemon has its lock"


def test_a_mailbox_that_changes_is_not_called_damaged(
    spool: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice = spool / "alice"
    alice.write_bytes(HEAD)
    read = os.read

    def growing(fd: int, size: int) -> bytes:
        with alice.open("ab") as file:
            file.write(b"x")
        return read(fd, size)

    monkeypatch.setattr(os, "read", growing)
    assert set(kinds(spool)) == {
        (Kind.CUT_HEADER, Severity.INFORMATION),
        (Kind.CUT_AT_END, Severity.INFORMATION),
        (Kind.CHANGED, Severity.INFORMATION),
    }


def test_the_end_of_a_mailbox_that_is_locked_is_not_called_damaged(spool: pathlib.Path) -> None:
    (spool / "alice").write_bytes(b"\n" + WHOLE + HEAD)
    with (spool / "alice").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # not lockf: the check is in this process
        held = kinds(spool)
    assert (Kind.CUT_HEADER, Severity.INFORMATION) in held
    assert (Kind.IN_USE, Severity.INFORMATION) in held
    assert (Kind.NO_SEPARATOR, Severity.DAMAGE) in held
    assert (Kind.CUT_HEADER, Severity.DAMAGE) in kinds(spool)


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["check", *arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_hostile_names_forge_no_line(
    spool: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in NAMES:
        with open(os.path.join(os.fsencode(spool), name), "wb") as file:
            file.write(b"\x1b[2J\n")
    code, text, _ = output(capsys, str(spool))
    assert code == Exit.DATAERR
    assert text.isascii()
    assert all(letter.isprintable() or letter == "\n" for letter in text)
    assert sum("no-separator" in line for line in text.splitlines()) == len(NAMES)
    document = json.loads(output(capsys, "--json", str(spool))[1])
    assert sum(one["mailbox"] for one in document["checked"]) == len(NAMES) + 1
    for name in NAMES:
        assert output(capsys, "-q", "--", str(spool), os.fsdecode(name)) == (65, "", "")


def test_text_names_place_and_remedy(
    spool: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (spool / "alice").write_bytes(WHOLE + b"half")
    code, text, _ = output(capsys, str(spool))
    lines = text.splitlines()
    assert code == 65
    assert lines[0].split()[:4] == ["damage", "alice", str(len(WHOLE) + 4), "cut-at-end"]
    assert "Half a message" in lines[1]
    assert lines[-1].startswith(f"1 mailboxes, 1 messages, {len(WHOLE) + 4} bytes: 1 damaged")


def test_json_is_as_documented(spool: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    (spool / "alice").write_bytes(WHOLE + b"\0\0")
    code, text, _ = output(capsys, "--json", str(spool))
    document: dict[str, Any] = json.loads(text)
    assert code == 0
    assert document["format"] == 1
    assert document["mount"] is False
    whole, alice = document["checked"]
    assert whole["name"] is None
    (finding,) = alice.pop("findings")
    size = len(WHOLE) + 2
    assert alice == {
        "name": "alice", "mailbox": True, "bytes": size, "messages": 1, "denied": False,
    }  # fmt: skip
    remedy = finding.pop("remedy")
    assert remedy == Kind.NUL_AT_END.remedy
    assert finding == {
        "kind": "nul-bytes-at-end", "severity": "suspicious", "offset": len(WHOLE), "count": 1,
        "detail": "2 NUL bytes",
    }  # fmt: skip
    assert document["summary"] == {
        "mailboxes": 1, "messages": 1, "bytes": size, "denied": 0,
        "damage": 0, "suspicious": 1, "information": 0,
    }  # fmt: skip


def test_exit_codes(
    spool: pathlib.Path, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (spool / "bob").write_bytes(WHOLE[:-1])  # suspicious
    assert output(capsys, str(spool))[0] == 0
    assert output(capsys, "--strict", str(spool))[0] == 65
    assert output(capsys, "--strict", str(spool), "alice")[0] == 0
    assert output(capsys, str(spool), "nobody")[::2] == (
        66, f"mailfs: nobody: there is no such mailbox in {spool}\n",
    )  # fmt: skip
    assert output(capsys, "--json", str(spool), "nobody")[1] == ""
    assert output(capsys, str(tmp_path / "none"))[0] == 66
    assert output(capsys, str(spool / "alice"))[0] == 66
    assert output(capsys, str(spool), "../alice")[0] == 64
    assert output(capsys)[0] == 64


AS_NOBODY = """
import json, os, pwd, sys
from mailfs.checking.spool import SpoolCheck
from mailfs.spool.door import Door
user = pwd.getpwnam("nobody")
os.setgroups([])
os.setresgid(user.pw_gid, user.pw_gid, user.pw_gid)
os.setresuid(user.pw_uid, user.pw_uid, user.pw_uid)
results = SpoolCheck(Door(int(sys.argv[1])), host="here", mounted=False).run()
print(json.dumps({str(one.name): [one.denied, one.messages] for one in results}))
"""


def test_a_user_sees_what_he_may(spool: pathlib.Path) -> None:
    """As an ordinary user: one's own mailbox is checked, and what cannot be read is said."""
    user = pwd.getpwnam("nobody")
    os.chown(spool / "alice", user.pw_uid, user.pw_gid)
    (spool / "root").write_bytes(WHOLE)
    (spool / "root").chmod(0o600)
    with Door.at(str(spool)) as door:
        PrivateDirectory(door).close()
        # The directories above are not for nobody, so the spool comes as a descriptor.
        command = [sys.executable, "-c", AS_NOBODY, str(door.fileno)]
        told = subprocess.check_output(command, pass_fds=[door.fileno], timeout=30)
    expected = {"None": [True, 0], "b'alice'": [False, 1], "b'root'": [True, 0]}
    assert json.loads(told) == expected


def test_a_mount_is_said_to_be_one(
    spool: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mount = mountinfo.Mount(1, os.path.realpath(spool), mountinfo.FSTYPE, "mailfs")
    monkeypatch.setattr(mountinfo, "mounts", lambda: [mount])
    (spool / "alice.lock").write_text("")
    code, text, _ = output(capsys, "-v", str(spool))
    assert code == 0
    assert "`mailfs status`" in text
    assert "`mailfs locks`" in text


def test_every_kind_is_documented() -> None:
    text = (pathlib.Path(__file__).parents[2] / "docs" / "check.md").read_text()
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall("`([a-z-]+)`", row)}
    assert {kind.code for kind in Kind} <= named
