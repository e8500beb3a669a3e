"""A throw-away spool, and mailfs mounted over it by a daemon in the foreground.

Nothing here calls into the mount from the test process: readiness is read from
/proc/self/mountinfo, and what a mount shows is fetched by a child with a time limit. A daemon that
hangs is got rid of by aborting its FUSE connection.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.mbox import examine, verify_mbox
from tests.support.processes import Crew, until

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tests.support.users import User

DIRECTORY = "mailfs-test-"  # of a session, under the temporary directory: then its pid, then "-"
OPTIONS = "MAILFS_TEST_MOUNT"
"""Environment: mount options that all tests mount with, separated by blanks (``no_passthrough``)."""
REPOSITORY = Path(__file__).parents[2]
_TROUBLE = re.compile(
    r"Traceback|\b(WARNING|ERROR|CRITICAL)\b|^<[0-4]>|^Fatal Python error", re.IGNORECASE
)
_READY = 20.0


@dataclass(frozen=True)
class SpoolMode:
    """Mode and group of a spool directory, as the two kinds of systems have it."""

    text: str
    mode: int
    group: str


MODES = (SpoolMode("1777", 0o1777, "root"), SpoolMode("2775", 0o2775, "mail"))


def make_spool(where: Path, mode: SpoolMode, users: Iterable[User]) -> Path:
    """Make a spool with an empty mailbox, USER:mail 0660, for each user."""
    spool = where / "spool"
    spool.mkdir()
    shutil.chown(spool, "root", mode.group)
    spool.chmod(mode.mode)
    for user in users:
        mailbox = spool / user.name
        mailbox.touch()
        shutil.chown(mailbox, user.uid, "mail")
        mailbox.chmod(0o660)
    return spool


def mounts_at(path: Path) -> list[tuple[int, str]]:
    """Give (device number, type) of each mount at a path, without touching it."""
    wanted = str(path).encode("unicode_escape").decode()
    found = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split()
        if fields[4] == wanted:
            major, minor = map(int, fields[2].split(":"))
            found.append((os.makedev(major, minor), right.split()[0]))
    return found


def remove_leftovers(temporary: Path) -> None:
    """Unmount and remove what test sessions that are no more have left."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    for top in temporary.glob(f"{DIRECTORY}*-*"):
        pid = top.name.removeprefix(DIRECTORY).partition("-")[0]
        if not re.fullmatch("[0-9a-f]+", pid) or Path(f"/proc/{int(pid, 16)}").exists():
            continue
        for at in [line.split()[4] for line in lines if line.split()[4].startswith(f"{top}/")]:
            subprocess.run(["fusermount3", "-uz", at], capture_output=True, timeout=10, check=False)
        if f" {top}/" not in Path("/proc/self/mountinfo").read_text():
            shutil.rmtree(top, ignore_errors=True)


def abort(device: int) -> None:
    """End a FUSE connection by force: all its requests fail with ENOTCONN, whatever the daemon
    does.
    """
    control = Path(f"/sys/fs/fuse/connections/{os.minor(device)}/abort")
    if not control.parent.parent.exists() or not any(control.parent.parent.iterdir()):
        subprocess.run(
            ["mount", "-t", "fusectl", "none", "/sys/fs/fuse/connections"],
            capture_output=True,
            timeout=5,
            check=False,
        )
    with contextlib.suppress(OSError):
        control.write_text("1")


@dataclass
class Place:
    """A directory that clients work in, and the real files behind it (the same for a plain
    directory).
    """

    dir: Path
    spool: Path
    crew: Crew
    mailfs: Mount | None = None

    def path(self, user: User) -> str:
        """The mailbox of a user, as clients name it."""
        return str(self.dir / user.name)

    def content(self, user: User) -> bytes:
        """What is in a user's mailbox for good: the backing file."""
        return (self.spool / user.name).read_bytes()

    def holds(self, user: User, wanted: Sequence[str], limit: float = 5.0) -> None:
        """Assert that a mailbox comes to hold exactly these messages."""
        with contextlib.suppress(AssertionError):
            until(lambda: not examine(self.content(user), wanted).faults(), limit, "whole")
        verify_mbox(self.content(user), wanted)

    def seen(self, user: User) -> bytes:
        """What a program sees in the mailbox."""
        return self.crew.ok(["cat", self.path(user)], user=user)


