"""POP servers that rewrite at the end what they read at the beginning, with and without the lock in between (P10)."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import pytest

from tests.conftest import fresh_spool, mounted
from tests.mount.test_dovecot import dialogue, talker
from tests.mount.work import NEW, fill, owned, settled
from tests.support.mbox import message, names
from tests.support.mounts import MODES
from tests.support.processes import PYTHON, until
from tests.support.system import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.mounts import Place
    from tests.support.processes import Actor
    from tests.support.users import User

# As Qpopper in server mode: parse under a lock and keep what was read; unlock; at the end, under a lock again, write
# what is left of it over the mailbox. It assumes that others only append, and copes with nothing, not even that.
POPPER = """
def begin(path):
    global box, text
    lock("fcntl", path)
    fd = held["fcntl", path]
    text = os.pread(fd, 1 << 20, 0)
    unlock_only(path)
    box = os.open(path, os.O_RDWR)

def unlock_only(path):
    global first
    first = held.pop(("fcntl", path))
    fcntl_lock(first, fcntl.F_UNLCK)

def delete_first_and_end(path):
    global box, first
    try:
        fcntl_lock(box, fcntl.F_WRLCK, fcntl.F_SETLKW)
        left = text[text.index(b"\\nFrom ") + 1 :]
        os.pwrite(box, left, 0)
        os.ftruncate(box, len(left))
        fcntl_lock(box, fcntl.F_UNLCK)
    finally:
        os.close(box)
        os.close(first)
"""


@pytest.fixture(params=["held", "unheld"])
def pop(
    request: pytest.FixtureRequest, machine: Path, people: dict[str, User]
) -> Iterator[tuple[Place, bool]]:
    """A mount where the programs of these tests hold their sessions, and one where nobody does."""
    held = request.param == "held"
    # The actor stands for Qpopper; as a script it is known by its interpreter.
    named = f'["{program("pop3")}", "{PYTHON}"]'
    options = [f"programs.session_hold={named}"] if held else []
    with mounted(request.node, fresh_spool(machine, people, MODES[0]), options) as place:
        yield place, held


def deliver(place: Place, user: User, text: bytes = NEW) -> None:
    """Mail comes, from a program without locks, which does not wait."""
    start = time.monotonic()
    place.crew.ok(["sh", "-c", 'cat >> "$0"', place.path(user)], user=user, content=text)
    assert time.monotonic() - start < 2.5


def popper(place: Place, user: User) -> Actor:
    actor = place.crew.actor(user)
    actor.do(POPPER)
    actor.do(f"begin({place.path(user)!r})")
    return actor


def test_dovecot_pop3(pop: tuple[Place, bool], alice: User) -> None:
    place, held = pop
    place.crew.ok(["chmod", "600", place.path(alice)], user=alice)
    wanted = fill(place, alice)
    conf = owned(
        alice,
        "dovecot.conf",
        "protocols =\nlog_path = /dev/stderr\nssl = no\nmail_privileged_group =\n"
        f"mail_location = mbox:~/dmail:INBOX={place.dir}/%u\n",
    )
    process = talker(place, alice, [program("pop3"), "-c", conf])
    dialogue(process, ("STAT", r"^\+OK 3 "))
    deliver(place, alice)
    assert place.mailfs
    if held:
        assert "session" in place.mailfs.locks()
        time.sleep(0.3)
        assert b"end new-0" not in place.content(alice), "it waits for the end of the session"
    # Unheld, Dovecot has a read lock from time to time, behind which mail waits as well.
    dialogue(
        process,
        ("RETR 1", r"end old-0[\s\S]*^\."),
        ("DELE 1", r"^\+OK"),
        ("QUIT", r"^\+OK"),
    )
    assert process.wait(10) == 0
    settled(place, alice, [*wanted[1:], "new-0"])
    assert "session" not in place.mailfs.locks()


def test_qpopper_keeps_what_came(pop: tuple[Place, bool], alice: User) -> None:
    place, held = pop
    wanted = fill(place, alice)
    actor = popper(place, alice)
    for number in range(3):
        deliver(place, alice, message("came", number))
    if held:
        assert b"end came-" not in place.content(alice)
    else:
        until(lambda: place.content(alice).count(b"end came-") == 3, 5, "delivered")
    actor.do(f"delete_first_and_end({place.path(alice)!r})")
    place.holds(alice, [*wanted[1:], *names("came", 3)])
    settled(place, alice, [*wanted[1:], *names("came", 3)])


def test_qpopper_and_somebody_who_edits(pop: tuple[Place, bool], alice: User) -> None:
    """What it would save is stale: held, the edit waits or fails; unheld, its save fails. Nothing is mixed."""
    place, held = pop
    wanted = fill(place, alice)
    actor = popper(place, alice)
    edit = ["sed", "-i", "s/^X-Test-Sum/X-Edited: yes\\n&/", place.path(alice)]
    done = place.crew.run(edit, user=alice)
    assert place.mailfs
    if held:
        assert done.returncode != 0, "somebody else holds it"
        actor.do(f"delete_first_and_end({place.path(alice)!r})")
        settled(place, alice, wanted[1:])
        return
    assert done.returncode == 0, done.stdout
    before = place.content(alice)
    assert before.count(b"X-Edited") == 3
    assert actor.errno(f"delete_first_and_end({place.path(alice)!r})") == errno.ESTALE
    assert place.content(alice) == before


def test_the_hold_dies_with_its_process(pop: tuple[Place, bool], alice: User) -> None:
    place, held = pop
    wanted = fill(place, alice)
    actor = popper(place, alice)
    deliver(place, alice)
    if held:
        assert b"end new-0" not in place.content(alice)
    actor.kill()
    place.holds(alice, [*wanted, "new-0"])


def test_the_first_open_waits_its_turn(
    request: pytest.FixtureRequest, machine: Path, people: dict[str, User], alice: User
) -> None:
    """As for any lock, and at most ``waits.open``."""
    options = [f'programs.session_hold=["{PYTHON}"]', "waits.open=1"]
    with mounted(request.node, fresh_spool(machine, people, MODES[0]), options) as place:
        path = place.path(alice)
        first, second, third = (place.crew.actor(alice) for _ in range(3))
        first.do(f"fd = os.open({path!r}, os.O_RDWR); other = os.open({path!r}, os.O_RDONLY)")
        assert second.errno(f"os.open({path!r}, os.O_RDWR)") == errno.EAGAIN
        third.start(f"fd = os.open({path!r}, os.O_RDWR)")
        assert third.busy(0.2)
        first.do("os.close(fd)")
        assert third.busy(0.2), "its last close counts"
        first.do("os.close(other)")
        third.result()
        assert place.mailfs
        assert place.mailfs.locks().count("session") == 1
        second.start(f"os.open({path!r}, os.O_RDWR)")
        assert second.busy(0.2)
        assert second.kill() < 1, "a signal ends the wait"
