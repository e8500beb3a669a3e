"""Who holds kernel locks on a file, without taking one: ``/proc/locks``, proc_locks(5).

Probing with flock() would, for a moment, keep off a program that tries at that time, and F_OFD_GETLK does not see
flocks. Locks of processes in pid namespaces that we cannot see are not listed (fs/locks.c, locks_show), so "nobody"
means nobody that we can see.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Holder(NamedTuple):
    """One lock. ``pid`` is -1 for an OFD lock, which belongs to no process."""

    pid: int
    writes: bool
    flock: bool


class Holders:
    """The kernel locks that were there when this was made."""

    def __init__(self, text: bytes) -> None:
        self._found: dict[tuple[int, int], list[Holder]] = {}
        for line in text.split(b"\n"):
            fields = line.split()
            if len(fields) < 8 or fields[1] == b"->":  # fewer: "*NOFILE*"; "->": a waiter
                continue
            try:
                major, minor, inode = fields[5].split(b":")
                key = (os.makedev(int(major, 16), int(minor, 16)), int(inode))
                holder = Holder(int(fields[4]), fields[3] == b"WRITE", fields[1] == b"FLOCK")
            except ValueError:
                continue
            self._found.setdefault(key, []).append(holder)

    @classmethod
    def now(cls) -> Holders:
        """Read them; none if /proc is not mounted."""
        try:
            with open("/proc/locks", "rb") as file:
                return cls(file.read())
        except OSError:
            return cls(b"")

    def of(self, file: os.stat_result) -> list[Holder]:
        """Who holds a file."""
        return self._found.get((file.st_dev, file.st_ino), [])
