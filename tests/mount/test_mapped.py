"""Programs that map a mailbox: GNU mailutils, and one that changes it through the mapping."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.mbox import message
from tests.support.mounts import Mount
from tests.support.processes import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.mounts import Place
    from tests.support.processes import Actor
    from tests.support.users import User

OPEN = """
import fcntl, mmap, os
fd = os.open({path!r}, os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_EX)  # not lockf: mmap makes a duplicate, whose close would drop it
size = os.fstat(fd).st_size
"""

GROW = """
text = {text!r}
os.ftruncate(fd, size + len(text))
area = mmap.mmap(fd, size + len(text))
area[size:size + {written}] = text[:{written}]
area.flush()
"""

SHRINK = """
area = mmap.mmap(fd, size)
os.ftruncate(fd, size)
area[:{left}] = area[{first}:]
area.flush()
"""


def fill(place: Place, user: User, *numbers: int) -> None:
    """Put messages of ``a`` in the real mailbox."""
    with (place.spool / user.name).open("r+b") as file:
        file.write(b"".join(message("a", number) for number in numbers))


def mapping(mounting: Callable[..., Place], alice: User) -> tuple[Place, Actor]:
    """A mount that knows of the program, and the program."""
    executable = Path(os.path.realpath("/proc/self/exe")).name
    place = mounting(f'programs.mapped=["{executable}"]')
    fill(place, alice, 0, 1)
    actor = place.crew.actor(alice)
    actor.do(OPEN.format(path=place.path(alice)))
    return place, actor


def test_what_it_appends_is_there_when_it_unlocks(
    mounting: Callable[..., Place], alice: User
) -> None:
    place, actor = mapping(mounting, alice)
    text = message("b", 0)
    actor.do(GROW.format(text=text, written=len(text)))
    place.crew.ok(["sh", "-c", f"cat >>{place.path(alice)}"], user=alice, content=message("c", 0))
    actor.do("area.close(); fcntl.flock(fd, fcntl.LOCK_UN)")
    place.holds(alice, ["a-0", "a-1", "b-0", "c-0"])
    actor.do("os.close(fd)")


def test_what_it_deletes_is_gone_when_it_closes(
    mounting: Callable[..., Place], alice: User
) -> None:
    place, actor = mapping(mounting, alice)
    first = len(message("a", 0))
    left = len(message("a", 1))
    actor.do(SHRINK.format(first=first, left=left))
    actor.do(f"area.close(); os.ftruncate(fd, {left}); os.close(fd)")
    place.holds(alice, ["a-1"])


def test_killed_in_the_middle_it_changes_nothing(
    mounting: Callable[..., Place], alice: User
) -> None:
    place, actor = mapping(mounting, alice)
    before = place.content(alice)
    actor.do(GROW.format(text=message("b", 0), written=40))
    assert place.content(alice) != before
    actor.kill()
    until(lambda: place.content(alice) == before, 5.0, "as it was")
    place.crew.ok(["sh", "-c", f"cat >>{place.path(alice)}"], user=alice, content=message("c", 0))
    place.holds(alice, ["a-0", "a-1", "c-0"])


def test_a_daemon_killed_in_the_middle_leaves_what_was_there(
    mounting: Callable[..., Place], alice: User
) -> None:
    place, actor = mapping(mounting, alice)
    before = place.content(alice)
    actor.do(GROW.format(text=message("b", 0), written=40))
    mailfs = place.mailfs
    assert mailfs is not None
    mailfs.process.kill()
    mailfs.process.wait(10)
    actor.kill()
    argv = [sys.executable, "-m", "mailfs", "recover", str(place.spool)]
    assert b"restored" in place.crew.ok(argv)
    assert place.content(alice) == before
    mailfs.announce("(?i)dead|stale|earlier")
    again = Mount.start(place.spool.parent, place.spool)
    mailfs.process, mailfs.device = again.process, again.device


def test_gnu_mailutils(mail: Place, alice: User) -> None:
    fill(mail, alice, 0, 1, 2)
    box = mail.path(alice)
    mail.crew.ok(["mail.mailutils", "-n", "-f", box], user=alice, content=b"d 2\nq\n")
    mail.holds(alice, ["a-0", "a-2"])
    mail.crew.ok(["movemail.mailutils", box, str(alice.home / "moved")], user=alice)
    assert mail.content(alice) == b""
    moved = (alice.home / "moved").read_bytes()
    assert b"end a-0" in moved
    assert b"end a-2" in moved
