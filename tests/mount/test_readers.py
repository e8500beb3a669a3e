"""Mail readers do their normal job, on a plain spool and on mailfs (clients.md)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tests.mount.work import NEW, fill, owned, settled
from tests.support.mbox import verify_mbox
from tests.support.processes import PYTHON, Terminal, until
from tests.support.system import with_var_mail

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.mounts import Place
    from tests.support.users import User


def drawn_until(terminal: Terminal, condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, reading what the program draws meanwhile."""

    def look() -> object:
        terminal.settle(0.05)
        return condition()

    try:
        until(look, 15, what)
    except AssertionError as error:
        raise AssertionError(f"{error}; on the screen:\n{terminal.screen[-2000:]}") from None


def mutt(place: Place, user: User) -> list[str]:
    (user.home / "Mail").mkdir(exist_ok=True)
    os.chown(user.home / "Mail", user.uid, user.gid)
    setting = "set move=no delete=yes quit=yes"
    return ["mutt", "-n", "-F", "/dev/null", "-e", setting, "-f", place.path(user)]


def test_mutt_looks(place: Place, user: User) -> None:
    wanted = fill(place, user)
    mutt_ = place.crew.terminal(mutt(place, user), user=user)
    mutt_.wait_for(r"Msgs:3")
    mutt_.settle()
    mutt_.send("q")
    assert mutt_.finish() == 0
    settled(place, user, wanted)


def test_mutt_deletes(place: Place, user: User) -> None:
    wanted = fill(place, user)
    mutt_ = place.crew.terminal(mutt(place, user), user=user)
    mutt_.wait_for(r"Msgs:3")
    mutt_.settle()
    mutt_.send("d")
    mutt_.settle()
    mutt_.send("$")
    drawn_until(mutt_, lambda: len(place.content(user)) < 1300, "synced")
    mutt_.settle()
    verify_mbox(place.content(user), wanted[1:])
    place.crew.ok(["sh", "-c", 'cat >> "$0"', place.path(user)], user=user, content=NEW)
    mutt_.send("q")
    assert mutt_.finish() == 0
    settled(place, user, [*wanted[1:], "new-0"])


def test_alpine_deletes(place: Place, user: User) -> None:
    wanted = fill(place, user)
    (user.home / "mail").mkdir()
    os.chown(user.home / "mail", user.uid, user.gid)
    rc = owned(
        user,
        ".pinerc",
        f"inbox-path={place.path(user)}\n"
        "feature-list=quit-without-confirm,expunge-without-confirm,"
        "expunge-without-confirm-everywhere\nlast-version-used=6.99.99\n",
    )
    alpine = place.crew.terminal(["alpine", "-p", rc, "-i"], user=user)
    alpine.wait_for(r"(?i)3 messages|of 3|INDEX")
    alpine.settle()
    if "vulnerable" in alpine.screen:
        raise AssertionError(alpine.screen)
    alpine.send("p")
    alpine.settle(0.2)
    alpine.send("p")
    alpine.settle(0.2)
    alpine.send("d")
    alpine.settle()
    alpine.send("x")
    drawn_until(alpine, lambda: b"old-0 line" not in place.content(user), "expunged")
    alpine.settle()
    alpine.send("q")
    alpine.finish()
    settled(place, user, wanted[1:])


def test_s_nail_deletes(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = ["s-nail", "-n", "-f", place.path(user)]
    output = place.crew.ok(argv, user=user, content=b"d 1\nq\n")
    assert b"locked" not in output.lower() or b"unable" not in output.lower(), output
    settled(place, user, wanted[1:])


def test_s_nail_appends(place: Place, user: User) -> None:
    wanted = fill(place, user)
    other = user.home / "other.mbox"
    other.write_bytes(NEW)
    os.chown(other, user.uid, user.gid)
    commands = f"c 1 {place.path(user)}\nx\n".encode()
    place.crew.ok(["s-nail", "-n", "-f", str(other)], user=user, content=commands)
    settled(place, user, [*wanted, "new-0"])


def test_bsd_mailx_on_a_file(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = ["bsd-mailx", "-n", "-f", place.path(user)]
    place.crew.ok(argv, user=user, content=b"d 1\nq\n")
    settled(place, user, wanted[1:])


def test_bsd_mailx_on_the_system_mailbox(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = with_var_mail(place.dir, ["bsd-mailx", "-n"], user)
    env = {"USER": user.name, "LOGNAME": user.name, "HOME": str(user.home)}
    output = place.crew.ok(argv, content=b"d 1\nq\n", env=env, timeout=40)
    assert b"lock" not in output.lower(), output
    settled(place, user, wanted[1:])


PYTHON_MAILBOX = """
import mailbox, sys
box = mailbox.mbox(sys.argv[1], create=False)
box.lock()
box.add(mailbox.mboxMessage(sys.argv[2].encode()))
box.flush()
box.remove(0)
box.flush()
box.unlock()
assert len(box) == 3, len(box)
box.close()
"""


def test_python_mailbox(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = [PYTHON, "-I", "-c", PYTHON_MAILBOX, place.path(user), NEW.decode()]
    place.crew.ok(argv, user=user)
    settled(place, user, [*wanted[1:], "new-0"])
