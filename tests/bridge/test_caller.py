"""The bridge says who asks, and through what."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.bridge.mounted import Mounted


def test_getattr_with_and_without_handle(mounted: Mounted) -> None:
    """The kernel sends the handle with the getattr of lseek(SEEK_END), not with fstat's."""
    pid = mounted.run("""
        os.stat(box)
        fd = os.open(box, os.O_RDWR)
        os.lseek(fd, 0, os.SEEK_END)
        print(os.getpid())
    """)
    by_name = mounted.call("getattr", ino=2)
    assert by_name["fh"] is None
    assert by_name["pid"] == pid
    opened = mounted.call("open")
    assert opened["fh"] is None
    assert opened["flags"] & os.O_ACCMODE == os.O_RDWR
    by_handle = mounted.call("getattr", ino=2)
    assert by_handle["fh"] == 11


def test_setattr_with_and_without_handle(mounted: Mounted) -> None:
    mounted.run("""
        os.truncate(box, 5)
        fd = os.open(box, os.O_RDWR)
        os.ftruncate(fd, 3)
    """)
    assert mounted.call("setattr")["fh"] is None
    assert mounted.call("setattr")["fh"] == 11


def test_flags_are_those_of_now(mounted: Mounted) -> None:
    """O_APPEND set after open is in the next write, and gone after it is cleared."""
    mounted.run("""
        fd = os.open(box, os.O_RDWR)
        os.write(fd, b"a")
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
        os.write(fd, b"b")
        os.read(fd, 1)
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)
        os.write(fd, b"c")
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_APPEND)
    """)
    assert [mounted.call("write")["flags"] & os.O_APPEND != 0 for _ in range(2)] == [False, True]
    assert mounted.call("read")["flags"] & os.O_APPEND
    assert not mounted.call("write")["flags"] & os.O_APPEND
    release = mounted.call("release")
    assert release["flags"] & os.O_APPEND
    assert release["fh"] == 11
    assert release["pid"] == 0


def test_lock_owner_of_read_and_flush(mounted: Mounted) -> None:
    """A process is one owner, its child another: so their flushes of a shared handle differ."""
    mounted.run("""
        fd = os.open(box, os.O_RDWR)
        lock(fd, fcntl.F_SETLK, fcntl.F_WRLCK)
        if (child := os.fork()) == 0:
            os.close(fd)
            os._exit(0)
        os.waitpid(child, 0)
        os.close(fd)
        print(child)
    """)
    owner = mounted.expect("lock")["owner"]
    childs, parents = mounted.call("flush"), mounted.call("flush")
    assert childs["lock_owner"] not in (0, owner)
    assert parents["lock_owner"] == owner
    assert childs["pid"] != parents["pid"]
    assert childs["fh"] == parents["fh"]


def test_every_operation_names_its_caller(mounted: Mounted) -> None:
    pid = mounted.run("""
        os.listdir(os.path.dirname(box))
        os.statvfs(box)
        fd = os.open(box, os.O_RDWR)
        os.fsync(fd)
        print(os.getpid())
    """)
    for name, fh in [("opendir", None), ("readdir", 1), ("releasedir", 1), ("statfs", None)]:
        call = mounted.call(name)
        assert call["fh"] == fh
        if name != "releasedir":
            assert (call["pid"], call["uid"]) == (pid, os.getuid())
    assert mounted.call("fsync")["fh"] == 11


def test_create(mounted: Mounted) -> None:
    mounted.run("os.open(box + '2', os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)")
    call = mounted.call("create")
    assert (call["ino"], call["fh"]) == (1, None)
    assert call["flags"] & os.O_ACCMODE == os.O_WRONLY


def test_after_an_await_caller_is_right_or_refuses(mounted: Mounted) -> None:
    mounted.run("""
        def ask():
            for _ in range(10):
                try:
                    os.getxattr(box, "user.x")
                except OSError:
                    pass
        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """)
    refused = wrong = 0
    while not mounted.events.empty():
        event = mounted.events.get()
        refused += event["event"] == "refused"
        wrong += event["event"] == "kept" and not event["same"]
    assert refused
    assert not wrong


def test_fallocate_is_emulated(mounted: Mounted) -> None:
    assert mounted.run("""
        fd = os.open(box, os.O_RDWR)
        libc = ctypes.CDLL(None, use_errno=True)
        direct = libc.fallocate(fd, 0, ctypes.c_long(0), ctypes.c_long(100))
        error = ctypes.get_errno()
        os.posix_fallocate(fd, 0, 100)
        print(json.dumps([direct, error, os.fstat(fd).st_size]))
    """) == [-1, errno.EOPNOTSUPP, 100]
