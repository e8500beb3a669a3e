"""Everything on one mailbox: all or nothing, against each other and against foreign programs."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import gc
import os
import shutil
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import MockClock

from mailfs.locking.model import Mode
from mailfs.spool.backing_lock import BackingLock, BackingSettings
from mailfs.spool.backing_locks import BackingLocks
from mailfs.spool.door import Door
from mailfs.spool.door import Path as SpoolPath
from tests.spool.conftest import ALICE, Clock, MakeLock

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

READ, APPEND, WRITE = Mode.READ, Mode.APPEND, Mode.WRITE


def in_trio(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """Run an async test on the real clock."""

    @functools.wraps(test)
    def run(**fixtures: object) -> None:
        trio.run(functools.partial(test, **fixtures))

    return run


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextlib.contextmanager
def held_outside(path: Path, operation: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Hold a flock on another open file, which is what another process would do."""
    with open(path, "r+b") as file:
        fcntl.flock(file, operation | fcntl.LOCK_NB)
        yield


# -- at once


def test_take_everything_and_give_it_back(make_lock: MakeLock, spool: Path) -> None:
    lock = make_lock()
    before = descriptors()
    assert not lock.held
    assert lock.try_acquire(WRITE)
    assert lock.held
    assert lock.exclusive
    assert (spool / "alice.lock").exists()
    with pytest.raises(BlockingIOError), held_outside(spool / "alice", fcntl.LOCK_SH):
        pass
    assert lock.holder() is None
    lock.release()
    lock.release()
    assert not lock.held
    assert os.listdir(spool) == ["alice"]
    assert descriptors() == before


@pytest.mark.parametrize("first", list(Mode))
@pytest.mark.parametrize("second", list(Mode))
def test_two_hosts_exclude_each_other(make_lock: MakeLock, first: Mode, second: Mode) -> None:
    a, b = make_lock("a"), make_lock("b")
    assert a.try_acquire(first)
    assert not b.try_acquire(second)
    assert not b.held
    assert b.holder() == f"dotlock of pid {os.getpid()} on a, uid {os.geteuid()}"
    a.release()
    assert b.holder() is None
    assert b.try_acquire(second)


def test_readers_let_shared_kernel_locks_in(make_lock: MakeLock, spool: Path) -> None:
    lock = make_lock()
    with held_outside(spool / "alice", fcntl.LOCK_SH):
        assert not lock.try_acquire(WRITE)
        assert lock.try_acquire(READ)
        assert not lock.try_acquire(WRITE)
        assert lock.held
        assert not lock.exclusive
        assert not lock.lost
    assert lock.try_acquire(WRITE)
    assert lock.exclusive
    assert lock.try_acquire(READ)
    assert lock.exclusive
    lock.weaken(APPEND)
    assert lock.exclusive
    lock.weaken(READ)
    assert lock.held
    assert not lock.exclusive
    with held_outside(spool / "alice", fcntl.LOCK_SH):
        pass


def test_a_kernel_lock_outside_leaves_no_dotlock(make_lock: MakeLock, spool: Path) -> None:
    lock = make_lock()
    changed = os.stat(spool).st_mtime_ns
    with held_outside(spool / "alice"):
        assert not lock.try_acquire(READ)
        assert lock.holder() is None  # our own process's flock is not told
    assert os.stat(spool).st_mtime_ns == changed


def test_a_mailbox_that_does_not_exist_yet(make_lock: MakeLock, spool: Path) -> None:
    (spool / "alice").unlink()
    a, b = make_lock("a"), make_lock("b")
    assert a.try_acquire(WRITE)
    assert not b.try_acquire(WRITE)
    assert a.refresh()
    (spool / "alice").write_bytes(b"")
    assert a.refresh()
    with pytest.raises(BlockingIOError), held_outside(spool / "alice"):
        pass
    a.release()
    with held_outside(spool / "alice"):
        pass


def test_a_mailbox_that_is_replaced(make_lock: MakeLock, spool: Path) -> None:
    mailbox, new = spool / "alice", spool / "new"
    lock = make_lock()
    assert lock.try_acquire(WRITE)
    new.write_bytes(b"")
    new.rename(mailbox)
    with held_outside(mailbox):
        assert not lock.refresh()
    assert lock.refresh()
    with pytest.raises(BlockingIOError), held_outside(mailbox):
        pass
    mailbox.unlink()
    assert lock.refresh()
    lock.release()
    assert lock.refresh()