@dataclass
class Mount:
    """A mounted spool and its daemon."""

    spool: Path
    dir: Path
    log_file: Path
    process: subprocess.Popen[bytes]
    device: int = 0
    announced: list[str] = field(default_factory=list)

    @classmethod
    def start(cls, where: Path, spool: Path, options: Iterable[str] = ()) -> Mount:
        """Mount a spool on a new directory beside it, and wait until it is mounted."""
        directory = where / "mnt"
        if not mounts_at(directory):  # a dead mount must not even be looked at
            directory.mkdir(exist_ok=True)
        log_file = where / "daemon.log"
        argv = [sys.executable, "-X", "faulthandler", "-m", "mailfs", "mount", "--foreground"]
        for option in (*options, *os.environ.get(OPTIONS, "").split()):
            argv += ["-o", option]
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                [*argv, str(spool), str(directory)],
                cwd=REPOSITORY,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"},
            )
        mount = cls(spool, directory, log_file, process)
        try:
            until(lambda: mount._answers() or process.poll() is not None, _READY, "mounted")
            assert mount.alive(), f"the daemon ended with {process.returncode}:\n{mount.log()}"
        except BaseException:
            mount.destroy()
            raise
        return mount

    def _mounted(self) -> bool:
        found = mounts_at(self.dir)
        if found:
            self.device = found[-1][0]
        return bool(found)

    def _answers(self) -> bool:
        """Mounted by this daemon, not by a dead one, and answering."""
        if not self._mounted():
            return False
        with contextlib.suppress(subprocess.TimeoutExpired):
            argv = ["stat", "-c", "%i", str(self.dir)]  # 1: the root of a FUSE mount
            done = subprocess.run(argv, capture_output=True, timeout=5, check=False)
            return done.returncode == 0 and done.stdout.strip() == b"1"
        return False

    def log(self) -> str:
        """What the daemon has said so far."""
        return self.log_file.read_text(errors="replace")

    def announce(self, pattern: str) -> None:
        """Expect a line of trouble in the log that matches this pattern."""
        self.announced.append(pattern)

    def trouble(self) -> list[str]:
        """Warnings, errors and tracebacks in the log that nobody announced."""
        return [
            line
            for line in self.log().splitlines()
            if _TROUBLE.search(line) and not any(re.search(known, line) for known in self.announced)
        ]

    def alive(self) -> bool:
        """Whether the daemon still runs."""
        return self.process.poll() is None

    def locks(self) -> str:
        """The lock table, or why there is none."""
        try:
            done = subprocess.run(
                ["cat", self.dir / ".mailfs" / "locks"], capture_output=True, timeout=3, check=False
            )
        except subprocess.TimeoutExpired:
            return "(the mount does not answer)"
        return (done.stdout + done.stderr).decode(errors="replace")

    def story(self) -> str:
        """What a failed test should tell about the daemon."""
        state = "alive" if self.alive() else f"ended with {self.process.returncode}"
        tail = "\n".join(self.log().splitlines()[-60:])
        return f"daemon {state}\n-- locks --\n{self.locks()}\n-- log --\n{tail}"

    def stop(self) -> list[str]:
        """Unmount as an administrator would and give the complaints about how it went."""
        complaints = []
        if not self.alive():
            complaints.append(f"the daemon ended by itself with {self.process.returncode}")
        else:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                complaints.append("the daemon was still there 10 s after SIGTERM")
            else:
                if self.process.returncode:
                    complaints.append(f"the daemon's exit status was {self.process.returncode}")
        if self._mounted():
            complaints.append("the daemon left its mount behind")
        self.destroy()
        if self._mounted():
            complaints.append("the mount cannot be removed")
        complaints += [f"unexpected in the log: {line}" for line in self.trouble()]
        left = sorted(p.name for p in self.spool.iterdir() if p.name.endswith(".lock"))
        if left and not complaints:
            complaints.append(f"lock files left in the backing spool: {left}")
        return complaints

    def destroy(self) -> None:
        """Get rid of mount and daemon, whatever state they are in."""
        if self.alive():
            if self._mounted():  # otherwise its number may be another mount's by now
                abort(self.device)
            self.process.kill()
        for _ in range(5):
            if not mounts_at(self.dir):
                break
            subprocess.run(
                ["fusermount3", "-uz", self.dir], capture_output=True, timeout=10, check=False
            )
            time.sleep(0.05)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)
        # c-client and lockmail name a second lock after the mailbox's device number, and leave it
        # behind.
        for lock in Path("/tmp").glob(f".{self.device:x}.*"):
            lock.unlink(missing_ok=True)
