"""A disk that is really full: who writes is told in time, and what was promised has its room."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from tests.conftest import mounted
from tests.support.mbox import message, names
from tests.support.mounts import MODES, Place, make_spool
from tests.support.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.users import User

BLOCK = 4096
BIG = message("big", 0, 600_000)


@pytest.fixture
def mail(request: pytest.FixtureRequest, machine: Path, people: dict[str, User]) -> Iterator[Place]:
    """A mounted spool on a file system of two megabytes."""
    where = machine / "full"
    where.mkdir()
    argv: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0755", "tmpfs", where]
    subprocess.run(argv, timeout=10, check=True)
    try:
        spool = make_spool(where, MODES[1], [people[letter] for letter in "abc"])
        with mounted(request.node, spool) as place:
            assert place.mailfs
            place.mailfs.announce("No space left")
            yield place
    finally:
        subprocess.run(["umount", "-l", where], timeout=10, check=True)
        where.rmdir()


@contextmanager
def full(mail: Place, room: int = 0) -> Iterator[None]:
    """Fill the disk but for so many bytes."""
    filler = mail.spool.parent / "filler"
    found = os.statvfs(mail.spool)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, found.f_bavail * found.f_frsize - room))
    try:
        yield
    finally:
        filler.unlink()


def test_an_append_hears_of_it_at_write(mail: Place, alice: User, bob: User) -> None:
    path = mail.path(alice)
    one, other = mail.crew.actor(alice), mail.crew.actor(bob)
    one.do(f"append({path!r}, {message('w', 0)!r})")
    with full(mail):
        one.do(f"fd = os.open({path!r}, os.O_WRONLY | os.O_APPEND)")
        assert one.errno(f"os.write(fd, {message('w', 1, 20_000)!r})") == errno.ENOSPC
        one.do("os.close(fd)")
        told = other.errno(f"append({mail.path(bob)!r}, {message('x', 0)!r})")
        assert told in (0, errno.ENOSPC)
        mail.holds(alice, ["w-0"])
        mail.holds(bob, ["x-0"] if told == 0 else [])
    one.do(f"append({path!r}, {message('w', 2)!r})")
    mail.holds(alice, ["w-0", "w-2"])


def test_half_a_message_is_none(mail: Place, alice: User) -> None:
    """What cat does: it writes what it can and gives up."""
    path, source = mail.path(alice), alice.home / "big"
    source.write_bytes(BIG)
    source.chmod(0o644)
    with full(mail, 100 * BLOCK):
        done = mail.crew.run(["sh", "-c", 'cat "$0" >> "$1"', str(source), path], user=alice)
        assert done.returncode
        log = mail.mailfs.log if mail.mailfs else str
        until(lambda: "discard: a write to it failed" in log(), 5, "discarded")
        assert mail.content(alice) == b""
    mail.crew.ok(["sh", "-c", 'cat "$0" >> "$1"', str(source), path], user=alice)
    mail.holds(alice, ["big-0"])


def test_a_writer_that_cuts_back_may_go_on(mail: Place, alice: User) -> None:
    """What delivery agents do after an error."""
    one, path = mail.crew.actor(alice), mail.path(alice)
    one.do(f"append({path!r}, {message('w', 0)!r}); size = os.stat({path!r}).st_size")
    with full(mail):
        one.do(f"fd = os.open({path!r}, os.O_RDWR | os.O_APPEND)")
        assert one.errno(f"os.write(fd, {BIG!r})") == errno.ENOSPC
        one.do("os.ftruncate(fd, size)")
    one.do(f"os.write(fd, {message('w', 1)!r}); os.close(fd)")
    mail.holds(alice, ["w-0", "w-1"])


def test_room_comes_back_when_a_writer_is_killed(mail: Place, alice: User, bob: User) -> None:
    one, other = mail.crew.actor(alice), mail.crew.actor(bob)
    with full(mail, 1_700_000):  # for one message: in the mailbox and in the journal
        one.do(f"fd = os.open({mail.path(alice)!r}, os.O_WRONLY | os.O_APPEND)")
        one.do(f"os.write(fd, {BIG!r})")
        append = f"append({mail.path(bob)!r}, {BIG!r})"
        assert other.errno(append) == errno.ENOSPC
        one.kill(signal.SIGKILL)
        until(lambda: other.errno(append) == 0, 5, "room for another's message")
    mail.holds(bob, ["big-0"])
    assert mail.content(alice) == b""


def test_what_waits_for_a_lock_has_its_room(mail: Place, alice: User) -> None:
    holder, writer, path = mail.crew.actor(alice), mail.crew.actor(alice), mail.path(alice)
    holder.do(f"lock('flock', {path!r})")
    for number in range(3):
        writer.do(f"append({path!r}, {message('w', number, 20_000)!r})")
    with full(mail):
        holder.do(f"unlock('flock', {path!r})")
        mail.holds(alice, names("w", 3))


def test_a_save_leaves_the_mailbox_as_it_was(mail: Place, alice: User) -> None:
    one, path = mail.crew.actor(alice), mail.path(alice)
    one.do(f"append({path!r}, {BIG!r})")
    save = (
        f"text = get({path!r}); fd = os.open({path!r}, os.O_WRONLY | os.O_TRUNC)\n"
        "try:\n    os.write(fd, text + b'From more\\n\\n')\nfinally:\n    os.close(fd)"
    )
    with full(mail):
        assert one.errno(save) == errno.ENOSPC
        assert mail.content(alice) == BIG
    one.do(save)
    assert mail.content(alice) == BIG + b"From more\n\n"
