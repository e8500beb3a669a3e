"""An ordinary user mounts a directory of his own by fusermount3, works in it and unmounts it.

On a test machine /dev/fuse may be root's alone, and Python and mailfs may lie where ordinary users
cannot go. So each test makes a mount namespace of its own, as root: with a /dev/fuse made for the
purpose, and with the interpreter, its packages and mailfs bound to places that all can reach.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support import actor_main
from tests.support.mbox import message, names, verify_mbox
from tests.support.mounts import REPOSITORY
from tests.support.processes import PYTHON, Actor, environment, until
from tests.support.system import program
from tests.support.users import ROOT

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tests.support.processes import Crew
    from tests.support.users import User

pytestmark = pytest.mark.timeout(90)

# $1 is where this test's things lie, $2 python's prefix, $3 where packages are, $4 mailfs, $5 the
# mode of /dev/fuse or nothing. /dev is a new one with little in it. A mount of other tests that was
# copied along would live on in here when it is unmounted there, so it goes.
SET_UP = """
set -e
sed -n 's/^\\([^ ]* \\)\\{4\\}\\([^ ]*\\).* - fuse\\.mailfs .*/\\2/p' /proc/self/mountinfo |
    while read -r other; do umount -l -c -i -n "$other" || true; done
mount -t tmpfs -o mode=0755 tmpfs "$1/dev"
mknod -m 666 "$1/dev/null" c 1 3
mknod -m 666 "$1/dev/zero" c 1 5
mknod -m 666 "$1/dev/urandom" c 1 9
[ -z "$5" ] || mknod -m "$5" "$1/dev/fuse" c 10 229
mount --bind "$2" "$1/python"
mount --bind "$3" "$1/packages"
mount --bind "$4" "$1/mailfs"
mount --bind "$1/fuse.conf" /etc/fuse.conf
mount --move "$1/dev" /dev
echo ready
exec sleep 600
"""


class Enclave:
    """A mount namespace, and commands in it as an ordinary user."""

    def __init__(self, where: Path, crew: Crew, user: User, fuse: str) -> None:
        self.where = where
        self.user = user
        self._crew = crew
        for name in ("dev", "python", "packages", "mailfs"):
            (where / name).mkdir()
        self.configuration = where / "fuse.conf"
        self.configuration.touch(mode=0o644)
        packages = Path(pytest.__file__).parents[1]
        arguments = map(str, (where, sys.base_prefix, packages, REPOSITORY, fuse))
        keeper = crew.start(
            ["unshare", "-m", "--propagation", "slave", "sh", "-c", SET_UP, "sh", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert keeper.stdout
        said = keeper.stdout.readline()
        assert said == b"ready\n", said + keeper.stdout.read()
        self.pid = keeper.pid
        self._namespace = (Path("/proc") / str(self.pid) / "ns" / "mnt").readlink()

    def inside(self, argv: Sequence[str | Path], user: User | None = None) -> list[str]:
        """A command that runs another one in there; to be started as root."""
        user = user or self.user
        identity = [f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups"]
        enter = [program("nsenter"), f"--mount=/proc/{self.pid}/ns/mnt", "--"]
        return [*enter, program("setpriv"), *identity, "--", *map(str, argv)]

    def mailfs(self, *arguments: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the mailfs command."""
        python = self.where / "python"
        env = {
            **environment(self.user),
            "LD_LIBRARY_PATH": f"{python}/lib",  # a shared libpython is found by its full path else
            "PYTHONPATH": f"{self.where}/mailfs:{self.where}/packages",
            "PYTHONDONTWRITEBYTECODE": "1",
            **env,
        }
        interpreter = python / "bin" / f"python3.{sys.version_info.minor}"
        return subprocess.run(
            self.inside([interpreter, "-m", "mailfs", *arguments]),
            env=env,
            cwd=self.user.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )

    def run(self, *argv: str | Path, content: bytes = b"", user: User | None = None) -> bytes:
        """Run a program that must succeed."""
        env = environment(user or self.user)
        return self._crew.ok(self.inside(argv, user), content=content, env=env)

    def actor(self, user: User | None = None) -> Actor:
        """Start an actor in there."""
        argv = [PYTHON, "-I", "-c", Path(actor_main.__file__).read_text()]
        pipe = subprocess.PIPE
        return Actor(self._crew.start(self.inside(argv, user), stdin=pipe, stdout=pipe))

    def mounts(self) -> list[str]:
        """Where mailfs is mounted."""
        lines = Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()
        return [line.split()[4] for line in lines if " - fuse.mailfs " in line]

    def members(self) -> list[int]:
        """The processes that live in there: nobody else can."""
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and (entry / "ns" / "mnt").readlink() == self._namespace:
                    found.append(int(entry.name))
        return found

    def daemons(self) -> list[int]:
        """Those of them that serve a mount."""
        found = []
        for pid in self.members():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if b"mailfs" in words and b"mount" in words:
                    found.append(pid)
        return found

    def close(self) -> list[int]:
        """End everything in there, daemons first, so that nobody hangs on a mount."""
        for pid in [*self.daemons(), *self.members()]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            until(lambda: set(self.members()) <= {self.pid}, 5, "all ended")
        return [pid for pid in self.members() if pid != self.pid]


