"""When a lock file counts, when it is stale, and that a fresh one is never removed."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from mailfs.spool.door import Door
from mailfs.spool.door import Path as SpoolPath
from mailfs.spool.dotlock import Dotlock
from mailfs.spool.foreign import ForeignLock, MayWrite, Verdict, owner_may_write, sight
from tests.spool.conftest import ALICE, Clock

if TYPE_CHECKING:
    from pathlib import Path

LOCK = (b"alice.lock",)


def nobody_may(*_: object) -> bool:
    return False


def watch(door: Door, clock: Clock, may_write: MayWrite = owner_may_write) -> ForeignLock:
    return ForeignLock(
        door, ALICE, host="here", stale_after=120.0, may_write=may_write, clock=clock
    )


def verdict(lock: ForeignLock) -> Verdict:
    return lock.judge()[0]


@pytest.fixture
def file(spool: Path) -> Path:
    file = spool / "alice.lock"
    file.write_bytes(b"")
    return file


def test_unchanged_is_what_we_saw_not_what_clocks_say(
    door: Door, clock: Clock, file: Path, spool: Path
) -> None:
    os.utime(file, (1, 1))  # backdated: no reason to break it
    lock = watch(door, clock)
    assert verdict(lock) is Verdict.HELD
    clock.now += 119.9
    assert verdict(lock) is Verdict.HELD
    os.utime(file)  # touched by its holder
    assert verdict(lock) is Verdict.HELD
    clock.now += 119.9
    with open(spool / "alice", "ab") as mailbox:  # its holder works on the mailbox
        mailbox.write(b"more")
    assert verdict(lock) is Verdict.HELD
    clock.now += 120.0
    assert verdict(lock) is Verdict.UNCHANGED
    file.chmod(0o600)  # maildrop's way to say that it lives
    assert verdict(lock) is Verdict.HELD
    file.unlink()
    assert lock.judge() == (Verdict.FREE, None)


def test_another_lock_of_the_same_name_starts_anew(door: Door, clock: Clock, file: Path) -> None:
    lock = watch(door, clock)
    assert verdict(lock) is Verdict.HELD
    clock.now += 120.0
    file.unlink()
    file.write_bytes(b"")
    assert verdict(lock) is Verdict.HELD


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"999999999:here", Verdict.DEAD),
        (b"999999999:here\n", Verdict.DEAD),
        (b"OURS:here", Verdict.DEAD),  # our pid, and not our lock: an earlier process
        (b"OURS:there", Verdict.HELD),
        (b"1:here", Verdict.HELD),
        (b"999999999:there", Verdict.HELD),
        (b"999999999:here\n\n", Verdict.HELD),
        (b"999999999:here:x", Verdict.HELD),
        (b"999999999", Verdict.HELD),
        (b"99999999999999999999:here", Verdict.HELD),
        (b"-1:here", Verdict.HELD),
        (b"0:here", Verdict.DEAD),
        (b"0", Verdict.HELD),
        (b"\xff\0" * 4000, Verdict.HELD),
    ],
)
def test_contents(door: Door, clock: Clock, file: Path, content: bytes, expected: Verdict) -> None:
    file.write_bytes(content.replace(b"OURS", b"%d" % os.getpid()))
    assert verdict(watch(door, clock)) is expected


def test_a_process_that_dies(door: Door, clock: Clock, file: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        file.write_bytes(b"%d:here" % process.pid)
        lock = watch(door, clock)
        assert verdict(lock) is Verdict.HELD
        process.kill()
    assert verdict(lock) is Verdict.DEAD
    sighting = lock.judge()[1]
    assert sighting is not None
    assert lock.remove(sighting)
    assert not file.exists()


def test_our_own_process_is_not_dead(door: Door, clock: Clock) -> None:
    ours = Dotlock.try_acquire(door, ALICE, "here")
    assert ours is not None
    assert verdict(watch(door, clock)) is Verdict.HELD
    ours.release()


def test_whose_locks_count(door: Door, clock: Clock, file: Path, spool: Path) -> None:
    asked: list[tuple[SpoolPath, int, int, bool]] = []

    def may_write(path: SpoolPath, uid: int, gid: int, found: os.stat_result | None) -> bool:
        asked.append((path, uid, gid, found is not None))
        return False

    assert verdict(watch(door, clock, may_write)) is Verdict.VOID
    (spool / "alice").unlink()
    assert verdict(watch(door, clock, may_write)) is Verdict.VOID
    mine = (os.geteuid(), os.getegid())
    assert asked == [(ALICE, *mine, True), (ALICE, *mine, False)]


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "expected"),
    [
        (0o600, 0, 0, True),
        (0o600, 10, 99, True),
        (0o600, 11, 20, False),
        (0o660, 11, 20, True),
        (0o660, 11, 21, False),
        (0o666, 11, 21, True),
        (0o644, 11, 20, False),
    ],
)
def test_the_simple_rule(mode: int, uid: int, gid: int, expected: bool) -> None:
    mailbox = os.stat_result((stat.S_IFREG | mode, 1, 1, 1, 10, 20, 0, 0, 0, 0))
    assert owner_may_write(ALICE, uid, gid, mailbox) is expected
    assert owner_may_write(ALICE, uid, gid, None)


@pytest.mark.parametrize("kind", ["file", "link", "fifo", "directory", "full directory"])
def test_a_squatter_is_removed_whatever_he_made(
    door: Door, clock: Clock, file: Path, spool: Path, kind: str, tmp_path: Path
) -> None:
    if kind != "file":
        file.unlink()
    if kind == "link":
        (tmp_path / "precious").write_text("x")
        file.symlink_to(tmp_path / "precious")
    elif kind == "fifo":
        os.mkfifo(file)
    elif "directory" in kind:
        file.mkdir()
        if kind == "full directory":
            (file / "x").write_text("")
    lock = watch(door, clock, nobody_may)
    judged, sighting = lock.judge()
    assert judged is Verdict.VOID
    assert sighting is not None
    assert lock.remove(sighting)
    left = set(os.listdir(spool)) - {"alice"}
    assert "alice.lock" not in left
    assert len(left) == (kind == "full directory")
    if kind == "link":
        assert (tmp_path / "precious").read_text() == "x"


def test_a_fresh_lock_is_not_removed(door: Door, clock: Clock, file: Path) -> None:
    lock = watch(door, clock)
    sighting = lock.judge()[1]
    assert sighting is not None
    file.unlink()
    file.write_bytes(b"fresh")
    assert not lock.remove(sighting)
    assert file.read_bytes() == b"fresh"
    file.unlink()
    assert not lock.remove(sighting)


def test_a_lock_made_between_last_look_and_removal_is_put_back(
    spool: Path, clock: Clock, file: Path
) -> None:
    class Racing(Door):
        def rename(self, old: SpoolPath, new: SpoolPath, flags: int = 0) -> None:
            self.unlink(old)
            file.write_bytes(b"fresh")
            self.inode = file.stat().st_ino
            super().rename(old, new, flags)

    file.write_bytes(b"999999999:here")
    with Racing.at(str(spool)) as door:
        lock = watch(door, clock)
        judged, sighting = lock.judge()
        assert judged is Verdict.DEAD
        assert sighting is not None
        assert not lock.remove(sighting)
        assert file.read_bytes() == b"fresh"
        assert file.stat().st_ino == door.inode
        assert set(os.listdir(spool)) == {"alice", "alice.lock"}


def test_one_complaint_about_what_we_may_not_remove(
    spool: Path, clock: Clock, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Sticky(Door):
        def rename(self, *_: object) -> None:
            raise PermissionError(errno.EPERM, "sticky")

    with Sticky.at(str(spool)) as door:
        lock = watch(door, clock, nobody_may)
        for _ in range(5):
            judged, sighting = lock.judge()
            assert judged is Verdict.VOID
            assert sighting is not None
            assert not lock.remove(sighting)
    assert file.exists()
    assert len(caplog.records) == 1


def test_an_unprivileged_user_and_roots_sticky_directory(tmp_path: Path) -> None:
    """With real rights: what may not be removed holds us off."""
    if os.geteuid() != 0:
        pytest.fail("this test makes another user's lock file: it needs root")
    spool = tmp_path / "sticky"
    spool.mkdir()
    spool.chmod(0o1777)
    (spool / "alice").write_bytes(b"")
    os.chown(spool / "alice", 54321, 54321)
    (spool / "alice.lock").write_bytes(b"")
    os.chown(spool / "alice.lock", 54322, 54322)
    door = Door.at(str(spool))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(54321, 54321, 54321)
            os.setresuid(54321, 54321, 54321)
            lock = watch(door, Clock())
            judged, sighting = lock.judge()
            if judged is Verdict.VOID and sighting is not None and not lock.remove(sighting):
                code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert (spool / "alice.lock").exists()
    with door:
        lock = watch(door, Clock())
        sighting = lock.judge()[1]
        assert sighting is not None
        assert lock.remove(sighting)  # root can
    assert os.listdir(spool) == ["alice"]


def test_what_people_are_told(door: Door, clock: Clock, file: Path) -> None:
    lock = watch(door, clock)
    uid = os.geteuid()
    for content, expected in {
        b"12:host\x1b[1m": f"dotlock of pid 12 on host?[1m, uid {uid}",
        b"12\n": f"dotlock of pid 12, uid {uid}",
        b"0": f"dotlock of uid {uid}",
        b"": f"dotlock of uid {uid}",
    }.items():
        file.write_bytes(content)
        assert lock.describe() == expected
    assert watch(door, clock, nobody_may).describe() is None
    file.unlink()
    assert lock.describe() is None


def test_a_look_at_a_fifo_or_link_does_not_hang(door: Door, spool: Path) -> None:
    os.mkfifo(spool / "fifo")
    (spool / "link").symlink_to("fifo")
    start = time.monotonic()
    for name in (b"fifo", b"link"):
        found = sight(door, (name,))
        assert found is not None
        assert found.content == b""
    assert time.monotonic() - start < 1
