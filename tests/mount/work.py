"""What the tests of real clients begin and end with: a mailbox with mail in it, whole and free."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.mount.test_exclusion import free
from tests.support.mbox import message, names
from tests.support.processes import until

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User

NEW = message("new", 0)


def fill(place: Place, user: User, count: int = 3, writer: str = "old") -> list[str]:
    """Put messages into a mailbox before the program is at work; gives their names."""
    text = b"".join(message(writer, number) for number in range(count))
    place.crew.ok(["sh", "-c", 'cat >> "$0"', place.path(user)], user=user, content=text)
    # The kernel does not wait for the RELEASE that ends a shell's redirection.
    place.holds(user, names(writer, count))
    return names(writer, count)


def settled(place: Place, user: User, wanted: list[str]) -> None:
    """The mailbox holds what it should, seen from both sides, and nobody is left holding it."""
    probe = place.crew.actor(user)
    until(lambda: free(probe, place.path(user)), 2.0, "unlocked")
    place.holds(user, wanted, 2)
    assert place.seen(user) == place.content(user)
    left = {path.name for path in place.spool.iterdir()} - {".mailfs"}
    assert not [name for name in left if ".lock" in name or name.startswith((".lk", "_"))], left
    found = (place.spool / user.name).stat()
    assert (found.st_uid, found.st_nlink) == (user.uid, 1)


def owned(user: User, name: str, text: str, mode: int = 0o600) -> str:
    """A file in a user's home."""
    path = user.home / name
    path.write_text(text)
    path.chmod(mode)
    os.chown(path, user.uid, user.gid)
    return str(path)
