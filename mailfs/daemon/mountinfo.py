"""The mounts there are, as /proc/self/mountinfo tells them: without touching any of them.

A mount whose daemon hangs makes every stat() of its root hang, so whoever looks for mounts must not
go through their paths. See proc_pid_mountinfo(5).
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

FSTYPE = "fuse.mailfs"


class Mount(NamedTuple):
    """One line of mountinfo."""

    id: int
    mountpoint: str
    fstype: str
    source: str


def mounts() -> list[Mount]:
    """List all mounts in this mount namespace, oldest first.

    Raises:
        OSError: /proc is not mounted.

    """
    with open("/proc/self/mountinfo", "rb") as file:
        return parse(file.read())


def parse(text: bytes) -> list[Mount]:
    """Parse mountinfo; lines that cannot be understood are left out."""
    found = []
    for line in text.split(b"\n"):
        before, separator, after = line.partition(b" - ")
        front, back = before.split(b" "), after.split(b" ")
        if separator and len(front) >= 6 and len(back) >= 2 and front[0].isdigit():
            found.append(
                Mount(int(front[0]), _decode(front[4]), _decode(back[0]), _decode(back[1]))
            )
    return found


def top_mount(path: str) -> Mount | None:
    """Find the mount that one sees at *path*, which must be resolved; None if there is none."""
    return next((mount for mount in reversed(mounts()) if mount.mountpoint == path), None)


def mount_of(path: str) -> Mount | None:
    """Find the mount that *path*, which must be resolved, lies on."""
    while (mount := top_mount(path)) is None and path != "/":
        path = os.path.dirname(path)
    return mount


def resolve(path: str) -> str:
    """Make *path* absolute and free of symlinks, without asking what is mounted on its last part.

    Only the directories above are looked at; reading the last component as a link is answered by
    the kernel, not by the filesystem mounted there.
    """
    path = os.path.abspath(path)
    for _ in range(40):  # as many links as the kernel follows, path_resolution(7)
        parent = os.path.realpath(os.path.dirname(path))
        path = os.path.join(parent, os.path.basename(path))
        if top_mount(path) is not None:
            return path
        try:
            path = os.path.join(parent, os.readlink(path))
        except OSError:
            return path
        if os.path.basename(path) in ("", ".", ".."):
            break
    return os.path.realpath(path)


def _decode(field: bytes) -> str:
    """Undo the octal escapes of space, tab, newline and backslash (kernel, fs/seq_file.c)."""
    return os.fsdecode(
        re.sub(rb"\\([0-7]{3})", lambda found: bytes((int(found[1], 8) & 255,)), field)
    )
