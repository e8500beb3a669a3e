"""Kernel locks against other open files of this process and against other programs."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from mailfs.spool.kernel_locks import KernelLocks, Strength, on_nfs, who_locks

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NONE, SHARED, EXCLUSIVE = Strength.NONE, Strength.SHARED, Strength.EXCLUSIVE

_HOLD = """
import fcntl, sys
file = open(sys.argv[1], "r+b")
getattr(fcntl, sys.argv[2])(file, getattr(fcntl, sys.argv[3]))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def foreign(path: Path, call: str, kind: str) -> Iterator[int]:
    """Another process that holds a lock; gives its pid."""
    command = [sys.executable, "-c", _HOLD, str(path), call, kind]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"held\n"
            yield process.pid
        finally:
            process.kill()


@pytest.fixture
def mailbox(spool: Path) -> Path:
    return spool / "alice"


@contextmanager
def locks(path: Path, *, ofd: bool = True, flock: bool = True) -> Iterator[KernelLocks]:
    held = KernelLocks(os.open(path, os.O_RDWR), ofd=ofd, flock=flock)
    try:
        yield held
    finally:
        held.close()


@pytest.mark.parametrize(("ofd", "flock"), [(True, True), (True, False), (False, True)])
def test_shared_and_exclusive(mailbox: Path, ofd: bool, flock: bool) -> None:
    with locks(mailbox, ofd=ofd, flock=flock) as a, locks(mailbox, ofd=ofd, flock=flock) as b:
        assert a.try_lock(SHARED)
        assert b.try_lock(SHARED)
        assert not a.try_lock(EXCLUSIVE)
        assert a.strength is SHARED
        assert b.try_lock(NONE)
        assert a.try_lock(EXCLUSIVE)
        assert not b.try_lock(SHARED)
        assert b.strength is NONE
        assert a.try_lock(SHARED)
        assert b.try_lock(SHARED)
        a.close()
        assert b.try_lock(EXCLUSIVE)


def test_a_refused_upgrade_keeps_the_flock(mailbox: Path) -> None:
    with locks(mailbox) as ours, open(mailbox, "rb") as reader, open(mailbox, "rb") as writer:
        assert ours.try_lock(SHARED)
        fcntl.flock(reader, fcntl.LOCK_SH)
        assert not ours.try_lock(EXCLUSIVE)
        assert ours.strength is SHARED
        fcntl.flock(reader, fcntl.LOCK_UN)
        with pytest.raises(BlockingIOError):
            fcntl.flock(writer, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert ours.try_lock(EXCLUSIVE)


def test_a_flock_lost_in_an_upgrade_is_admitted(
    mailbox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with locks(mailbox) as ours, locks(mailbox, flock=False) as other:
        assert ours.try_lock(SHARED)
        monkeypatch.setattr("mailfs.spool.kernel_locks._try_flock", lambda _fd, _strength: False)
        assert not ours.try_lock(EXCLUSIVE)
        assert ours.strength is NONE
        assert other.try_lock(EXCLUSIVE)  # nothing of ours is left


@pytest.mark.parametrize("call", ["lockf", "flock"])
@pytest.mark.parametrize("kind", ["LOCK_SH", "LOCK_EX"])
def test_foreign_locks(mailbox: Path, call: str, kind: str) -> None:
    with locks(mailbox) as ours:
        with foreign(mailbox, call, kind) as pid:
            assert not ours.try_lock(EXCLUSIVE)
            assert ours.try_lock(SHARED) is (kind == "LOCK_SH")
            ours.try_lock(NONE)
            with open(mailbox, "rb") as probe:
                who = who_locks(probe.fileno())
            assert who == f"{'fcntl lock' if call == 'lockf' else 'flock'} of pid {pid}"
        assert ours.try_lock(EXCLUSIVE)
        with open(mailbox, "rb") as probe:
            assert who_locks(probe.fileno()) == "fcntl lock of an open file (OFD)"


def test_flock_1_respects_us(mailbox: Path) -> None:
    program = shutil.which("flock")
    assert program, "this test needs flock(1) of util-linux"
    command = [program, "-n", str(mailbox), "true"]
    with locks(mailbox) as ours:
        assert ours.try_lock(EXCLUSIVE)
        assert subprocess.run(command, timeout=10).returncode == 1
        assert ours.try_lock(SHARED)
        assert subprocess.run([program, "-s", *command[1:]], timeout=10).returncode == 0
    assert subprocess.run(command, timeout=10).returncode == 0


def test_closing_other_descriptors_drops_nothing(mailbox: Path) -> None:
    """The reason for OFD locks: a POSIX lock would be gone."""
    with locks(mailbox, flock=False) as ours, locks(mailbox, flock=False) as other:
        assert ours.try_lock(EXCLUSIVE)
        with open(mailbox, "r+b") as file:
            file.read()
        assert not other.try_lock(SHARED)


def test_a_descriptor_for_reading_gives_no_exclusive_lock(mailbox: Path) -> None:
    ours = KernelLocks(os.open(mailbox, os.O_RDONLY), ofd=True, flock=True)
    assert ours.try_lock(SHARED)
    with pytest.raises(OSError, match="Bad file descriptor"):
        ours.try_lock(EXCLUSIVE)
    assert ours.strength is SHARED
    ours.close()
    ours.close()


def test_exclusion_among_threads(mailbox: Path) -> None:
    counts = {"inside": 0, "worst": 0, "rounds": 0}

    def work() -> None:
        for _ in range(2000):
            with locks(mailbox) as mine:
                if mine.try_lock(EXCLUSIVE):
                    counts["inside"] += 1
                    counts["worst"] = max(counts["worst"], counts["inside"])
                    counts["rounds"] += 1
                    counts["inside"] -= 1

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts["worst"] == 1
    assert counts["rounds"] > 1000


def test_local_files_are_not_on_nfs(mailbox: Path) -> None:
    with open(mailbox, "rb") as file:
        assert not on_nfs(file.fileno())
    assert not on_nfs(-1)
