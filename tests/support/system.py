"""What the tests need of the machine: kernel settings, programs, and /var/mail put elsewhere
for one process.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.users import ROOT, User

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

# What Debian's procps sets; a test machine may have them off, and then much works that fails
# elsewhere.
PROTECTED = {"hardlinks": "1", "symlinks": "1", "regular": "2", "fifos": "1"}


def missing() -> str:
    """Say what keeps mount tests from running here, or "" if nothing does."""
    if os.geteuid() != 0:
        return "they need root, to make users and to mount for them"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "there is no usable /dev/fuse"
    if not shutil.which("fusermount3"):
        return "there is no fusermount3 (package fuse3)"
    return ""


@contextmanager
def protected_sysctls() -> Iterator[list[str]]:
    """Set fs.protected_* as Debian does, restore them afterwards; gives those that could not be
    set.
    """
    before: dict[Path, str] = {}
    failed = []
    for name, value in PROTECTED.items():
        path = Path(f"/proc/sys/fs/protected_{name}")
        try:
            now = path.read_text().strip()
            if now != value:
                path.write_text(value)
                before[path] = now
        except OSError as error:
            failed.append(f"fs.protected_{name}={value}: {error.strerror}")
    try:
        yield failed
    finally:
        for path, value in before.items():
            path.write_text(value)


def program(name: str) -> str:
    """Give the path of a client that a test needs; the test fails without it."""
    path = shutil.which(name, path="/usr/bin:/bin:/usr/sbin:/sbin:/usr/lib/dovecot")
    assert path, f"{name} is not installed; scripts/test installs what the tests need"
    return path


def with_var_mail(directory: Path, argv: Sequence[str], user: User = ROOT) -> list[str]:
    """Give a command that runs ``argv`` as ``user`` where ``directory`` is /var/mail, seen by that
    command only.

    For programs with a hard-wired path. To be started as root.
    """
    become = ["setpriv", f"--reuid={user.uid}", f"--regid={user.gid}", "--init-groups", "--"]
    script = 'mount --bind "$0" /var/mail && exec "$@"'
    inner = [*(become if user is not ROOT else []), *argv]
    return ["unshare", "-m", "--propagation", "slave", "sh", "-c", script, str(directory), *inner]
