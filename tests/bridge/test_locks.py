"""Locks arrive with the right values, wait as long as they are let, and are answered."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

import pytest

from tests.bridge.mounted import Mounted

if TYPE_CHECKING:
    from pathlib import Path

MAX = 2**63 - 1


def test_flock(mounted: Mounted) -> None:
    pid = mounted.run("""
        fd = os.open(box, os.O_RDWR)
        for op in fcntl.LOCK_SH, fcntl.LOCK_EX | fcntl.LOCK_NB, fcntl.LOCK_UN:
            fcntl.flock(fd, op)
        print(os.getpid())
    """)
    assert mounted.call("open")["fh"] is None  # the server numbers its handles from 11
    shared, exclusive, unlock = (mounted.expect("lock") for _ in range(3))
    for request in shared, exclusive, unlock:
        assert request["name"] == "flock"
        assert request["pid"] == pid
        assert (request["uid"], request["gid"]) == (os.getuid(), os.getgid())
        assert (request["ino"], request["start"], request["end"]) == (2, 0, MAX)
        assert request["owner"] == shared["owner"]
        assert request["fh"] == 11
    assert (shared["type"], shared["wait"]) == (fcntl.F_RDLCK, True)
    assert (exclusive["type"], exclusive["wait"]) == (fcntl.F_WRLCK, False)
    assert unlock["type"] == fcntl.F_UNLCK
    release = mounted.call("release")
    assert release["flock_release"] is True
    assert release["lock_owner"] == shared["owner"]


def test_posix_ranges(mounted: Mounted) -> None:
    pid = mounted.run("""
        fd = os.open(box, os.O_RDWR)
        lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK)
        lock(fd, fcntl.F_SETLKW, fcntl.F_RDLCK, 5, 10)
        lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 7, 0)
        lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK, 2**63 - 2, 1)
        lock(fd, fcntl.F_SETLK, fcntl.F_UNLCK)
        print(os.getpid())
        os.close(fd)
    """)
    whole, part, rest, last, unlock = (mounted.expect("lock", name="setlk") for _ in range(5))
    assert (whole["type"], whole["start"], whole["end"]) == (fcntl.F_WRLCK, 0, MAX)
    assert (part["type"], part["start"], part["end"]) == (fcntl.F_RDLCK, 5, 14)
    assert (rest["start"], rest["end"]) == (7, MAX)
    assert (last["start"], last["end"]) == (MAX - 1, MAX - 1)
    assert (unlock["type"], unlock["start"], unlock["end"]) == (fcntl.F_UNLCK, 0, MAX)
    assert [whole["wait"], part["wait"]] == [False, True]
    assert whole["lock_pid"] == pid
    flush = mounted.call("flush")
    assert flush["lock_owner"] == whole["owner"]
    assert flush["flush"] is True
    assert mounted.call("release")["flock_release"] is False


def test_owners(mounted: Mounted) -> None:
    """POSIX locks are owned by a process, OFD and flock locks by an open file."""
    mounted.run("""
        one, two = os.open(box, os.O_RDWR), os.open(box, os.O_RDWR)
        lock(one, fcntl.F_SETLK, fcntl.F_WRLCK)
        lock(two, fcntl.F_SETLK, fcntl.F_WRLCK)
        lock(one, fcntl.F_OFD_SETLK, fcntl.F_WRLCK)
        lock(two, fcntl.F_OFD_SETLKW, fcntl.F_WRLCK)
        fcntl.flock(two, fcntl.LOCK_EX)
    """)
    posix_one, posix_two, ofd_one, ofd_two = (
        mounted.expect("lock", name="setlk", type=fcntl.F_WRLCK) for _ in range(4)
    )
    flock = mounted.expect("lock", name="flock")
    assert posix_one["owner"] == posix_two["owner"]
    assert posix_one["fh"] != posix_two["fh"]
    assert ofd_one["owner"] not in (posix_one["owner"], ofd_two["owner"])
    assert flock["owner"] == ofd_two["owner"]
    assert ofd_two["wait"] is True


def test_threads_are_told_from_processes(mounted: Mounted) -> None:
    """A request names the thread; the lock is reported under the process."""
    process, thread = mounted.run("""
        def work():
            fd = os.open(box, os.O_RDWR)
            lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK)
            print(json.dumps([os.getpid(), threading.get_native_id()]))
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    """)
    request = mounted.expect("lock", type=fcntl.F_WRLCK)
    assert process != thread
    assert (request["lock_pid"], request["pid"]) == (process, thread)


def test_getlk(mounted: Mounted) -> None:
    script = """
        fd = os.open(box, os.O_RDWR)
        print(json.dumps(lock(fd, fcntl.F_GETLK, fcntl.F_WRLCK, 3, 4)))
    """
    assert mounted.run(script)[0] == fcntl.F_UNLCK
    request = mounted.expect("lock", name="getlk")
    assert (request["type"], request["start"], request["end"]) == (fcntl.F_WRLCK, 3, 6)
    assert request["wait"] is False
    mounted.order("lock", lock=[fcntl.F_RDLCK, 5, 9, 1])
    assert mounted.run(script) == [fcntl.F_RDLCK, 0, 5, 5, 1]
    mounted.order("lock", lock=[fcntl.F_WRLCK, 5, MAX, 1])
    assert mounted.run(script) == [fcntl.F_WRLCK, 0, 5, 0, 1]


@pytest.mark.parametrize("error", [errno.EAGAIN, errno.ENOLCK, errno.EDEADLK])
def test_refusals(mounted: Mounted, error: int) -> None:
    mounted.order("refuse", error=error)
    assert (
        mounted.run("""
        fd = os.open(box, os.O_RDWR)
        errors = []
        for attempt in (
            lambda: fcntl.flock(fd, fcntl.LOCK_EX),
            lambda: lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK),
            lambda: lock(fd, fcntl.F_OFD_SETLKW, fcntl.F_WRLCK),
        ):
            try:
                attempt()
            except OSError as refused:
                errors.append(refused.errno)
        print(json.dumps(errors))
    """)
        == [error] * 3
    )


@pytest.mark.parametrize("how", ["fcntl.flock(fd, 2)", "lock(fd, fcntl.F_SETLKW, fcntl.F_WRLCK)"])
def test_answer_comes_later(mounted: Mounted, how: str) -> None:
    """While a lock waits, the rest of the mount works; the answer wakes the client."""
    mounted.order("park", ops=["flock", "setlk"])
    client = mounted.client(f"""
        fd = os.open(box, os.O_RDWR)
        {how}
        print("granted", flush=True)
        sys.stdin.read()
    """)
    request = mounted.expect("lock")
    mounted.run("os.stat(box); os.close(os.open(box, os.O_RDWR))")
    assert client.poll() is None
    mounted.order("answer", n=request["unique"], error=0)
    assert client.stdout is not None
    assert client.stdout.readline() == "granted\n"


def test_dropped_request_is_answered(tmp_path: Path) -> None:
    server = Mounted(tmp_path)
    try:
        server.order("park", ops=["flock"])
        client = server.client("""
            try:
                fcntl.flock(os.open(box, os.O_RDWR), fcntl.LOCK_EX)
            except OSError as refused:
                print(refused.errno)
        """)
        server.expect("lock")
        server.order("drop")
        output, _ = client.communicate(timeout=5)
        assert int(output) == errno.EIO
        assert "dropped without an answer" in server.log.read_text()
    finally:
        server.end()


def test_failing_handler_is_answered(tmp_path: Path) -> None:
    server = Mounted(tmp_path)
    try:
        server.order("park", ops=["fail"])
        assert (
            server.run("""
            try:
                fcntl.flock(os.open(box, os.O_RDWR), fcntl.LOCK_EX)
            except OSError as refused:
                print(refused.errno)
        """)
            == errno.EIO
        )
        assert "ZeroDivisionError" in server.log.read_text()
    finally:
        server.end()


def test_without_handler_the_kernel_locks(tmp_path: Path) -> None:
    server = Mounted(tmp_path, "--no-locks")
    try:
        assert (
            server.run("""
            one, two = os.open(box, os.O_RDWR), os.open(box, os.O_RDWR)
            fcntl.flock(one, fcntl.LOCK_EX)
            try:
                fcntl.flock(two, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print("true")
        """)
            is True
        )
        server.stop()
    finally:
        server.end()
