"""Programs on the backing spool itself (outside the mount) and programs inside hold each other
off.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_exclusion import PROTOCOLS, taken, waits
from tests.support import actor_main
from tests.support.mbox import message, names
from tests.support.processes import until
from tests.support.users import ROOT

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User

OUTSIDE = ("dotlock", "flock", "fcntl", "ofd")
SOON = 2.0  # kernel locks outside are noticed by a bounded poll


@pytest.mark.parametrize("protocol", OUTSIDE)
def test_a_lock_outside_refuses_those_inside(mail: Place, alice: User, protocol: str) -> None:
    real, path = str(mail.spool / alice.name), mail.path(alice)
    outside = mail.crew.actor()
    for inner in PROTOCOLS:
        outside.do(f"lock({protocol!r}, {real!r})")
        inside = mail.crew.actor(alice)
        assert not taken(inside, inner, path), f"{inner} inside got what {protocol} outside holds"
        if waits(inner):
            inside.start(f"lock({inner!r}, {path!r}, wait=True)")
            assert inside.busy(0.5), f"{inner} does not wait: {inside.result()}"
            outside.do(f"unlock({protocol!r}, {real!r})")
            inside.result(SOON)
        else:
            outside.do(f"unlock({protocol!r}, {real!r})")
            until(partial(taken, inside, inner, path), SOON, f"{inner} after {protocol}")
        inside.do(f"unlock({inner!r}, {path!r})")
        until(lambda: taken(outside, protocol, real), SOON, "free outside")
        outside.do(f"unlock({protocol!r}, {real!r})")


@pytest.mark.parametrize("protocol", OUTSIDE)
def test_a_lock_outside_holds_off_a_writer_without_locks(
    mail: Place, alice: User, protocol: str
) -> None:
    real, path = str(mail.spool / alice.name), mail.path(alice)
    outside, inside = mail.crew.actor(), mail.crew.actor(alice)
    outside.do(f"lock({protocol!r}, {real!r})")
    inside.start(f"append({path!r}, {message('in', 0)!r})")
    inside.busy(1.0)
    assert mail.content(alice) == b"", "written under somebody's lock"
    fd = f"os.open({real!r}, os.O_WRONLY | os.O_APPEND)"
    if protocol == "fcntl":  # closing another descriptor would drop its lock
        outside.do(f"os.lseek(held['fcntl', {real!r}], 0, 2)")
        fd = f"os.dup(held['fcntl', {real!r}])"
    text = message("out", 0)
    outside.do(f"kept = {fd}; os.write(kept, {text[:50]!r}); os.write(kept, {text[50:]!r})")
    assert mail.content(alice) == text
    outside.do(f"unlock({protocol!r}, {real!r}); os.close(kept)")
    inside.result(5.0)
    mail.holds(alice, ["out-0", "in-0"], SOON)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_lock_inside_refuses_those_outside(mail: Place, alice: User, protocol: str) -> None:
    real, path = str(mail.spool / alice.name), mail.path(alice)
    outside, inside = mail.crew.actor(), mail.crew.actor(alice)
    inside.do(f"lock({protocol!r}, {path!r})")
    for outer in OUTSIDE:
        assert not taken(outside, outer, real), f"{outer} outside got what {protocol} inside holds"
    done = mail.crew.run(["flock", "-n", real, "true"], user=alice)
    assert done.returncode == 1, done.stdout
    done = mail.crew.run(["dotlockfile", "-l", "-r", "0", f"{real}.lock"])
    assert done.returncode == 4, done.stdout
    outside.start(f"lock('fcntl', {real!r}, wait=True)")
    assert outside.busy(0.3)
    inside.do(f"unlock({protocol!r}, {path!r})")
    outside.result(SOON)
    outside.do(f"unlock('fcntl', {real!r})")
    until(lambda: not (mail.spool / f"{alice.name}.lock").exists(), SOON, "backing dotlock gone")
    for outer in OUTSIDE:
        until(partial(taken, outside, outer, real), SOON, f"{outer} outside, afterwards")
        outside.do(f"unlock({outer!r}, {real!r})")


def test_the_lock_file_inside_is_not_the_one_outside(mail: Place, alice: User) -> None:
    """Only our own dotlock is ever in the backing spool, while a mailbox is held (design 5,
    7.1).
    """
    path = mail.path(alice)
    lock = mail.spool / f"{alice.name}.lock"
    inside = mail.crew.actor(alice)
    inside.do(f"put({path + '.lock'!r}, b'content of the client')")
    assert inside.do(f"get({path + '.lock'!r})") == b"content of the client"
    assert lock.exists()
    assert lock.stat().st_uid == 0
    assert b"content of the client" not in lock.read_bytes()
    inside.do(f"unlock('dotlock', {path!r})")
    until(lambda: not lock.exists(), SOON, "gone")


def test_a_lock_outside_is_seen_inside(mail: Place, alice: User) -> None:
    """A client sees a lock file exactly if it would be denied (design 4.6)."""
    real, path = str(mail.spool / alice.name), mail.path(alice)
    outside, inside = mail.crew.actor(), mail.crew.actor(alice)
    exists = f"os.path.exists({path + '.lock'!r})"
    assert not inside.do(exists)
    outside.do(f"lock('dotlock', {real!r})")
    until(lambda: inside.do(exists), SOON, "seen")
    outside.do(f"unlock('dotlock', {real!r})")
    until(lambda: not inside.do(exists), SOON, "no longer seen")


def test_changes_made_outside_are_seen_inside(mail: Place, alice: User) -> None:
    real, path = str(mail.spool / alice.name), mail.path(alice)
    outside, inside = mail.crew.actor(), mail.crew.actor(alice)
    assert inside.do(f"get({path!r})") == b""
    for number in range(3):
        outside.do(f"append({real!r}, {message('out', number)!r})")
        until(lambda: inside.do(f"get({path!r})") == mail.content(alice), 2.0, "seen inside")
        inside.do(f"append({path!r}, {message('in', number)!r})")
    mail.holds(alice, names("out", 3) + names("in", 3))


WRITER = """
import sys, time
exec(sys.argv[1])
path, messages, locked = sys.argv[2], eval(sys.argv[3]), sys.argv[4] == "locked"
for text in messages:
    while locked:
        try:
            lock('dotlock', path)
            break
        except FileExistsError:
            time.sleep(0.01)
    append(path, text)
    if locked:
        unlock('dotlock', path)
"""


@pytest.mark.timeout(90)
def test_writers_on_both_sides(mail: Place, alice: User) -> None:
    """Dotlocking writers outside, and inside dotlocking writers and ones without locks."""
    source = Path(actor_main.__file__).read_text().split('if __name__ == "__main__"')[0]
    real, path = str(mail.spool / alice.name), mail.path(alice)
    count, jobs, wanted = 10, [], []
    for kind, where, user, locked in (
        ("outside", real, ROOT, "locked"),
        ("inside", path, alice, "locked"),
        ("plain", path, alice, "not"),
    ):
        for number in range(3):
            writer = f"{kind}{number}"
            texts = repr([message(writer, n) for n in range(count)])
            jobs.append(mail.crew.python(WRITER, source, where, texts, locked, user=user))
            wanted += names(writer, count)
    mail.crew.finish(jobs, 60)
    mail.holds(alice, wanted)