def test_a_mailbox_replaced_while_it_is_being_locked(
    make_lock: MakeLock, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = make_lock()
    link = Door.link

    def replace(door: Door, old: SpoolPath, new: SpoolPath) -> None:
        link(door, old, new)
        (spool / "new").write_bytes(b"")
        (spool / "new").rename(spool / "alice")

    monkeypatch.setattr(Door, "link", replace)
    assert lock.try_acquire(WRITE)
    with pytest.raises(BlockingIOError), held_outside(spool / "alice"):
        pass


@pytest.mark.parametrize("kind", ["link", "directory", "fifo"])
def test_what_is_no_mailbox(make_lock: MakeLock, spool: Path, kind: str) -> None:
    (spool / "alice").rename(spool / "other")
    if kind == "link":
        (spool / "alice").symlink_to("other")
    elif kind == "directory":
        (spool / "alice").mkdir()
    else:
        os.mkfifo(spool / "alice")
    lock = make_lock()
    with pytest.raises(OSError, match="no regular file") as caught:
        lock.try_acquire(WRITE)
    assert caught.value.errno == (errno.ELOOP if kind == "link" else errno.EINVAL)
    assert not lock.held
    assert not (spool / "alice.lock").exists()
    with held_outside(spool / "other"):
        pass


def test_no_room_for_a_lock_file(
    make_lock: MakeLock, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = make_lock()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("mailfs.spool.dotlock._fill", full)
    with pytest.raises(OSError, match="full"):
        lock.try_acquire(WRITE)
    assert not lock.held
    assert os.listdir(spool) == ["alice"]
    with held_outside(spool / "alice"):
        pass


def test_a_name_too_long_for_a_lock_file(make_lock: MakeLock, spool: Path) -> None:
    name = b"n" * 252
    (spool / os.fsdecode(name)).write_bytes(b"")
    a, b = make_lock("a", (name,)), make_lock("b", (name,))
    assert a.try_acquire(WRITE)
    assert not b.try_acquire(WRITE)


@pytest.mark.parametrize("which", ["dotlock", "ofd", "flock"])
def test_one_kind_alone_excludes(make_lock: MakeLock, spool: Path, which: str) -> None:
    kinds = {kind: kind == which for kind in ("dotlock", "ofd", "flock")}
    a, b = make_lock("a", **kinds), make_lock("b", **kinds)
    assert a.try_acquire(WRITE)
    assert (spool / "alice.lock").exists() is (which == "dotlock")
    assert not b.try_acquire(READ)
    a.release()
    assert b.try_acquire(READ)


# -- stale, foreign and stolen locks


def test_a_dead_holder_is_removed_at_once_and_followed_by_a_pause(
    make_lock: MakeLock, spool: Path, clock: Clock
) -> None:
    (spool / "alice.lock").write_bytes(b"999999999:here")
    lock = make_lock()
    assert not lock.try_acquire(WRITE)
    assert not (spool / "alice.lock").exists()
    assert not lock.try_acquire(WRITE)
    clock.now += 0.5
    assert lock.try_acquire(WRITE)


def test_an_abandoned_lock_is_removed_when_nothing_moved(
    make_lock: MakeLock, spool: Path, clock: Clock
) -> None:
    file = spool / "alice.lock"
    file.write_bytes(b"")
    lock = make_lock()
    assert not lock.try_acquire(READ)
    clock.now += 120
    with held_outside(spool / "alice", fcntl.LOCK_SH):  # somebody reads: not abandoned
        assert not lock.try_acquire(READ)
    assert file.exists()
    assert not lock.try_acquire(READ)
    assert not file.exists()
    clock.now += 1.9
    assert not lock.try_acquire(READ)
    clock.now += 0.1
    assert lock.try_acquire(READ)


def test_the_lock_of_one_who_may_not_write_does_not_count(make_lock: MakeLock, spool: Path) -> None:
    (spool / "alice.lock").write_bytes(b"")
    lock = make_lock(may_write=lambda *_: False)
    assert lock.holder() is None
    assert lock.try_acquire(WRITE)
    assert (spool / "alice.lock").read_bytes() == b"%d:here" % os.getpid()


def test_a_persistent_squatter_wins_a_try_but_not_our_time(
    make_lock: MakeLock, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = make_lock(may_write=lambda *_: False)
    link = Door.link

    def squat(door: Door, old: SpoolPath, new: SpoolPath) -> None:
        with contextlib.suppress(FileExistsError), open(spool / "alice.lock", "xb"):
            pass
        link(door, old, new)

    monkeypatch.setattr(Door, "link", squat)
    assert not lock.try_acquire(WRITE)
    monkeypatch.undo()
    assert lock.try_acquire(WRITE)


def test_a_squatter_we_may_not_remove_holds_us_off(
    make_lock: MakeLock, spool: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sticky(*_: object) -> None:
        raise PermissionError(errno.EPERM, "sticky")

    (spool / "alice.lock").write_bytes(b"")
    monkeypatch.setattr(Door, "rename", sticky)
    assert not make_lock(may_write=lambda *_: False).try_acquire(WRITE)


def test_a_thief_is_noticed_and_keeps_his_lock(
    make_lock: MakeLock, spool: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = spool / "alice.lock"
    lock = make_lock()
    assert lock.try_acquire(WRITE)
    lock.touch()
    assert not lock.lost
    file.unlink()
    file.write_bytes(b"thief")
    lock.touch()
    lock.touch()
    assert lock.lost
    assert lock.held
    assert caplog.text.count("was taken from us") == 1
    lock.release()
    assert file.read_bytes() == b"thief"
    file.unlink()
    assert lock.try_acquire(WRITE)
    assert not lock.lost


# -- waiting


@in_trio
async def test_a_removed_lock_file_wakes_the_waiter(spool: Path) -> None:
    file = spool / "alice.lock"
    file.write_bytes(b"")
    with Door.at(str(spool)) as door, contextlib.closing(BackingLocks(door)) as locks:
        lock = locks.lock_for(ALICE)
        waits = []
        async with trio.open_nursery() as nursery:
            nursery.start_soon(locks.run)
            for _ in range(20):
                file.write_bytes(b"")
                async with trio.open_nursery() as waiters:
                    waiters.start_soon(lock.acquire, WRITE)
                    await trio.sleep(0.01)
                    assert not lock.held
                    file.unlink()
                    start = trio.current_time()
                waits.append(trio.current_time() - start)
                assert lock.held
                lock.release()
            nursery.cancel_scope.cancel()
    assert sorted(waits)[10] < 0.02  # polling alone would take 0.05 at least


@in_trio
async def test_kernel_locks_are_polled_for(make_lock: MakeLock, spool: Path) -> None:
    lock = make_lock()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            with held_outside(spool / "alice"):
                nursery.start_soon(lock.acquire, WRITE)
                await trio.sleep(0.1)
                assert not lock.held
    assert lock.held


@in_trio
async def test_a_cancelled_wait_leaves_nothing(spool: Path) -> None:
    (spool / "alice.lock").write_bytes(b"")
    with Door.at(str(spool)) as door, contextlib.closing(BackingLocks(door)) as locks:
        lock = locks.lock_for(ALICE)
        before = descriptors()
        with trio.move_on_after(0.2) as scope:
            await lock.acquire(WRITE)
        assert scope.cancelled_caught
        assert not lock.held
        assert descriptors() == before
        assert set(os.listdir(spool)) == {"alice", "alice.lock"}
        assert not locks.held


@in_trio
async def test_a_waiting_upgrade_gives_up_the_weaker_hold(make_lock: MakeLock, spool: Path) -> None:
    lock, other = make_lock("a"), make_lock("b")
    assert lock.try_acquire(READ)
    with held_outside(spool / "alice", fcntl.LOCK_SH):
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lock.acquire, WRITE)
                await trio.sleep(0.1)
                assert not lock.held
                scope.cancel()
        assert lock.held  # cancelled: what it had before is there again
        assert not lock.exclusive
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(lock.acquire, WRITE)
                await trio.sleep(0.1)
                assert other.try_acquire(READ)
                scope.cancel()
        assert not lock.held  # unless somebody else was quicker
        other.release()
    await lock.acquire(WRITE)
    assert lock.exclusive


@in_trio
async def test_an_error_ends_the_wait(make_lock: MakeLock) -> None:
    lock = make_lock(path=(b"no directory", b"alice"))
    with pytest.raises(FileNotFoundError):
        await lock.acquire(WRITE)


@in_trio
async def test_two_hosts_fight_for_thousands_of_rounds(spool: Path) -> None:
    """What one holder writes, no other sees half of; both get their share."""
    mailbox = spool / "alice"
    mailbox.write_bytes(b"0")
    rounds = {"a": 0, "b": 0}

    async def host(name: str) -> None:
        settings = BackingSettings(host=name)
        with Door.at(str(spool)) as door, contextlib.closing(BackingLocks(door, settings)) as locks:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(locks.run)
                while sum(rounds.values()) < 3000:
                    lock = locks.lock_for(ALICE)
                    await lock.acquire(WRITE)
                    count = int(mailbox.read_bytes())
                    await trio.lowlevel.checkpoint()
                    mailbox.write_bytes(b"%d" % (count + 1))
                    lock.release()
                    rounds[name] += 1
                    await trio.lowlevel.checkpoint()
                nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(host, "a")
        nursery.start_soon(host, "b")
    assert int(mailbox.read_bytes()) == sum(rounds.values())
    assert min(rounds.values()) > 50
    assert os.listdir(spool) == ["alice"]


_FIGHTER = """
import sys, trio
from mailfs.locking.model import Mode
from mailfs.spool.backing_lock import BackingLock, BackingSettings
from mailfs.spool.door import Door

async def main(spool, host, rounds):
    lock = BackingLock(Door.at(spool), (b"alice",), BackingSettings(host=host))
    for _ in range(rounds):
        await lock.acquire(Mode.WRITE)
        with open(spool + "/alice", "r+") as file:
            count = int(file.read())
            file.seek(0)
            file.write(str(count + 1))
        lock.release()
        await trio.sleep(0.001)

trio.run(main, sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""

_PYTHON = """
import fcntl, sys, time
for _ in range(int(sys.argv[2])):
    with open(sys.argv[1] + "/alice", "r+") as file:
        getattr(fcntl, sys.argv[3])(file, fcntl.LOCK_EX)
        count = int(file.read())
        time.sleep(0.001)
        file.seek(0)
        file.write(str(count + 1))
        file.flush()
    time.sleep(0.002)
"""

_SHELL = """
i=0; while [ $i -lt $3 ]; do
  case $2 in
  dotlockfile) dotlockfile -l -p -r 1000 -i 0.05 "$1/alice.lock" 2>/dev/null ||
               dotlockfile -l -p -r 1000 "$1/alice.lock" ;;
  lockfile) lockfile -1 "$1/alice.lock" ;;
  esac || exit 1
  read n < "$1/alice"; sleep 0.02; n=$((n + 1)); printf %s $n > "$1/alice"
  rm -f "$1/alice.lock"; sleep 0.05; i=$((i + 1))
done
"""


@pytest.mark.parametrize("enemy", ["mailfs", "lockf", "flock", "dotlockfile", "lockfile"])
def test_real_processes_count_together(spool: Path, enemy: str) -> None:
    """Each adds one to a number in the mailbox, under whatever lock it knows; none gets lost."""
    (spool / "alice").write_bytes(b"0")
    ours, theirs = (150, 150) if enemy in ("mailfs", "lockf", "flock") else (400, 12)
    commands = [[sys.executable, "-c", _FIGHTER, str(spool), "us", str(ours)]]
    if enemy == "mailfs":
        commands.append([sys.executable, "-c", _FIGHTER, str(spool), "them", str(theirs)])
    elif enemy in ("lockf", "flock"):
        commands.append([sys.executable, "-c", _PYTHON, str(spool), str(theirs), enemy])
    else:
        if shutil.which(enemy) is None:
            pytest.fail(f"this test needs the program {enemy}")
        commands.append(["sh", "-c", _SHELL, "sh", str(spool), enemy, str(theirs)])
    processes = [subprocess.Popen(command) for command in commands]
    try:
        codes = [process.wait(timeout=50) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    assert codes == [0, 0]
    assert int((spool / "alice").read_bytes()) == ours + theirs
    assert os.listdir(spool) == ["alice"]


_HOLDER = """
import sys, trio
from mailfs.locking.model import Mode
from mailfs.spool.backing_lock import BackingLock, BackingSettings
from mailfs.spool.door import Door
lock = BackingLock(Door.at(sys.argv[1]), (b"alice",), BackingSettings(host="here"))
assert lock.try_acquire(Mode.WRITE)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_killed_holder_is_followed_at_once(
    make_lock: MakeLock, spool: Path, clock: Clock
) -> None:
    lock = make_lock("here")
    command = [sys.executable, "-c", _HOLDER, str(spool)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        assert not lock.try_acquire(WRITE)
        assert lock.holder() == f"dotlock of pid {process.pid} on here, uid {os.geteuid()}"
        process.kill()
        process.wait()
    assert not lock.try_acquire(WRITE)
    clock.now += 0.5
    assert lock.try_acquire(WRITE)


# -- all locks of a spool


def test_one_lock_a_mailbox(door: Door) -> None:
    with contextlib.closing(BackingLocks(door)) as locks:
        lock = locks.lock_for(ALICE)
        assert locks.lock_for(ALICE) is lock
        assert lock.try_acquire(WRITE)
        assert locks.held == {lock}
        del lock
        gc.collect()
        again = locks.lock_for(ALICE)
        assert again.held
        again.release()
        del again
        gc.collect()
        assert len(locks._known) == 0


def test_ten_thousand_mailboxes_cost_no_descriptors(door: Door) -> None:
    with contextlib.closing(BackingLocks(door)) as locks:
        before = descriptors()
        known = [locks.lock_for((b"user%d" % n,)) for n in range(10_000)]
        assert descriptors() == before
        assert known[0].try_acquire(WRITE)
        assert descriptors() == before + 1


def test_held_locks_are_kept_fresh(spool: Path) -> None:
    file = spool / "alice.lock"

    async def main() -> None:
        with Door.at(str(spool)) as door, contextlib.closing(BackingLocks(door)) as locks:
            lock = locks.lock_for(ALICE)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(locks.keep_fresh)
                await lock.acquire(WRITE)
                os.utime(file, (1, 1))
                await trio.sleep(14)
                assert file.stat().st_mtime == 1
                await trio.sleep(2)
                assert time.time() - file.stat().st_mtime < 10
                file.unlink()
                await trio.sleep(16)
                assert lock.lost
                nursery.cancel_scope.cancel()
            assert lock.held

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert os.listdir(spool) == ["alice"]


@in_trio
async def test_the_watch_survives_hostile_names_and_removed_directories(spool: Path) -> None:
    directory = spool / "dir"
    directory.mkdir()
    names = [b"a\nb", b"\xff\xfe", b"n" * 250]
    with Door.at(str(spool)) as door, contextlib.closing(BackingLocks(door)) as locks:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(locks.run)
            for name in names:
                path = os.fsencode(directory) + b"/" + name + b".lock"
                open(path, "wb").close()
                lock = locks.lock_for((b"dir", name))
                with trio.fail_after(5):
                    async with trio.open_nursery() as waiter:
                        waiter.start_soon(lock.acquire, WRITE)
                        await trio.sleep(0.02)
                        assert not lock.held
                        os.unlink(path)
                lock.release()
            (directory / "x.lock").write_bytes(b"")
            lock = locks.lock_for((b"dir", b"x"))
            with pytest.raises(trio.TooSlowError), trio.fail_after(0.1):
                await lock.acquire(WRITE)
            waiting = trio.CancelScope()

            async def wait() -> None:
                with waiting, contextlib.suppress(FileNotFoundError):
                    await lock.acquire(WRITE)
                    pytest.fail("a lock in a removed directory")

            with trio.fail_after(5):
                async with trio.open_nursery() as waiter:
                    waiter.start_soon(wait)
                    await trio.sleep(0.02)
                    shutil.rmtree(directory)
            nursery.cancel_scope.cancel()


def test_repr(make_lock: MakeLock) -> None:
    lock: BackingLock = make_lock()
    assert repr(lock) == "<BackingLock b'alice' none>"
