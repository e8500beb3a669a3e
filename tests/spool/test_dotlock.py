"""Our dotlock among real foreign programs, thieves and strangers."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import pytest

from mailfs.spool.door import Door
from mailfs.spool.door import Path as SpoolPath
from mailfs.spool.dotlock import (
    Dotlock,
    alive,
    is_temporary,
    lock_path,
    sweep,
    sweep_locks,
    temporary_name,
)

if TYPE_CHECKING:
    from pathlib import Path

ALICE = (b"alice",)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.fail(f"this test needs the program {name} (packages liblockfile-bin, procmail)")
    return found


def run(*words: str | Path) -> int:
    return subprocess.run(list(map(str, words)), timeout=30, capture_output=True).returncode


def acquired(door: Door, path: SpoolPath = ALICE, host: str = "here") -> Dotlock:
    lock = Dotlock.try_acquire(door, path, host)
    assert lock is not None
    return lock


def names(spool: Path) -> set[str]:
    return set(os.listdir(spool))


def test_take_and_give_back(door: Door, spool: Path) -> None:
    old = os.umask(0o077)
    try:
        lock = acquired(door)
    finally:
        os.umask(old)
    file = spool / "alice.lock"
    assert names(spool) == {"alice", "alice.lock"}
    assert file.read_bytes() == b"%d:here" % os.getpid()  # no newline: lockmail compares bytes
    assert file.stat().st_mode & 0o7777 == 0o644
    assert file.stat().st_nlink == 1
    assert Dotlock.try_acquire(door, ALICE, "there") is None
    assert names(spool) == {"alice", "alice.lock"}
    os.utime(file, (1, 1))
    assert lock.touch()
    assert abs(file.stat().st_mtime - time.time()) < 5
    assert lock.still_ours()
    assert lock.release()
    assert names(spool) == {"alice"}


@pytest.mark.parametrize("how", ["dotlockfile", "lockfile"])
def test_programs_wait_for_us_and_we_for_them(door: Door, spool: Path, how: str) -> None:
    file = spool / "alice.lock"
    command = {
        "dotlockfile": (program("dotlockfile"), "-l", "-p", "-r", "0", file),
        "lockfile": (program("lockfile"), "-1", "-r", "0", file),
    }[how]
    lock = acquired(door)
    assert run(*command) != 0
    assert lock.still_ours()
    assert lock.release()
    assert run(*command) == 0
    assert Dotlock.try_acquire(door, ALICE, "here") is None
    file.unlink()
    assert acquired(door).release()


def test_lockmail_believes_in_our_pid(door: Door, spool: Path) -> None:
    host = os.uname().nodename
    lock = acquired(door, host=host)
    try:
        assert run(program("lockmail"), "-t", "2", spool / "alice", "true") == 75
        assert lock.still_ours()
        # and it breaks the lock of a dead process of this host, in just this form
        (spool / "alice.lock").write_bytes(b"999999999:" + host.encode())
        assert run(program("lockmail"), "-t", "10", spool / "alice", "true") == 0
    finally:
        lock.release()


def test_a_thief_keeps_what_he_stole(
    door: Door, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = spool / "alice.lock"
    # ext4 gives the number of a removed inode to the next file: ours must stay taken
    for _ in range(20):
        lock = acquired(door)
        file.unlink()
        file.write_bytes(b"thief")
        assert not lock.still_ours()
        assert not lock.touch()
        assert not lock.release()
        assert file.read_bytes() == b"thief"
        file.unlink()
    assert "was taken away" in caplog.text


def test_a_lock_removed_by_hand(door: Door, spool: Path) -> None:
    lock = acquired(door)
    (spool / "alice.lock").unlink()
    assert not lock.release()
    assert acquired(door).release()


@pytest.mark.parametrize("kind", ["dangling link", "link to a file", "directory", "fifo"])
def test_anything_of_that_name_holds_us_off(door: Door, spool: Path, kind: str) -> None:
    path = spool / "alice.lock"
    if kind == "directory":
        path.mkdir()
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to("alice" if kind == "link to a file" else "nothing")
    before = names(spool)
    assert Dotlock.try_acquire(door, ALICE, "here") is None
    assert names(spool) == before
    assert (spool / "alice").read_bytes() == b"From a\n\n"


class Interfering(Door):
    """A door through which something happens at a link."""

    def link(self, old: SpoolPath, new: SpoolPath) -> None:
        self.at_link(old, new)

    def at_link(self, old: SpoolPath, new: SpoolPath) -> None:
        raise NotImplementedError


def test_a_lost_reply_is_no_failure(spool: Path) -> None:
    class LostReply(Interfering):
        def at_link(self, old: SpoolPath, new: SpoolPath) -> None:
            super(Interfering, self).link(old, new)
            raise FileExistsError(errno.EEXIST, "as NFS answers the repeated request")

    with LostReply.at(str(spool)) as door:
        assert acquired(door).release()


def test_a_strangers_link_to_our_temporary_is_no_lock(spool: Path) -> None:
    (spool / "alice.lock").write_bytes(b"somebody")

    class Stranger(Interfering):
        def at_link(self, old: SpoolPath, new: SpoolPath) -> None:
            super(Interfering, self).link(old, (b"extra",))
            super(Interfering, self).link(old, new)

    with Stranger.at(str(spool)) as door:
        assert Dotlock.try_acquire(door, ALICE, "here") is None
    assert (spool / "alice.lock").read_bytes() == b"somebody"


@pytest.mark.parametrize("made", [False, True])
def test_a_failing_link_leaves_nothing(
    spool: Path, caplog: pytest.LogCaptureFixture, made: bool
) -> None:
    class Failing(Interfering):
        looks = 0

        def at_link(self, old: SpoolPath, new: SpoolPath) -> None:
            if made:
                super(Interfering, self).link(old, new)
            raise OSError(errno.EDQUOT, "no")

        def stat(self, path: SpoolPath) -> os.stat_result:
            if made and path == lock_path(ALICE):
                self.looks += 1
                if self.looks == 1:
                    raise OSError(errno.EIO, "no")
            return super().stat(path)

    with Failing.at(str(spool)) as door, pytest.raises(OSError, match="no"):
        Dotlock.try_acquire(door, ALICE, "here")
    assert names(spool) == {"alice"}
    assert not caplog.records


def test_no_lock_file_can_be_made(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(FileNotFoundError):
        Dotlock.try_acquire(door, (b"no directory", b"alice"), "here")
    with pytest.raises(OSError, match="too long"):
        Dotlock.try_acquire(door, (b"n" * 252,), "here")

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("mailfs.spool.dotlock.os.write", full)
    with pytest.raises(OSError, match="full"):
        Dotlock.try_acquire(door, ALICE, "here")
    assert len(os.listdir("/proc/self/fd")) == before
    assert [entry.name for entry in door.listdir()] == [b"alice"]


def test_temporaries(door: Door, spool: Path) -> None:
    hostile = "../x\n" + "ü" * 300
    made = {temporary_name(hostile) for _ in range(1000)}
    assert len(made) == 1000
    assert all(is_temporary(name) and len(name) < 200 and b"/" not in name for name in made)
    mine, other_host = temporary_name("here"), temporary_name("there")
    dead = mine.replace(b".%d." % os.getpid(), b".999999999.")
    living = mine.replace(b".%d." % os.getpid(), b".1.")
    strange = b".mailfs-here.1.2"
    for name in (mine, other_host, dead, living, strange):
        (spool / os.fsdecode(name)).write_bytes(b"")
    assert sweep(door, (), "here") == 2
    assert {os.fsencode(name) for name in names(spool)} == {b"alice", other_host, living, strange}


def test_alive() -> None:
    assert alive(os.getpid())
    assert alive(1)
    for nobody in (0, -1, 2**31, 2**64, 999999999):
        assert not alive(nobody)


def test_one_of_many_threads_gets_it(door: Door) -> None:
    inside = 0
    rounds = 0
    worst = 0

    def work(host: str) -> None:
        nonlocal inside, rounds, worst
        for _ in range(500):
            lock = Dotlock.try_acquire(door, ALICE, host)
            if lock is None:
                continue
            inside += 1
            worst = max(worst, inside)
            rounds += 1
            inside -= 1
            assert lock.release()

    threads = [threading.Thread(target=work, args=(f"host{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert worst == 1
    assert rounds > 100
    assert [entry.name for entry in door.listdir()] == [b"alice"]


def test_lock_files_of_an_earlier_daemon_are_swept(tmp_path: Path) -> None:
    spool = tmp_path
    (spool / "alice.lock").write_bytes(b"4711:here")
    (spool / "bob.lock").write_bytes(b"4712:here")
    (spool / "carol.lock").write_bytes(b"4711:there")
    (spool / "dave.lock").write_bytes(b"4711:here\n")
    (spool / "eve.lock").symlink_to(spool / "alice.lock")
    (spool / "alice").write_bytes(b"4711:here")
    with Door.at(str(spool)) as door:
        assert sweep_locks(door, (), "here", 4711) == 1
    left = sorted(path.name for path in spool.iterdir())
    assert left == ["alice", "bob.lock", "carol.lock", "dave.lock", "eve.lock"]
