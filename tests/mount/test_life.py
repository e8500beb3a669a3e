"""The life of a mount: how it ends, and what is left when its daemon is killed (issue 2, design
7.4).
"""

from __future__ import annotations

import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.mbox import message
from tests.support.mounts import REPOSITORY, Mount, Place, mounts_at
from tests.support.processes import until

if TYPE_CHECKING:
    from tests.support.users import User


def umount(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mailfs", "umount", *arguments],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_unmounts(mail: Place, alice: User, number: signal.Signals) -> None:
    mount = mail.mailfs
    assert mount
    mail.crew.ok(["sh", "-c", 'cat >> "$0"', mail.path(alice)], user=alice, content=message("a", 0))
    mount.process.send_signal(number)
    assert mount.process.wait(10) == 0
    assert not mounts_at(mount.dir)
    mail.holds(alice, ["a-0"])
    again = Mount.start(mail.spool.parent, mail.spool)
    mount.process, mount.device = again.process, again.device
    assert mail.seen(alice) == mail.content(alice)


def test_umount_command(mail: Place) -> None:
    mount = mail.mailfs
    assert mount
    done = umount(str(mount.dir))
    assert done.returncode == 0, done.stderr
    assert mount.process.wait(5) == 0
    assert not mounts_at(mount.dir)
    again = Mount.start(mail.spool.parent, mail.spool)
    mount.process, mount.device = again.process, again.device


def test_a_dead_mount_is_cleared_at_start(mail: Place, alice: User) -> None:
    """After SIGKILL the mount answers ENOTCONN; mounting again just works, inodes unchanged."""
    mount = mail.mailfs
    assert mount
    path = mail.path(alice)
    mail.crew.ok(["sh", "-c", 'cat >> "$0"', path], user=alice, content=message("a", 0))
    before = mail.crew.ok(["stat", "-c", "%i", path])
    holder = mail.crew.actor(alice)
    holder.do(f"lock('flock', {path!r})")
    mount.process.kill()
    mount.process.wait(5)
    assert mounts_at(mount.dir), "a killed daemon cannot unmount"
    assert holder.errno(f"os.stat({path!r})") != 0
    mount.announce("(?i)dead|stale|earlier")
    again = Mount.start(mail.spool.parent, mail.spool)
    mount.process, mount.device = again.process, again.device
    assert len(mounts_at(mount.dir)) == 1
    assert mail.crew.ok(["stat", "-c", "%i", path]) == before
    other = mail.crew.actor(alice)
    until(lambda: other.errno(f"lock('flock', {path!r})") == 0, 2, "the old holder is gone with it")
    mail.holds(alice, ["a-0"])


def test_one_daemon_a_spool(mail: Place) -> None:
    second = mail.spool.parent / "second"
    second.mkdir()
    command = [
        sys.executable,
        "-m",
        "mailfs",
        "mount",
        "--foreground",
        str(mail.spool),
        str(second),
    ]
    done = subprocess.run(
        command, cwd=REPOSITORY, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    assert str(mail.spool) in done.stderr
    assert not mounts_at(second)


def test_a_busy_mount_is_detached(mail: Place, alice: User) -> None:
    mount = mail.mailfs
    assert mount
    guest = mail.crew.actor(alice)
    guest.do(f"os.chdir({str(mail.dir)!r}); fd = os.open({mail.path(alice)!r}, os.O_RDWR)")
    mount.process.send_signal(signal.SIGTERM)
    until(lambda: not mounts_at(mount.dir), 10, "detached")
    guest.kill()
    mount.process.wait(10)
    mount.announce("(?i)busy|lazi|detach")
    again = Mount.start(mail.spool.parent, mail.spool)
    mount.process, mount.device = again.process, again.device
