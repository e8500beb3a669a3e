"""No close(), exit() or wait() takes long because somebody else holds the mailbox; what was written arrives afterwards.

The lock is held by another program inside the mount, by whatever protocol, or by one outside on the real file.
"""

from __future__ import annotations

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_lockfile import locker
from tests.mount.work import fill
from tests.support.mbox import message
from tests.support.processes import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.mounts import Place
    from tests.support.processes import Actor
    from tests.support.users import User

LIMIT = 2.5  # seconds, of issue and design
TEXT = message("new", 0)
WRITES = {
    "append": f"fd = os.open(m, os.O_WRONLY | os.O_APPEND); os.write(fd, {TEXT!r})",
    "rewrite": f"text = get(m); fd = os.open(m, os.O_RDWR); os.ftruncate(fd, 0); os.write(fd, {TEXT!r})",
}
HOLDERS = ("dotlock", "flock", "fcntl", "outside")


def close(actor: Actor) -> None:
    actor.do("os.close(fd)", 30)


def exit_(actor: Actor) -> None:
    assert actor.process.stdin
    actor.process.stdin.close()
    assert actor.process.wait(30) == 0


def execve(actor: Actor) -> None:
    """The descriptor is closed within execve(); what it calls says that it runs."""
    actor.do("os.execv('/bin/echo', ['echo', 'ok None'])", 30)


def killed(actor: Actor) -> None:
    assert actor.kill(signal.SIGKILL, 30) >= 0


def child(actor: Actor) -> None:
    """A child that ends without closing, and its parent in waitpid()."""
    actor.do("os.write(told, b'.'); assert os.waitpid(one, 0)[1] == 0", 30)


ENDS: dict[str, Callable[[Actor], None]] = {
    "close": close,
    "exit": exit_,
    "execve": execve,
    "killed": killed,
    "waitpid": child,
}


@pytest.mark.parametrize("what", WRITES)
@pytest.mark.parametrize("holder", HOLDERS)
def test_a_close_is_bounded(
    mounting: Callable[..., Place], people: dict[str, User], holder: str, what: str
) -> None:
    """All the ways to close at the same time, as each may take the limit."""
    mail = mounting()
    assert mail.mailfs
    user = people["a"]
    fill(mail, user)
    before = mail.content(user)
    keeper = locker(mail, user)
    path = str(mail.spool / user.name) if holder == "outside" else mail.path(user)
    protocol = "fcntl" if holder == "outside" else holder
    keeper.do(f"lock({protocol!r}, {path!r})")
    actors = {way: locker(mail, user) for way in ENDS}

    def end(way: str) -> float:
        begin = time.monotonic()
        ENDS[way](actors[way])
        return time.monotonic() - begin

    for way, actor in actors.items():
        if way == "waitpid":
            actor.do(
                f"go, told = os.pipe(); one = os.fork()\nif one == 0:\n    {WRITES[what]}; os.read(go, 1); os._exit(0)"
            )
        else:
            actor.do(WRITES[what])
    with ThreadPoolExecutor(len(ENDS)) as pool:
        took = dict(zip(ENDS, pool.map(end, ENDS), strict=True))
    arrives = len(ENDS) - 1  # all but the killed one's
    assert max(took.values()) < LIMIT, took
    assert mail.content(user) == before
    keeper.do(f"unlock({protocol!r}, {path!r})")
    if what == "append":
        until(lambda: mail.content(user) == before + TEXT * arrives, 5.0, "all that was written")
    else:  # the first saved; the others' bases were gone by then
        mail.mailfs.announce("deferred commit refused: the mailbox was rewritten")
        mail.holds(user, ["new-0"])
        rescue = mail.spool / ".mailfs" / "rescue"
        until(lambda: len(list(rescue.iterdir())) == arrives - 1, 5.0, "the others are in rescue")
        assert {path.read_bytes() for path in rescue.iterdir()} == {TEXT}
