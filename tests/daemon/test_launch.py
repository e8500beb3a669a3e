"""Starting a daemon: what the parent says and returns, whatever becomes of the child."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import signal
import subprocess
import sys
import textwrap
import time
from typing import TYPE_CHECKING

import pytest

from mailfs.daemon import launch as launching
from mailfs.daemon import mountinfo
from mailfs.daemon.config import MountOptions
from mailfs.daemon.errors import Exit, MountError

if TYPE_CHECKING:
    from collections.abc import Iterator

PROGRAM = """
import os, sys, time
from mailfs.daemon import launch as launching
from mailfs.daemon.config import Config, MountOptions
from mailfs.daemon.errors import MountError
launching._check_device = lambda: None
launching._check_user = lambda mountpoint, options: None

def run(config, spool, mountpoint, options, ready):
    with open(os.path.join(spool, "pid"), "w") as file:
        file.write(str(os.getpid()))
{body}

try:
    code = launching.launch(Config(), sys.argv[1], sys.argv[1], MountOptions(allow_other=False),
                            foreground={foreground}, log={log!r}, run=run)
except MountError as error:
    print("MountError:", error.message, flush=True)
    code = error.exit_code
print("returned", flush=True)
sys.exit(code)
"""


class Started:
    """What launching a made-up daemon came to."""

    def __init__(
        self, spool: pathlib.Path, body: str, *, foreground: bool = False, log: str | None = None
    ) -> None:
        code = PROGRAM.format(
            body=textwrap.indent(textwrap.dedent(body), "    "), foreground=foreground, log=log
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(spool)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"},
        )
        self.code, self.output, self.errors = done.returncode, done.stdout, done.stderr
        pid = spool / "pid"
        self.pid = int(pid.read_text()) if pid.exists() else None


@pytest.fixture
def spool(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A spool; a daemon that was started on it is ended."""
    path = tmp_path / "spool"
    path.mkdir()
    yield path
    if (path / "pid").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((path / "pid").read_text()), signal.SIGKILL)


def test_the_command_returns_when_the_mount_answers(spool: pathlib.Path) -> None:
    body = """
    time.sleep(0.5)
    open(os.path.join(spool, "answers"), "w").close()
    ready()
    time.sleep(30)
    """
    started = Started(spool, body)
    assert (started.code, started.output) == (0, "returned\n")
    assert (spool / "answers").exists()
    assert started.pid is not None
    assert os.getsid(started.pid) == started.pid
    assert os.readlink(f"/proc/{started.pid}/cwd") == "/"
    for descriptor in (0, 1, 2):
        assert os.readlink(f"/proc/{started.pid}/fd/{descriptor}") == os.devnull
    status = pathlib.Path(f"/proc/{started.pid}/status").read_text()
    assert re.search(r"^Umask:\t0000$", status, re.MULTILINE)


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        ("raise MountError('no\\nway', 72)", 72, "no / way"),
        ("return 0", 70, "the mount ended before it answered"),
        ("return 71", 71, "the mount ended before it answered"),
        ("1 / 0", 70, "the daemon failed: ZeroDivisionError('division by zero')"),
        ("os._exit(3)", 70, "ended with exit code 3 before the mount answered"),
        ("os.kill(os.getpid(), 9)", 70, "was killed by SIGKILL before the mount answered"),
        ("sys.exit(5)", 70, "the daemon failed: SystemExit(5)"),
    ],
)
def test_a_failure_is_told_by_the_command(
    spool: pathlib.Path, body: str, code: int, message: str
) -> None:
    started = Started(spool, body)
    assert started.code == code
    assert message in started.output
    assert started.output.count("returned") == 1


def test_in_the_foreground_the_code_is_that_of_the_daemon(spool: pathlib.Path) -> None:
    assert Started(spool, "ready(); return 7", foreground=True).code == 7


