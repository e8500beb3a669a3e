"""Mounts whose daemon is dead or stands still: made by hand, by mount(2) on /dev/fuse."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from mailfs.cli.main import main
from mailfs.daemon import mountinfo
from mailfs.daemon.errors import MountError
from mailfs.daemon.launch import clear_dead_mount

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.fuse

LIBC = ctypes.CDLL(None, use_errno=True)


def mount_by_hand(path: pathlib.Path, fstype: bytes) -> int:
    """Mount without anybody to serve it; closing the descriptor returned leaves it dead."""
    descriptor = os.open("/dev/fuse", os.O_RDWR)
    data = f"fd={descriptor},rootmode=40000,user_id=0,group_id=0".encode()
    if LIBC.mount(b"test", os.fsencode(path), fstype, 2 | 4, data) != 0:
        os.close(descriptor)
        pytest.fail(f"mount: {os.strerror(ctypes.get_errno())}; these tests need root")
    return descriptor


@pytest.fixture
def mountpoint(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A directory with nothing mounted on it afterwards."""
    path = pathlib.Path(os.path.realpath(tmp_path)) / "mail"
    path.mkdir()
    yield path
    while LIBC.umount2(os.fsencode(path), 2) == 0:
        pass
    assert mountinfo.top_mount(str(path)) is None


def test_dead_mounts_are_cleared(mountpoint: pathlib.Path) -> None:
    for _ in range(2):
        os.close(mount_by_hand(mountpoint, b"fuse.mailfs"))
    clear_dead_mount(str(mountpoint))
    assert mountinfo.top_mount(str(mountpoint)) is None
    assert os.listdir(mountpoint) == []
    clear_dead_mount(str(mountpoint))


def test_a_dead_mount_of_somebody_else_is_left_alone(mountpoint: pathlib.Path) -> None:
    os.close(mount_by_hand(mountpoint, b"fuse.other"))
    with pytest.raises(MountError, match=r"a dead mount of type fuse\.other is here"):
        clear_dead_mount(str(mountpoint))
    assert mountinfo.top_mount(str(mountpoint)) is not None


def test_a_dead_mount_is_unmounted(
    mountpoint: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.close(mount_by_hand(mountpoint, b"fuse.mailfs"))
    assert main(["locks", str(mountpoint)]) == 69
    assert "its daemon is dead" in capsys.readouterr().err
    assert main(["umount", str(mountpoint)]) == 0
    assert mountinfo.top_mount(str(mountpoint)) is None


@pytest.mark.parametrize("lazy", [False, True])
def test_a_mount_that_stands_still_is_unmounted(mountpoint: pathlib.Path, *, lazy: bool) -> None:
    descriptor = mount_by_hand(mountpoint, b"fuse.mailfs")
    command = [sys.executable, "-m", "mailfs", "umount", *(["--lazy"] if lazy else [])]
    process = subprocess.Popen([*command, str(mountpoint)], stderr=subprocess.PIPE, text=True)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        os.close(descriptor)  # ends every request
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait(10)
    assert process.returncode == 0, errors
    deadline = time.monotonic() + 5
    while mountinfo.top_mount(str(mountpoint)) is not None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def mailfs(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a command line."""
    return subprocess.run(
        [sys.executable, "-m", "mailfs", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


def daemon_of(mountpoint: pathlib.Path) -> int:
    done = mailfs("status", "--json", mountpoint)
    assert done.returncode == 0, done.stderr
    return int(json.loads(done.stdout)["pid"])


def test_the_life_of_a_mount(mountpoint: pathlib.Path) -> None:
    log = mountpoint.parent / "log"
    done = mailfs("mount", "--log", log, "-o", "locks.lease=7", mountpoint)
    assert done.returncode == 0, done.stderr
    assert "\nlease = 7.0\n" in (mountpoint / ".mailfs" / "config").read_text()
    assert mailfs("locks", mountpoint).stdout.startswith("MAILBOX ")
    daemon = os.pidfd_open(daemon_of(mountpoint))

    again = mailfs("mount", mountpoint)
    assert (again.returncode, "`mailfs umount" in again.stderr) == (69, True)

    done = mailfs("umount", mountpoint)
    assert (done.returncode, done.stderr) == (0, "")
    assert mountinfo.top_mount(str(mountpoint)) is None
    ended = select.select([daemon], [], [], 0)[0]  # readable when ended, though not yet reaped
    os.close(daemon)
    assert ended
    assert "WARNING" not in log.read_text()


def test_a_busy_mount_says_who_and_is_detached(mountpoint: pathlib.Path) -> None:
    assert mailfs("mount", mountpoint).returncode == 0
    daemon = os.pidfd_open(daemon_of(mountpoint))
    with subprocess.Popen(["sleep", "30"], cwd=mountpoint) as user:
        try:
            done = mailfs("umount", mountpoint)
            assert done.returncode == 0
            assert f"pid {user.pid} (sleep, uid {os.getuid()}): {mountpoint}" in done.stderr
            assert "detached" in done.stderr
            assert mountinfo.top_mount(str(mountpoint)) is None
        finally:
            user.kill()
    assert select.select([daemon], [], [], 20)[0], "the daemon has not ended"
    os.close(daemon)


def test_a_killed_daemon_is_replaced(mountpoint: pathlib.Path) -> None:
    assert mailfs("mount", mountpoint).returncode == 0
    pid = daemon_of(mountpoint)
    daemon = os.pidfd_open(pid)
    os.kill(pid, signal.SIGKILL)
    assert select.select([daemon], [], [], 10)[0]
    os.close(daemon)
    assert mailfs("mount", mountpoint).returncode == 0
    assert daemon_of(mountpoint) != pid
    assert mailfs("umount", mountpoint).returncode == 0