@pytest.fixture
def enclave(
    request: pytest.FixtureRequest, machine: Path, alice: User, crew: Crew
) -> Iterator[Enclave]:
    """One of alice's; the parameter is the mode of its /dev/fuse, "" for none."""
    where = machine / f"enclave-{alice.name}"
    where.mkdir(mode=0o755)
    enclave = Enclave(where, crew, alice, getattr(request, "param", "666"))
    try:
        yield enclave
    finally:
        stuck = enclave.close()
        crew.close()
        shutil.rmtree(where)
    assert not stuck, f"processes that cannot be ended: {stuck}"


@pytest.fixture
def spool(alice: User) -> Iterator[Path]:
    """A spool in alice's home, with a mailbox that is called like nobody's account."""
    path = alice.home / "spool"
    path.mkdir(mode=0o700)
    (path / "inbox").touch(mode=0o600)
    os.chown(path, alice.uid, alice.gid)
    os.chown(path / "inbox", alice.uid, alice.gid)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def mount(enclave: Enclave, spool: Path, *options: str) -> Path:
    """Mount it over itself; must succeed, and without a word."""
    done = enclave.mailfs("mount", "--log", enclave.user.home / "log", *options, spool)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert enclave.mounts() == [str(spool)]
    return spool


def unmount(enclave: Enclave, spool: Path) -> None:
    done = enclave.mailfs("umount", spool)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert enclave.mounts() == []
    assert not enclave.daemons(), "umount waits for the daemon's end"
    log = (enclave.user.home / "log").read_text()
    assert not re.search("WARNING|ERROR|CRITICAL|Traceback", log), log


def test_a_user_mounts_reads_appends_and_unmounts(enclave: Enclave, spool: Path) -> None:
    mount(enclave, spool)
    inbox = spool / "inbox"
    for number in range(3):
        enclave.run("sh", "-c", 'cat >> "$0"', inbox, content=message("a", number))
    text = enclave.run("cat", inbox)
    verify_mbox(text, names("a", 3))
    assert enclave.run("stat", "-c", "%U %a %h", inbox).split() == [
        enclave.user.name.encode(),
        b"600",
        b"1",
    ]
    enclave.run("sed", "-i", "s/whole/WHOLE/", inbox)
    assert enclave.run("cat", inbox) == text.replace(b"whole", b"WHOLE")
    enclave.run("sh", "-c", 'cat > "$0"/new-list', spool, content=message("b", 0))
    enclave.run("sh", "-c", 'mkdir "$0"/d && echo x > "$0"/d/f && mv "$0"/d/f "$0"/d/g', spool)
    unmount(enclave, spool)
    left = {path.name for path in spool.iterdir()}
    assert left == {".mailfs", "inbox", "new-list", "d"}
    verify_mbox((spool / "inbox").read_bytes().replace(b"WHOLE", b"whole"), names("a", 3))
    verify_mbox((spool / "new-list").read_bytes(), names("b", 1))
    assert (spool / "d" / "g").read_bytes() == b"x\n"
    owners = {path.stat().st_uid for path in spool.rglob("*")}
    assert owners == {enclave.user.uid}