def test_the_log_goes_to_a_file_and_cannot_be_forged(spool: pathlib.Path) -> None:
    log = spool / "log"
    body = r"""
    import logging
    ready()
    logging.getLogger("a").warning("bad name %s", "x\nmailfs ERROR \x1b[31m")
    logging.getLogger("a").debug("too small")
    raise RuntimeError("late")
    """
    started = Started(spool, body, log=str(log))
    assert started.code == 0
    deadline = time.monotonic() + 10
    while "late" not in (text := log.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    first, second, *traceback = text.splitlines()
    assert first.endswith(r"WARNING a: bad name x\x0amailfs ERROR \x1b[31m")
    assert "CRITICAL" in second
    assert all(line.startswith("    ") for line in traceback)
    assert log.stat().st_mode & 0o777 == 0o640


def test_a_log_that_cannot_be_written_is_refused(spool: pathlib.Path) -> None:
    started = Started(spool, "ready()", log=str(spool))
    assert started.code == Exit.CANTCREAT
    assert "the log cannot be written: Is a directory" in started.output


OPTIONS = MountOptions(allow_other=False)


def test_what_is_no_directory_is_refused(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(MountError, match="the spool is not a directory") as caught:
        launching.check(str(file), str(tmp_path), OPTIONS)
    assert caught.value.exit_code == Exit.NOINPUT
    with pytest.raises(MountError, match="the mountpoint does not exist"):
        launching.check(str(tmp_path), str(tmp_path / "nothing"), OPTIONS)


def test_a_mountpoint_inside_the_spool_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(MountError, match="lies inside the spool"):
        launching.check(str(tmp_path), str(tmp_path / "in"), OPTIONS)


def test_a_missing_device_is_told_with_the_remedy(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "DEVICE", str(tmp_path / "fuse"))
    with pytest.raises(MountError, match="modprobe fuse") as caught:
        launching.check(str(tmp_path), str(tmp_path), OPTIONS)
    assert caught.value.exit_code == Exit.OSFILE


def test_a_missing_fusermount_is_told_to_ordinary_users(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launching, "DEVICE", os.devnull)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MountError, match="install the package fuse3"):
        launching.check(str(tmp_path), str(tmp_path), OPTIONS)


def test_allow_other_needs_fuse_conf(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = tmp_path / "fuse.conf"
    conf.write_text("#user_allow_other\n")
    fusermount = tmp_path / "fusermount3"
    fusermount.touch(0o755)
    monkeypatch.setattr(launching, "DEVICE", os.devnull)
    monkeypatch.setattr(launching, "FUSE_CONF", str(conf))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("PATH", str(tmp_path))
    options = MountOptions(allow_other=True)
    with pytest.raises(MountError, match="user_allow_other stands in"):
        launching.check(str(tmp_path), str(tmp_path), options)
    conf.write_text("user_allow_other\n")
    launching.check(str(tmp_path), str(tmp_path), options)


MOUNTINFO = rb"""22 1 0:5 / / rw - ext4 /dev/root rw
23 22 0:6 / /va\040r/mail rw,nosuid shared:1 - fuse.mailfs mailfs rw,user_id=0
24 22 0:7 / /mnt/\012\134 rw - tmpfs tmpfs rw
25 22 0:7 / /va\040r/mail rw master:1 propagate_from:2 - fuse.mailfs mailfs rw
broken
- -
x 22 0:7 / /y rw - tmpfs tmpfs rw
"""


def test_mountinfo_is_parsed() -> None:
    found = mountinfo.parse(MOUNTINFO)
    assert [mount.mountpoint for mount in found] == ["/", "/va r/mail", "/mnt/\n\\", "/va r/mail"]
    assert [mount.fstype for mount in found] == ["ext4", "fuse.mailfs", "tmpfs", "fuse.mailfs"]


def test_mounts_are_found_by_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mountinfo, "mounts", lambda: mountinfo.parse(MOUNTINFO))
    top = mountinfo.top_mount("/va r/mail")
    assert top is not None
    assert top.id == 25
    assert mountinfo.top_mount("/va r") is None
    assert mountinfo.mount_of("/va r/mail/a/b") == top
    root = mountinfo.mount_of("/va r/x")
    assert root is not None
    assert root.id == 22


def test_a_spool_that_is_mounted_over_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = mountinfo.Mount(1, str(tmp_path), mountinfo.FSTYPE, "mailfs")
    monkeypatch.setattr(mountinfo, "mounts", lambda: [ours])
    with pytest.raises(MountError, match="mounted over this spool already; `mailfs umount"):
        launching.check(str(tmp_path), "/", OPTIONS)


def test_resolve_follows_links(tmp_path: pathlib.Path) -> None:
    real = tmp_path / "real"
    (real / "mail").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "mail").symlink_to("link/mail")
    (tmp_path / "dots").symlink_to("link/mail/..")
    (tmp_path / "loop").symlink_to("loop")
    for name, target in (
        ("mail", real / "mail"),
        ("link/mail/", real / "mail"),
        ("dots", real),
        ("nothing/x", tmp_path / "nothing" / "x"),
    ):
        assert mountinfo.resolve(f"{tmp_path}/{name}") == os.path.realpath(target)
    mountinfo.resolve(str(tmp_path / "loop"))
    assert mountinfo.resolve("/") == "/"
