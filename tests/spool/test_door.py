"""The door: plain names only, links never followed, nothing left open."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailfs.errors import Cause, Refused
from mailfs.spool.door import RENAME_EXCHANGE, RENAME_NOREPLACE, Door

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture(params=["openat2", "component by component"])
def door(request: pytest.FixtureRequest, door: Door) -> Door:
    door._has_openat2 = request.param == "openat2"
    return door


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


BAD = st.one_of(
    st.sampled_from([b"", b".", b"..", b"/", b"a/b", b"/a", b"a\0", b"../alice"]),
    st.tuples(st.binary(max_size=5), st.sampled_from([b"/", b"\0"]), st.binary(max_size=5)).map(
        b"".join
    ),
)
GOOD = st.binary(min_size=1, max_size=300).filter(
    lambda name: name not in (b".", b"..", b"alice") and b"/" not in name and b"\0" not in name
)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(GOOD, max_size=3), BAD, st.lists(GOOD, max_size=3))
def test_no_other_path_gets_in(
    door: Door, before: list[bytes], bad: bytes, after: list[bytes]
) -> None:
    path = (*before, bad, *after)
    for operation in (
        door.stat,
        door.unlink,
        door.readlink,
        door.listdir,
        door.open_directory,
        lambda path: door.open(path, os.O_WRONLY | os.O_CREAT, 0o600),
        lambda path: door.rename((b"alice",), path),
        lambda path: door.link(path, (b"x",)),
    ):
        # The kernel may find a name too long or missing before the bad one is looked at.
        with pytest.raises((Refused, OSError)) as caught:
            operation(path)
        if not before:
            assert isinstance(caught.value, Refused)
            assert caught.value.cause is Cause.NO_SUCH_NAME
    assert [entry.name for entry in door.listdir()] == [b"alice"]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(GOOD)
def test_any_plain_name_is_just_a_name(door: Door, spool: Path, name: bytes) -> None:
    if len(name) > 255:
        with pytest.raises(OSError, match="too long"):
            door.stat((name,))
        return
    fd = door.open((name,), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        assert name in os.listdir(os.fsencode(spool))
        assert door.stat((name,)).st_ino == os.fstat(fd).st_ino
    finally:
        os.close(fd)
        door.unlink((name,))


def test_links_are_never_followed(door: Door, spool: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (spool / "link").symlink_to(outside)
    (spool / "file").symlink_to(outside / "secret")
    before = os.stat(outside / "secret")
    count = open_descriptors()

    def refused(operation: Callable[[], object], *codes: int) -> None:
        with pytest.raises(OSError, match=r".") as caught:
            operation()
        assert caught.value.errno in codes

    through = (errno.ELOOP, errno.ENOTDIR)
    refused(lambda: door.stat((b"link", b"secret")), *through)
    refused(lambda: door.open((b"link", b"secret"), os.O_RDONLY), *through)
    refused(lambda: door.unlink((b"link", b"secret")), *through)
    refused(lambda: door.rename((b"alice",), (b"link", b"alice")), *through)
    refused(lambda: door.listdir((b"link",)), *through)
    refused(lambda: door.open((b"file",), os.O_RDONLY), errno.ELOOP)
    refused(lambda: door.open((b"file",), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), errno.ELOOP)
    refused(lambda: door.chmod((b"file",), 0o777), errno.EOPNOTSUPP)
    refused(lambda: door.setxattr((b"file",), b"user.x", b"1"), errno.EPERM, errno.EOPNOTSUPP)
    door.chown((b"file",), os.getuid(), os.getgid())
    door.utime_ns((b"file",), 1, 1)
    after = os.stat(outside / "secret")
    assert (before.st_ctime_ns, before.st_mode) == (after.st_ctime_ns, after.st_mode)
    assert stat.S_ISLNK(door.stat((b"file",)).st_mode)
    assert door.readlink((b"link",)) == os.fsencode(outside)
    door.link((b"file",), (b"second",))
    assert stat.S_ISLNK(door.stat((b"second",)).st_mode)
    assert open_descriptors() == count


def test_a_directory_that_flips_to_a_link_never_leads_outside(
    door: Door, spool: Path, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "x").write_text("outside")
    (spool / "dir").mkdir()
    (spool / "dir" / "x").write_text("inside")
    (spool / "link").symlink_to(tmp_path / "outside")
    done = threading.Event()

    def flip() -> None:
        while not done.is_set():
            door.rename((b"dir",), (b"link",), RENAME_EXCHANGE)

    thread = threading.Thread(target=flip)
    thread.start()
    read = tries = 0
    end = time.monotonic() + 20
    codes: set[int | None] = set()
    try:
        # On a busy machine the two threads can run in step for long.
        while tries < 3000 or (read == 0 and time.monotonic() < end):
            tries += 1
            try:
                fd = door.open((b"dir", b"x"), os.O_RDONLY)
            except OSError as error:
                codes.add(error.errno)
                continue
            try:
                assert os.read(fd, 10) == b"inside"
            finally:
                os.close(fd)
            read += 1
    finally:
        done.set()
        thread.join()
    assert read > 0
    assert codes <= {errno.ELOOP, errno.ENOTDIR}


def test_a_fifo_does_not_hang_us(door: Door) -> None:
    door.mknod((b"fifo",), stat.S_IFIFO | 0o600)
    os.close(door.open((b"fifo",), os.O_RDONLY))
    with pytest.raises(OSError, match="No such device"):
        door.open((b"fifo",), os.O_WRONLY)


def test_everyday_operations(door: Door, spool: Path) -> None:
    count = open_descriptors()
    door.mkdir((b"a",), 0o700)
    door.mkdir((b"a", b"b"), 0o700)
    deep = (b"a", b"b", b"new\nline\xff")
    fd = door.open(deep, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, b"hello")
    os.close(fd)
    door.link(deep, (b"other",))
    assert door.stat((b"other",)).st_nlink == 2
    door.chmod(deep, 0o640)
    door.utime_ns(deep, 5_000_000_001, None)
    door.utime_ns(deep, None, -1_500_000_000)
    seen = door.stat((b"other",))
    assert stat.S_IMODE(seen.st_mode) == 0o640
    assert (seen.st_atime_ns, seen.st_mtime_ns) == (5_000_000_001, -1_500_000_000)
    door.setxattr(deep, b"user.mailfs", b"v")
    assert door.getxattr((b"other",), b"user.mailfs") == b"v"
    assert b"user.mailfs" in door.listxattr(deep)
    door.removexattr(deep, b"user.mailfs")
    assert b"user.mailfs" not in door.listxattr(deep)
    with pytest.raises(FileExistsError):
        door.rename(deep, (b"other",), RENAME_NOREPLACE)
    door.rename(deep, (b"moved",))
    door.symlink(b"to", (b"link",))
    kinds = {entry.name: entry.type for entry in door.listdir()}
    assert kinds == {b"a": 4, b"alice": 8, b"other": 8, b"moved": 8, b"link": 10}
    assert {entry.inode for entry in door.listdir() if entry.name == b"alice"} == {
        os.stat(spool / "alice").st_ino
    }
    door.unlink((b"moved",))
    door.rmdir((b"a", b"b"))
    door.rmdir((b"a",))
    assert door.stat(()).st_ino == os.stat(spool).st_ino
    assert door.statvfs().f_bsize > 0
    for useless in (door.unlink, door.rmdir):
        with pytest.raises(OSError, match=r"directory|busy|Invalid"):
            useless(())
    assert open_descriptors() == count


def test_the_root_stays_when_the_spool_is_renamed(door: Door, spool: Path) -> None:
    spool.rename(spool.with_name("moved"))
    spool.mkdir()
    assert [entry.name for entry in door.listdir()] == [b"alice"]


def test_without_openat2(door: Door, spool: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (spool / "d").mkdir()
    (spool / "d" / "x").write_text("")
    door._has_openat2 = True

    def missing(*_: object) -> int:
        raise OSError(errno.ENOSYS, "no openat2")

    monkeypatch.setattr("mailfs.spool.door._openat2", missing)
    assert door.stat((b"d", b"x")).st_size == 0
    assert not door._has_openat2


def test_close_twice(spool: Path) -> None:
    door = Door.at(str(spool))
    door.close()
    door.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        door.stat((b"alice",))
