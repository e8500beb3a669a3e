"""``mailfs umount``: say who is in the way, unmount all the same, and wait for the daemon.

Who keeps a mount busy is read from the links in /proc/PID: the kernel knows their names, so that
nothing here touches a path inside the mount, which would hang if the daemon did.

A busy mount is detached lazily: new programs no longer find it, those that use it go on, and the
daemon ends with the last of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import select
import subprocess
import threading
from typing import TYPE_CHECKING, NamedTuple

import click
import msgspec

from mailfs.cli.where import find_mount, read_control
from mailfs.control.render import printable, status_from_json
from mailfs.daemon import mountinfo
from mailfs.daemon.errors import Exit, MountError

if TYPE_CHECKING:
    from collections.abc import Iterator

MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8  # umount2(2)

ANSWER_WITHIN = 2.0
"""Seconds the daemon gets to say its pid; one that hangs is unmounted without it."""

END_WITHIN = 60.0
"""Seconds the daemon gets to finish what it has accepted."""


class Holder(NamedTuple):
    """A process that uses a mount, and one path there that it has open or is in."""

    pid: int
    uid: int | None
    program: str
    path: str

    def __str__(self) -> str:
        """Describe it on one line."""
        user = "" if self.uid is None else f", uid {self.uid}"
        return f"pid {self.pid} ({printable(self.program)}{user}): {printable(self.path)}"


@click.command()
@click.option("-l", "--lazy", is_flag=True, help="Detach at once, whoever uses it; do not wait.")
@click.argument("mountpoint")
def umount(*, lazy: bool, mountpoint: str) -> int:
    """Unmount MOUNTPOINT and wait until its daemon has ended.

    If it is busy, say who keeps it so, and detach it lazily.
    """
    path = find_mount(mountpoint)
    daemon = None if lazy else _daemon(path)
    try:
        if unmount(path, lazy=lazy):
            return _wait(path, daemon)
        if lazy:
            raise MountError(f"{printable(path)}: cannot be detached", Exit.OSERR)
        users = list(holders(path, {daemon.pid} if daemon else set()))
        click.echo(f"mailfs: {printable(path)} is busy:", err=True)
        for user in users:
            click.echo(f"  {user}", err=True)
        if not users:
            click.echo("  by processes that cannot be seen from here", err=True)
        if not unmount(path, lazy=True):
            raise MountError(f"{printable(path)}: cannot be detached", Exit.OSERR)
        click.echo(
            "mailfs: detached; those go on with what they have open, and the daemon"
            f"{daemon or ''} ends with the last of them",
            err=True,
        )
        return Exit.OK
    finally:
        if daemon is not None:
            os.close(daemon.pidfd)


class _Daemon(NamedTuple):
    pid: int
    pidfd: int

    def __str__(self) -> str:
        return f" (pid {self.pid})"


def _daemon(path: str) -> _Daemon | None:
    """Ask a mount for its daemon, in a thread that may be left behind; None if it is silent."""
    answers: list[_Daemon] = []

    def ask() -> None:
        with contextlib.suppress(MountError, msgspec.DecodeError, OSError, OverflowError):
            pid = status_from_json(read_control(path, "status.json")).pid
            answers.append(_Daemon(pid, os.pidfd_open(pid)))

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_WITHIN)
    return answers[0] if answers else None


def _wait(path: str, daemon: _Daemon | None) -> int:
    if daemon is None:
        return Exit.OK
    poll = select.poll()
    poll.register(daemon.pidfd, select.POLLIN)
    if poll.poll(END_WITHIN * 1000):
        return Exit.OK
    raise MountError(
        f"{printable(path)}: unmounted, but its daemon{daemon} has not ended in {END_WITHIN:g} s;"
        " its log may say why",
        Exit.TEMPFAIL,
    )


def unmount(path: str, *, lazy: bool) -> bool:
    """Unmount; False if it is busy.

    Raises:
        MountError: it cannot be unmounted.

    """
    shown = printable(path)
    if os.geteuid() == 0:
        libc = ctypes.CDLL(None, use_errno=True)
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
        if libc.umount2(os.fsencode(path), flags) == 0:
            return True
        number = ctypes.get_errno()
        if number == errno.EBUSY:
            return False
        code = Exit.NOPERM if number == errno.EPERM else Exit.OSERR
        raise MountError(f"{shown}: umount: {os.strerror(number)}", code)
    before = mountinfo.top_mount(path)
    try:
        done = subprocess.run(
            ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env={**os.environ, "LC_ALL": "C"},
            timeout=30,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = f"{shown}: fusermount3: {error}; install the package fuse3"
        raise MountError(message, Exit.UNAVAILABLE) from error
    if done.returncode == 0 or mountinfo.top_mount(path) != before:
        return True
    if b"busy" in done.stderr:
        return False
    reason = printable(done.stderr.strip(), spaces=True)
    raise MountError(f"{shown}: {reason}", Exit.NOPERM)


def holders(path: str, ignore: set[int]) -> Iterator[Holder]:
    """Find the processes that have something open below *path* or stand there.

    An ordinary user sees only his own. Memory mappings are not looked at.
    """
    ignore = ignore | {os.getpid()}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in ignore:
            found = next((link for link in _links(entry) if _within(link, path)), None)
            if found is not None:
                yield Holder(int(entry), _uid(entry), _program(entry), found)


def _links(pid: str) -> Iterator[str]:
    names = ["cwd", "root"]
    with contextlib.suppress(OSError):
        names += [f"fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    for name in names:
        with contextlib.suppress(OSError):
            yield os.readlink(f"/proc/{pid}/{name}")


def _within(link: str, path: str) -> bool:
    return link == path or link.startswith(path.rstrip("/") + "/")


def _program(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", "rb") as file:
            return os.fsdecode(file.read().rstrip(b"\n"))
    except OSError:
        return "?"


def _uid(pid: str) -> int | None:
    try:
        with open(f"/proc/{pid}/status", "rb") as file:
            line = next(line for line in file if line.startswith(b"Uid:"))
        return int(line.split()[1])
    except (OSError, StopIteration, IndexError, ValueError):
        return None
