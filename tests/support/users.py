"""Throw-away accounts: made at the start of a test session, removed at its end, swept if an earlier
session crashed.

A name is ``mfta``, the session's process id in hexadecimal and one letter, so that a leftover can
be told from an account that another running session still uses.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

PREFIX = "mfta"
_NAME = re.compile(PREFIX + r"([0-9a-f]+)[a-z]")


@dataclass(frozen=True)
class User:
    """An account; ``groups`` are its supplementary groups."""

    name: str
    uid: int
    gid: int
    home: Path
    groups: tuple[int, ...] = ()


ROOT = User("root", 0, 0, Path("/root"))


def _tool(*argv: str) -> None:
    """Run useradd or userdel; another session may have the lock on /etc/passwd for a moment."""
    for _ in range(20):
        done = subprocess.run(argv, capture_output=True, timeout=30, check=False, text=True)
        if done.returncode == 0:
            return
        if "lock" not in done.stderr:
            break
        time.sleep(0.25)
    raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stderr.strip()}")


def make_user(letter: str, homes: Path) -> User:
    """Make an account with a home of its own under ``homes``."""
    name = f"{PREFIX}{os.getpid():x}{letter}"
    home = homes / name
    _tool("useradd", "-M", "-U", "-d", str(home), "-s", "/bin/sh", name)
    entry = pwd.getpwnam(name)
    home.mkdir(mode=0o755)
    os.chown(home, entry.pw_uid, entry.pw_gid)
    return User(name, entry.pw_uid, entry.pw_gid, home)


def remove_user(name: str) -> None:
    """Remove an account and what still runs as it; its home goes with the session's directory."""
    uid = pwd.getpwnam(name).pw_uid
    for _ in range(50):
        running = _processes_of(uid)
        if not running:
            break
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.1)
    _tool("userdel", name)
    with contextlib.suppress(OSError):  # useradd has made it, whatever -M says of homes
        mailbox = Path("/var/mail", name)
        if not mailbox.stat().st_size:
            mailbox.unlink()


def _processes_of(uid: int) -> list[int]:
    """The processes of a throw-away account: nobody but the tests started them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if entry.stat().st_uid == uid:
                    found.append(int(entry.name))
    return found


def sweep() -> list[str]:
    """Remove the accounts of sessions that are no more, and say which."""
    gone = []
    for entry in pwd.getpwall():
        found = _NAME.fullmatch(entry.pw_name)
        if found and not Path(f"/proc/{int(found[1], 16)}").exists():
            remove_user(entry.pw_name)
            gone.append(entry.pw_name)
    return gone
