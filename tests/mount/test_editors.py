"""Editors and the shell save a mailbox, on a plain spool and on mailfs (clients.md)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mount.test_exclusion import free
from tests.mount.work import fill
from tests.support.processes import until

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User


@pytest.mark.parametrize("mode", ["660", "600"])
def test_vim(place: Place, user: User, mode: str) -> None:
    """0600 and one's own group: vim renames the mailbox away and makes a new one."""
    fill(place, user)
    if mode == "600":
        place.crew.ok(["chown", f"{user.name}:{user.name}", place.spool / user.name])
    place.crew.ok(["chmod", mode, place.path(user)], user=user)
    vim = place.crew.terminal(["vim", "-u", "NONE", "-N", place.path(user)], user=user)
    vim.wait_for("From old@test")
    vim.settle()
    vim.send(":%s/whole/WHOLE/\r")
    vim.settle()
    vim.send(":wq\r")
    assert vim.finish() == 0
    content = place.content(user)
    assert content.count(b"WHOLE") == content.count(b" line ") > 0
    assert content.count(b"end old-") == 3
    assert place.seen(user) == content
    assert not place.mailfs or {p.name for p in place.spool.iterdir()} >= {user.name, ".mailfs"}
    assert not [p.name for p in place.spool.iterdir() if p.name.endswith(("~", ".swp", "4913"))]
    assert (place.spool / user.name).stat().st_mode & 0o777 == int(mode, 8)


def test_nano(place: Place, user: User) -> None:
    fill(place, user)
    before = place.content(user)
    nano = place.crew.terminal(["nano", place.path(user)], user=user)
    nano.wait_for("From old@test")
    nano.settle()
    nano.send("X")
    nano.settle()
    nano.send("\x0f")
    nano.settle()
    nano.send("\r")
    nano.settle()
    nano.send("\x18")
    assert nano.finish() == 0
    assert place.content(user) == b"X" + before
    assert place.seen(user) == b"X" + before


SAVES = {
    "sed-i": ("sed -i s/whole/WHOLE/ $0", True),
    "ed": (r"printf ',s/whole/WHOLE/\nw\nq\n' | ed -s $0", True),
    "cp-over": ("sed s/whole/WHOLE/ $0 > $HOME/new; cp $HOME/new $0", True),
    "cat-over": ("sed s/whole/WHOLE/ $0 > $HOME/new; cat $HOME/new > $0", True),
    "mv-over": ("sed s/whole/WHOLE/ $0 > $0.new; mv $0.new $0", True),
    "perl-i": ("perl -pi -e s/whole/WHOLE/ $0", True),
    "empty": (": > $0", False),
    "truncate": ("truncate -s 0 $0", False),
    "dd": (("sed s/whole/WHOLE/ $0 | dd of=$HOME/new status=none; dd if=$HOME/new of=$0"
           " status=none"), True),
}  # fmt: skip


@pytest.mark.parametrize("name", SAVES)
def test_saves_from_the_shell(place: Place, user: User, name: str) -> None:
    fill(place, user)
    before = place.content(user)
    script, edited = SAVES[name]
    place.crew.ok(["sh", "-ec", script, place.path(user)], user=user)
    wanted = before.replace(b"whole", b"WHOLE") if edited else b""
    until(lambda: place.content(user) == wanted, 3, "saved")
    assert place.seen(user) == wanted
    assert free(place.crew.actor(user), place.path(user))
    found = (place.spool / user.name).stat()
    assert found.st_uid == user.uid
    if place.mailfs:
        left = {path.name for path in place.spool.iterdir()}
        assert len(left) == 4, left
        assert found.st_mode & 0o777 == 0o660, "a mailbox keeps its mode (design 3.4)"
    else:
        (place.spool / user.name).chmod(0o660)