@pytest.mark.parametrize("protocol", ["dotlock", "dotlock-link", "flock", "fcntl", "ofd"])
def test_locks_exclude_each_other(enclave: Enclave, spool: Path, protocol: str) -> None:
    mount(enclave, spool)
    path = str(spool / "inbox")
    holder, other = enclave.actor(), enclave.actor()
    holder.do(f"append({path!r}, {message('a', 0)!r}); lock({protocol!r}, {path!r})")
    for contender in ("flock", "fcntl", "ofd"):
        assert other.errno(f"lock({contender!r}, {path!r})") == errno.EAGAIN, contender
    assert other.errno(f"lock('dotlock', {path!r})") == errno.EEXIST
    other.start(f"lock('flock', {path!r}, wait=True)")
    assert other.busy(0.3)
    holder.do(f"unlock({protocol!r}, {path!r})")
    other.result(1.0)
    rows = enclave.run("cat", spool / ".mailfs" / "locks").decode()
    assert re.search(r"^inbox +held .* flock ", rows, re.MULTILINE), rows
    assert "flock" in enclave.mailfs("locks").stdout
    other.kill()
    until(lambda: not holder.errno(f"lock('fcntl', {path!r})"), 1.0, "freed by its holder's death")
    holder.do(f"unlock('fcntl', {path!r})")
    holder.kill(signal.SIGTERM)
    unmount(enclave, spool)
    verify_mbox((spool / "inbox").read_bytes(), names("a", 1))


def test_writers_without_locks(enclave: Enclave, spool: Path) -> None:
    mount(enclave, spool)
    path = str(spool / "inbox")
    actors = [enclave.actor() for _ in range(4)]
    for number, actor in enumerate(actors):
        mails = [message(f"w{number}", n) for n in range(10)]
        actor.start(f"for mail in {mails!r}: append({path!r}, mail)")
    for actor in actors:
        actor.result(20)
    for actor in actors:
        actor.kill(signal.SIGTERM)
    unmount(enclave, spool)
    wanted = [name for number in range(4) for name in names(f"w{number}", 10)]
    verify_mbox((spool / "inbox").read_bytes(), wanted)


def test_a_separate_mountpoint_and_programs_outside(enclave: Enclave, spool: Path) -> None:
    """The backing spool's own locks are taken and honoured as under root's mount."""
    target = enclave.user.home / "mnt"
    enclave.run("mkdir", target)
    done = enclave.mailfs("mount", "--log", enclave.user.home / "log", spool, target)
    assert (done.returncode, done.stderr) == (0, "")
    inside, outside = enclave.actor(), enclave.actor()
    inside.do(f"lock('flock', {str(target / 'inbox')!r})")
    assert outside.errno(f"lock('dotlock', {str(spool / 'inbox')!r})") == errno.EEXIST
    inside.do(f"unlock('flock', {str(target / 'inbox')!r})")
    outside.do(f"lock('dotlock', {str(spool / 'inbox')!r})")
    assert inside.errno(f"lock('flock', {str(target / 'inbox')!r})") == errno.EAGAIN
    outside.do(f"unlock('dotlock', {str(spool / 'inbox')!r})")
    for actor in (inside, outside):
        actor.kill(signal.SIGTERM)
    unmount(enclave, target)
    target.rmdir()


