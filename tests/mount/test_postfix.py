"""Postfix's local(8) delivers into the spool: a private instance, nothing of the machine's own
Postfix.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.mbox import message
from tests.support.processes import until
from tests.support.system import program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.mounts import Place
    from tests.support.users import User

MAIN = """
compatibility_level = 3.6
queue_directory = {top}/queue
data_directory = {top}/data
mail_owner = postfix
setgid_group = postdrop
inet_interfaces = loopback-only
myhostname = test.example
mydestination = test.example
mailbox_command =
mail_spool_directory = {spool}
alias_maps =
alias_database =
biff = no
maillog_file = {top}/maillog
maillog_file_prefixes = {top}
deliver_lock_attempts = 5
"""
SERVICES = (
    ("pickup", "unix", "n", "60", "1", "pickup"),
    ("cleanup", "unix", "n", "-", "0", "cleanup"),
    ("qmgr", "unix", "n", "300", "1", "qmgr"),
    ("rewrite", "unix", "-", "-", "-", "trivial-rewrite"),
    *((name, "unix", "-", "-", "0", "bounce") for name in ("bounce", "defer", "trace")),
    ("proxymap", "unix", "-", "-", "-", "proxymap"),
    ("local", "unix", "-", "-", "-", "local"),
    ("error", "unix", "-", "-", "-", "error"),
    ("retry", "unix", "-", "-", "-", "error"),
    ("postlog", "unix-dgram", "n", "-", "1", "postlogd"),
)


@pytest.fixture
def postfix(place: Place) -> Iterator[Callable[[User, bytes], None]]:
    """A running Postfix with the place as its spool; gives what submits a message."""
    top = place.spool.parent / "postfix"
    conf = top / "conf"
    conf.mkdir(parents=True)
    (top / "queue").mkdir()
    (top / "data").mkdir()
    shutil.chown(top / "data", "postfix")
    (conf / "main.cf").write_text(MAIN.format(top=top, spool=place.dir))
    (conf / "master.cf").write_text(
        "".join(
            # of the columns only local(8)'s differs: it runs as root, to become the recipient
            f"{name} {kind} {private} {'n' if name == 'local' else '-'} n"
            f" {wake} {limit} {command}\n"
            for name, kind, private, wake, limit, command in SERVICES
        )
    )
    command = [program("postfix"), "-c", str(conf)]
    place.crew.ok([*command, "start"], timeout=20)

    def submit(user: User, text: bytes) -> None:
        argv = ["sendmail", "-C", str(conf), "-f", "bob@example.org", f"{user.name}@test.example"]
        place.crew.ok(argv, content=text)

    try:
        yield submit
    finally:
        done = place.crew.run([*command, "abort"], timeout=20)
        master = top / "queue" / "pid" / "master.pid"
        if done.returncode and master.exists():
            place.crew.run(["kill", "-9", master.read_text().strip()])


def maillog(place: Place) -> str:
    return Path(place.spool.parent / "postfix" / "maillog").read_text()


def test_postfix_delivers(
    place: Place, alice: User, postfix: Callable[[User, bytes], None]
) -> None:
    for number in range(5):
        postfix(alice, message("new", number, envelope=False))
    try:
        until(lambda: maillog(place).count("status=sent") == 5, 20, "delivered")
    except AssertionError as error:
        raise AssertionError(f"{error}\n{maillog(place)}") from None
    wanted = [f"new-{number}" for number in range(5)]
    assert (
        sorted(place.content(alice).count(f"end {name}\n".encode()) for name in wanted) == [1] * 5
    )
    assert place.content(alice).count(b"\nX-Test-Id: ") == 5


def test_postfix_makes_a_mailbox(
    place: Place, newuser: User, postfix: Callable[[User, bytes], None]
) -> None:
    postfix(newuser, message("new", 0, envelope=False))
    until(lambda: "status=sent" in maillog(place), 20, "delivered")
    place.holds(newuser, ["new-0"])
    assert (place.spool / newuser.name).stat().st_uid == newuser.uid


def test_postfix_waits_for_a_lock(
    place: Place, alice: User, postfix: Callable[[User, bytes], None]
) -> None:
    holder = place.crew.actor(alice)
    holder.do(f"lock('dotlock', {place.path(alice)!r})")
    postfix(alice, message("new", 0, envelope=False))
    time.sleep(1.5)
    assert place.content(alice) == b""
    holder.do(f"unlock('dotlock', {place.path(alice)!r})")
    until(lambda: "status=sent" in maillog(place), 20, "delivered")
    place.holds(alice, ["new-0"])
