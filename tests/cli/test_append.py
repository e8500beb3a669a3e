"""`mailfs append`, on a plain spool and through a mount: whole or not at all."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from mailfs.cli.main import main
from mailfs.daemon.errors import Exit
from tests.cli.commands import mailfs
from tests.conftest import fresh_spool, mounted
from tests.mount.test_exclusion import free
from tests.mount.work import fill, settled
from tests.support.mbox import message
from tests.support.mounts import MODES, Place
from tests.support.processes import Crew, until
from tests.support.users import ROOT

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tests.support.users import User


def text(writer: str, number: int = 0, size: int = 300) -> bytes:
    """A message as it comes to a delivery agent."""
    return message(writer, number, size, envelope=False)


def command(place: Place, name: str, *options: object, user: User = ROOT) -> list[str]:
    return mailfs("append", "--spool", place.dir, *options, "--", name, user=user)


def started(place: Place, argv: list[str], content: bytes | None) -> subprocess.Popen[bytes]:
    """Start a command with a message on its standard input; None: input stays open."""
    process = place.crew.start(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    assert process.stdin
    if content is not None:
        process.stdin.write(content)
        process.stdin.close()
        process.stdin = None
    return process


@pytest.mark.fuse
def test_by_root_and_by_the_user(place: Place, alice: User) -> None:
    wanted = fill(place, alice)
    place.crew.ok(command(place, alice.name), content=text("root"))
    argv = mailfs("append", "--from", "x@y", place.path(alice), user=alice)
    place.crew.ok(argv, content=message("user", 0))
    settled(place, alice, [*wanted, "root-0", "user-0"])
    place.crew.ok(command(place, alice.name, "--from", ""), content=text("bounce"))
    settled(place, alice, [*wanted, "root-0", "user-0", "bounce-0"])
    lines = [line for line in place.content(alice).split(b"\n") if line.startswith(b"From ")]
    assert [line.split()[1] for line in lines[-3:]] == [b"root", b"x@y", b"MAILER-DAEMON"]


@pytest.mark.fuse
@pytest.mark.parametrize("by", ["root", "user"])
def test_a_new_mailbox_belongs_to_its_account(place: Place, newuser: User, by: str) -> None:
    user = ROOT if by == "root" else newuser
    place.crew.ok(command(place, newuser.name, user=user), content=text("new"))
    settled(place, newuser, ["new-0"])
    found = (place.spool / newuser.name).stat()
    served = place.spool.stat().st_mode & stat.S_ISGID
    wanted = (place.spool.stat().st_gid, 0o660) if served else (newuser.gid, 0o600)
    assert (found.st_gid, stat.S_IMODE(found.st_mode)) == wanted
    assert {entry.name for entry in place.spool.iterdir() if "mailfs-" in entry.name} == set()


@pytest.mark.fuse
def test_whose_mailbox_it_is_not(place: Place, alice: User, bob: User, newuser: User) -> None:
    before = {entry.name for entry in place.spool.iterdir()}
    for name, user, code in (
        (bob.name, alice, Exit.NOPERM),
        (newuser.name, alice, Exit.NOPERM),
        ("nosuch", ROOT, Exit.NOINPUT),
    ):
        done = place.crew.run(command(place, name, user=user), content=text("new"))
        assert done.returncode == code, (name, user.name, done.stdout)
    assert {entry.name for entry in place.spool.iterdir()} == before
    assert place.content(bob) == b""


@pytest.mark.fuse
def test_many_at_once(place: Place, alice: User) -> None:
    argv = command(place, alice.name)
    running = [started(place, argv, text(f"w{number}")) for number in range(20)]
    place.crew.finish(running, 50)
    place.holds(alice, [f"w{number}-0" for number in range(20)])


@pytest.mark.fuse
@pytest.mark.parametrize("protocol", ["flock", "dotlock-link"])
def test_who_holds_the_mailbox_is_waited_for(place: Place, alice: User, protocol: str) -> None:
    holder = place.crew.actor(alice)
    holder.do(f"lock({protocol!r}, {place.path(alice)!r})")
    late = command(place, alice.name, "--timeout", "0.3")
    done = place.crew.run(late, content=text("late"))
    assert (done.returncode, b"locked by somebody else" in done.stdout) == (Exit.TEMPFAIL, True)
    waiting = started(place, command(place, alice.name), text("new"))
    with pytest.raises(subprocess.TimeoutExpired):
        waiting.wait(1)
    assert place.content(alice) == b""
    holder.do(f"unlock({protocol!r}, {place.path(alice)!r})")
    place.crew.finish([waiting], 15)
    settled(place, alice, ["new-0"])


@pytest.mark.fuse
def test_input_that_stalls_keeps_nobody_waiting(place: Place, alice: User) -> None:
    content = text("slow", 0, 100_000)
    slow = started(place, command(place, alice.name), None)
    assert slow.stdin
    slow.stdin.write(content[:70_000])  # more than a pipe holds: it is being read
    slow.stdin.flush()
    assert free(place.crew.actor(alice), place.path(alice))
    place.crew.ok(command(place, alice.name, "--timeout", "0"), content=text("quick"))
    slow.stdin.write(content[70_000:])
    place.crew.finish([slow], 15)
    settled(place, alice, ["quick-0", "slow-0"])


@pytest.mark.fuse
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_told_to_end_while_it_waits(place: Place, alice: User, number: int) -> None:
    holder = place.crew.actor(alice)
    holder.do(f"lock('flock', {place.path(alice)!r})")
    waiting = started(place, command(place, alice.name), text("new"))
    until(lambda: past_input(place, waiting.pid), 10, "has read its input")
    waiting.send_signal(number)
    output, _ = waiting.communicate(timeout=10)
    if number == signal.SIGKILL:
        assert waiting.returncode == -number
    else:
        assert waiting.returncode == Exit.TEMPFAIL
        assert b"nothing appended: stopped by" in output
    holder.do(f"unlock('flock', {place.path(alice)!r})")
    settled(place, alice, [])


def past_input(place: Place, pid: int) -> bool:
    """Whether a command has read its message and turned to the spool."""
    links = [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    return str(place.dir) in [os.readlink(link) for link in links if os.path.lexists(link)]


@pytest.mark.fuse
def test_a_message_larger_than_memory_is_worth(place: Place, alice: User) -> None:
    """Through a temporary file here, and spilled by the daemon."""
    place.crew.ok(command(place, alice.name), content=text("large", 0, 5_000_000))
    settled(place, alice, ["large-0"])


@pytest.fixture(params=["plain", "mailfs"])
def small(
    request: pytest.FixtureRequest,
    machine: pathlib.Path,
    people: dict[str, User],
    crew: Crew,
) -> Iterator[Place]:
    """A spool on a disk of half a megabyte."""
    outer = fresh_spool(machine, people, MODES[1])
    options = "size=512k,mode=2775,gid=mail,nr_inodes=100"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", outer], check=True, timeout=10)
    try:
        for user in people.values():
            if not user.name.endswith("n"):
                mailbox = outer / user.name
                mailbox.touch(0o660)
                os.chown(mailbox, user.uid, outer.stat().st_gid)
        if request.param == "plain":
            yield Place(outer, outer, crew)
        else:
            with mounted(request.node, outer) as place:
                yield place
    finally:
        subprocess.run(["umount", outer], check=True, timeout=10)


@pytest.mark.fuse
@pytest.mark.parametrize("size", [600_000, 3_000_000])
def test_a_full_disk(small: Place, alice: User, bob: User, size: int) -> None:
    """The smaller message is staged in memory and fails at the commit, the other at a write()."""
    wanted = fill(small, alice)
    done = small.crew.run(command(small, alice.name), content=text("new", 0, size))
    assert (done.returncode, b"No space left" in done.stdout) == (Exit.TEMPFAIL, True), done.stdout
    settled(small, alice, wanted)
    small.crew.ok(command(small, bob.name), content=text("small"))
    settled(small, bob, ["small-0"])


@pytest.mark.fuse
def test_an_ordinary_user_of_a_plain_spool_is_told(
    machine: pathlib.Path, people: dict[str, User], crew: Crew
) -> None:
    alice = people["a"]
    spool = fresh_spool(machine, people, MODES[1])
    place = Place(spool, spool, crew)
    for argv in (
        command(place, alice.name, user=alice),
        mailfs("lock", "--spool", spool, alice.name, "--", "true", user=alice),
    ):
        done = crew.run(argv, content=text("new"))
        assert done.returncode == Exit.NOPERM
        assert b"you may not make lock files" in done.stdout
    assert place.content(alice) == b""


@pytest.mark.fuse
@pytest.mark.parametrize("name", ["-alice", "a\nb", "x" * 255])
def test_strange_names(
    machine: pathlib.Path, people: dict[str, User], crew: Crew, name: str
) -> None:
    spool = fresh_spool(machine, people, MODES[0])
    (spool / name).touch()
    place = Place(spool, spool, crew)
    crew.ok(command(place, name), content=b"A: b\n\nx\n")
    assert (spool / name).read_bytes().endswith(b"\nA: b\n\nx\n\n")
    crew.ok(mailfs("lock", "--spool", spool, "--", name, "--", "true"))
    assert [entry.name for entry in spool.iterdir() if ".lock" in entry.name] == []


@pytest.mark.fuse
def test_the_longest_name_through_a_mount(mail: Place) -> None:
    """There its lock file may have a name that no disk would take."""
    name = "x" * 255
    (mail.spool / name).touch()
    mail.crew.ok(command(mail, name), content=b"A: b\n\nx\n")
    assert (mail.spool / name).read_bytes().endswith(b"\nA: b\n\nx\n\n")
    argv = mailfs("lock", "--spool", mail.dir, name, "--", "flock", "-n", mail.dir / name, "true")
    mail.crew.ok(argv)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([""], Exit.USAGE),
        (["."], Exit.USAGE),
        ([".."], Exit.USAGE),
        (["a/.."], Exit.USAGE),
        (["a/"], Exit.USAGE),
        ([".mailfs"], Exit.USAGE),
        (["alice.lock"], Exit.USAGE),
        (["--spool", "/", "a/b"], Exit.USAGE),
        (["--from", "a b", "alice"], Exit.USAGE),
        (["--timeout", "-1", "alice"], Exit.USAGE),
        ([], Exit.USAGE),
    ],
)
def test_what_is_refused(arguments: list[str], code: int) -> None:
    assert main(["append", *arguments]) == code
    assert main(["lock", *arguments, "--", "true"]) == code


@pytest.mark.fuse
def test_what_is_no_mailbox(machine: pathlib.Path, people: dict[str, User], crew: Crew) -> None:
    spool = fresh_spool(machine, people, MODES[0])
    place = Place(spool, spool, crew)
    (spool / "dir").mkdir()
    (spool / "link").symlink_to(people["a"].name)
    os.mkfifo(spool / "fifo")
    for name in ("dir", "link", "fifo", "nosuch/x"):
        argv = command(place, name) if "/" not in name else mailfs("append", f"{spool}/{name}")
        done = crew.run(argv, content=text("new"))
        assert done.returncode == Exit.NOINPUT, (name, done.stdout)
    done = crew.run(command(place, people["a"].name))
    assert (done.returncode, b"no message" in done.stdout) == (Exit.DATAERR, True)
    assert place.content(people["a"]) == b""


@pytest.mark.fuse
def test_root_at_the_real_spool_of_a_mount(mail: Place, alice: User) -> None:
    """It is a program outside, and waits for who holds the mailbox in the mount."""
    holder = mail.crew.actor(alice)
    holder.do(f"lock('flock', {mail.path(alice)!r})")
    outside = Place(mail.spool, mail.spool, mail.crew)
    waiting = started(mail, command(outside, alice.name), text("outside"))
    until(lambda: past_input(outside, waiting.pid), 10, "has read its input")
    time.sleep(0.3)
    assert (waiting.poll(), mail.content(alice)) == (None, b"")
    holder.do(f"unlock('flock', {mail.path(alice)!r})")
    mail.crew.finish([waiting], 10)
    settled(mail, alice, ["outside-0"])