def test_the_mount_is_nobody_elses(enclave: Enclave, spool: Path, bob: User) -> None:
    """fuse(8): without allow_other not even root may look."""
    mount(enclave, spool)
    enclave.user.home.chmod(0o755)
    assert enclave.actor(bob).errno(f"os.listdir({str(spool)!r})") == errno.EACCES
    unmount(enclave, spool)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_unmounts(enclave: Enclave, spool: Path, number: signal.Signals) -> None:
    mount(enclave, spool)
    enclave.run("sh", "-c", 'cat >> "$0"', spool / "inbox", content=message("a", 0))
    (daemon,) = enclave.daemons()
    assert Path(f"/proc/{daemon}").stat().st_uid == enclave.user.uid
    os.kill(daemon, number)
    until(lambda: not enclave.daemons(), 10, "ended")
    assert enclave.mounts() == []
    verify_mbox((spool / "inbox").read_bytes(), names("a", 1))


def test_a_dead_mount_is_cleared(enclave: Enclave, spool: Path) -> None:
    mount(enclave, spool)
    (daemon,) = enclave.daemons()
    os.kill(daemon, signal.SIGKILL)
    until(lambda: not enclave.daemons(), 5, "dead")
    assert enclave.mounts() == [str(spool)]
    mount(enclave, spool)
    enclave.run("sh", "-c", 'cat >> "$0"', spool / "inbox", content=message("a", 0))
    unmount(enclave, spool)


def test_a_busy_mount_is_told_and_detached(enclave: Enclave, spool: Path) -> None:
    mount(enclave, spool)
    guest = enclave.actor()
    guest.do(f"os.chdir({str(spool)!r})")
    done = enclave.mailfs("umount", spool)
    assert done.returncode == 0
    assert "busy" in done.stderr
    assert f"pid {guest.pid}" in done.stderr
    assert enclave.mounts() == []
    guest.kill()
    until(lambda: not enclave.daemons(), 10, "ended with the last of them")


# --- what is missing ------------------------------------------------------------------------------


def refused(done: subprocess.CompletedProcess[str], code: int, *words: str) -> None:
    assert done.returncode == code, done
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


@pytest.mark.parametrize("enclave", [""], indirect=True)
def test_there_is_no_dev_fuse(enclave: Enclave, spool: Path) -> None:
    refused(enclave.mailfs("mount", spool), 72, "/dev/fuse: No such file", "modprobe fuse")
    assert enclave.mounts() == []


@pytest.mark.parametrize("enclave", ["600"], indirect=True)
def test_dev_fuse_is_not_permitted(enclave: Enclave, spool: Path) -> None:
    refused(enclave.mailfs("mount", spool), 72, "/dev/fuse: Permission denied", "0666")


def test_there_is_no_fusermount3(enclave: Enclave, spool: Path) -> None:
    done = enclave.mailfs("mount", spool, PATH="/nowhere")
    refused(done, 69, "fusermount3 is missing", "package fuse3")


def test_a_directory_of_another(enclave: Enclave, spool: Path, bob: User) -> None:
    refused(enclave.mailfs("mount", spool, bob.home), 77, str(bob.home), "may not write here")
    done = enclave.mailfs("mount", bob.home)
    assert done.returncode == 77
    assert "Traceback" not in done.stderr


def test_allow_other_is_not_for_users(enclave: Enclave, spool: Path) -> None:
    """Unless root says so in /etc/fuse.conf."""
    done = enclave.mailfs("mount", "-o", "allow_other", spool)
    refused(done, 77, "allow_other", "user_allow_other")
    enclave.configuration.write_text("user_allow_other\n")
    mount(enclave, spool, "-o", "allow_other")
    assert not enclave.actor(ROOT).errno(f"os.listdir({str(spool)!r})")
    unmount(enclave, spool)


def test_fusermount3_refuses(enclave: Enclave, spool: Path) -> None:
    """What fusermount3(1) says reaches the user: here that a sticky directory is not enough."""
    sticky = enclave.where / "sticky"
    sticky.mkdir()
    sticky.chmod(0o1777)
    done = enclave.mailfs("mount", spool, sticky)
    assert done.returncode == 71
    assert "fusermount3: " in done.stderr
    assert f"cannot mount on {sticky}" in done.stderr
    assert "Traceback" not in done.stderr
    assert not enclave.daemons()
