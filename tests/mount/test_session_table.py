"""The rows of the table in docs/design.md section 3, one test a row: when what was written becomes part of the mailbox.

What is not here: the last close of the opener, and shells, are in test_sessions.py; execve in test_ends.py; what
becomes of drafts whose lock was taken away in test_errnos.py; unmounting in test_life.py.
"""

from __future__ import annotations

import errno
import signal
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_lockfile import locker, names_of
from tests.support.processes import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.mounts import Place
    from tests.support.users import User

SOON = 2.0
HALF, REST = b"From x@y Thu Jan  1 00:00:00 2026\n\nhalf", b" and rest\n\n"
WHOLE = HALF + REST
OPEN = "fd = os.open(m, os.O_WRONLY | os.O_APPEND)\n"
# A child that does what it is told: a line of code for each byte read from its pipe.
CHILD = """
ask, order = os.pipe(); answer, told = os.pipe()
child = os.fork()
if child == 0:
    os.close(order)
    for step in steps:
        if not os.read(ask, 1): break
        exec(step); os.write(told, b'.')
    os.read(ask, 1); os._exit(0)
def step(): os.write(order, b'.'); assert os.read(answer, 1) == b'.'
def end(): os.close(order); return os.waitpid(child, 0)[1]
"""


@pytest.fixture
def mail(mounting: Callable[..., Place]) -> Place:
    """One kind of spool: how it is locked makes no difference here."""
    return mounting()


# --- flush ----------------------------------------------------------------------------------------


def test_flush_after_another_flush_without_release(mail: Place, alice: User) -> None:
    """A duplicate was closed before: the last of them decides."""
    actor = locker(mail, alice)
    actor.do(OPEN + f"other = os.dup(fd); os.write(fd, {HALF!r}); os.close(other)")
    assert mail.content(alice) == b""
    actor.do(f"os.write(fd, {REST!r}); os.close(fd)")
    until(lambda: mail.content(alice) == WHOLE, SOON, "one message")


def test_flush_with_another_descriptor_in_the_process(mail: Place, alice: User) -> None:
    """dup(2): closing the first of two commits nothing, the second may go on."""
    actor = locker(mail, alice)
    actor.do(OPEN + f"other = os.dup(fd); os.write(fd, {HALF!r}); os.close(fd)")
    assert mail.content(alice) == b""
    actor.do(f"os.write(other, {REST!r}); os.close(other)")
    until(lambda: mail.content(alice) == WHOLE, SOON, "one message")


def test_flush_of_a_process_dying_by_a_signal(mail: Place, alice: User) -> None:
    actor = locker(mail, alice)
    actor.do(OPEN + f"os.write(fd, {HALF!r})")
    actor.kill(signal.SIGTERM)
    assert locker(mail, alice).do("get(m)") == b""  # open() waits for the end of the last close
    assert mail.content(alice) == b""


def test_flush_by_exit(mail: Place, alice: User) -> None:
    """exit() without close() is a close like any other, and over before the parent hears of it."""
    actor = locker(mail, alice)
    actor.do(f"{OPEN}os.write(fd, {WHOLE!r})")
    assert actor.process.stdin
    actor.process.stdin.close()
    assert actor.process.wait(5) == 0
    assert mail.content(alice) == WHOLE


def test_flush_in_execve(mail: Place, alice: User) -> None:
    actor = locker(mail, alice)
    actor.do(OPEN + f"os.write(fd, {WHOLE!r})")  # Python's descriptors are O_CLOEXEC
    actor.start("os.execv('/bin/sleep', ['sleep', '60'])")
    until(lambda: mail.content(alice) == WHOLE, SOON, "committed within execve")
    assert actor.process.poll() is None


def test_flush_by_a_child(mail: Place, alice: User) -> None:
    """A child closes the descriptor it has inherited, also by its end: the opener goes on with its message."""
    actor = locker(mail, alice)
    actor.do(OPEN + f"os.write(fd, {HALF!r}); steps = ['os.close(fd)']" + CHILD)
    actor.do("step()")
    assert mail.content(alice) == b""
    assert actor.do("end()") == 0
    actor.do("child = os.fork()\nif child == 0: os._exit(0)\nos.waitpid(child, 0)")
    assert mail.content(alice) == b""
    actor.do(f"os.write(fd, {REST!r}); os.close(fd)")
    until(lambda: mail.content(alice) == WHOLE, SOON, "one message")


def test_flush_by_who_was_passed_the_descriptor(mail: Place, alice: User) -> None:
    """SCM_RIGHTS: a process that is no relative writes to it; it counts as the opener's work, and the last ends it."""
    actor, other = locker(mail, alice), locker(mail, alice)
    where = str(alice.home / "socket")
    other.do(
        f"import socket; s = socket.socket(socket.AF_UNIX); s.bind({where!r}); s.listen()",
    )
    actor.do(OPEN + f"import socket; s = socket.socket(socket.AF_UNIX); s.connect({where!r})")
    actor.do(f"os.write(fd, {HALF!r}); socket.send_fds(s, [b'.'], [fd])")
    other.do("fd = socket.recv_fds(s.accept()[0], 1, 1)[1][0]")
    actor.do("os.close(fd)")  # the opener's first close: a commit, as it cannot know of the other
    other.do(f"os.write(fd, {REST!r}); os.close(fd)")
    until(lambda: mail.content(alice) == WHOLE, SOON, "both parts")


@pytest.mark.parametrize("exits", ["main", "other"])
def test_flush_by_threads(mail: Place, alice: User, exits: str) -> None:
    """One thread opens, others write, another ends the process: one process, one message."""
    code = (
        "import ctypes, os, sys, threading, time\n"
        "def run(what, *args):\n"
        "    done = []; t = threading.Thread(target=lambda: done.append(what(*args))); t.start(); t.join()\n"
        "    return done[0]\n"
        "fd = run(os.open, sys.argv[1], os.O_WRONLY | os.O_APPEND)\n"
        f"run(os.write, fd, {HALF!r}); run(os.write, fd, {REST!r})\n"
    )
    if exits == "other":  # exit_group() kills the first thread, which is no death by a signal
        code += "threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(30)\n"
    else:
        code += "run(os.close, fd)\n"
    mail.crew.finish([mail.crew.python(code, mail.path(alice), user=alice)], 10)
    assert mail.content(alice) == WHOLE


# --- release --------------------------------------------------------------------------------------


def test_release_after_the_opener(mail: Place, alice: User) -> None:
    """The opener is gone, normally; a child that has the descriptor finishes the message."""
    actor = locker(mail, alice)
    actor.do(
        f"{OPEN}os.write(fd, {HALF!r}); steps = {[f'os.write(fd, {REST!r})', 'os.close(fd)']!r}"
        + CHILD
    )
    actor.do("os.close(fd); step(); step()")
    until(lambda: mail.content(alice).endswith(REST), SOON, "committed by the last close")


def test_release_tells_the_log_of_an_error(mail: Place, alice: User) -> None:
    """Nobody is there to hear that the save came too late; it is in rescue."""
    assert mail.mailfs
    mailfs = mail.mailfs
    actor, other = locker(mail, alice), locker(mail, alice)
    actor.do(f"append(m, {WHOLE!r}); get(m)")
    actor.do(
        "fd = os.open(m, os.O_RDWR); other = os.dup(fd); os.pwrite(fd, b'FROM', 0); os.close(fd)"
    )
    other.do("get(m); put(m, b'From z\\n\\nnew\\n\\n', os.O_TRUNC)")
    until(lambda: mail.content(alice) == b"From z\n\nnew\n\n", 10.0, "the other's save")
    mail.mailfs.announce("commit at last close failed")
    assert actor.errno("os.close(other)") == 0
    until(lambda: "commit at last close failed" in mailfs.log(), SOON, "told")
    rescued = list((mail.spool / ".mailfs" / "rescue").iterdir())
    assert [path.read_bytes() for path in rescued] == [b"FROM"], (
        "what it wrote, not mixed with the other's text"
    )
    assert mail.content(alice) == b"From z\n\nnew\n\n"


def test_release_when_the_last_writer_was_killed(mail: Place, alice: User) -> None:
    """A child writes half and is killed; its parent, which opened the file, writes no more."""
    actor = locker(mail, alice)
    actor.do(f"{OPEN}steps = {[f'os.write(fd, {HALF!r})']!r}" + CHILD)
    actor.do("step(); os.kill(child, signal.SIGKILL); os.waitpid(child, 0)")
    actor.do("other = os.dup(fd); os.close(fd); os.close(other)")
    assert locker(mail, alice).do("get(m)") == b""
    assert mail.content(alice) == b""


def test_release_when_the_opener_was_killed_after_its_commands(mail: Place, alice: User) -> None:
    """A shell is killed between two commands that write one message."""
    script = 'exec 3>>"$0"; printf "From x@y\\n\\nhal" | cat >&3; echo; read -r go; cat "$1" >&3'
    pipe = -1
    argv = ["sh", "-c", script, mail.path(alice), "/dev/null"]
    shell = mail.crew.start(argv, user=alice, stdin=pipe, stdout=pipe)
    assert shell.stdout
    assert shell.stdout.readline() == b"\n"
    shell.kill()
    shell.wait(5)
    assert locker(mail, alice).do("get(m)") == b""
    assert mail.content(alice) == b""


def test_release_when_an_heir_goes_on(mail: Place, alice: User) -> None:
    """The opener is killed; a child that has the descriptor finishes, and what there is by then is whole."""
    actor = locker(mail, alice)
    actor.do(
        f"{OPEN}os.write(fd, {HALF!r}); r, w = os.pipe()\n"
        f"if os.fork() == 0: os.close(w); os.read(r, 1); os.write(fd, {REST!r}); os._exit(0)"
    )
    actor.kill()
    until(lambda: mail.content(alice) == WHOLE, SOON, "what the heir finished")


# --- locks, fsync, time ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["flock", "fcntl", "ofd", "dotlock", "rename"])
def test_unlock(mail: Place, alice: User, how: str) -> None:
    """The descriptor stays open; what was written is there before the lock is free."""
    actor = locker(mail, alice)
    protocol = "dotlock" if how == "rename" else how
    actor.do(f"lock({protocol!r}, m); {OPEN}os.write(fd, {WHOLE!r})")
    assert mail.content(alice) == b""
    actor.do("os.rename(l, m + '.gone')" if how == "rename" else f"unlock({protocol!r}, m)")
    assert mail.content(alice) == WHOLE
    actor.do("os.close(fd)")
    assert mail.content(alice) == WHOLE


def test_fsync_without_a_lock(mail: Place, alice: User) -> None:
    actor = locker(mail, alice)
    actor.do(f"{OPEN}os.write(fd, {WHOLE!r}); os.fsync(fd)")
    assert mail.content(alice) == WHOLE
    actor.do("os.close(fd)")
    assert mail.content(alice) == WHOLE


@pytest.mark.parametrize("protocol", ["flock", "fcntl", "dotlock"])
def test_fsync_under_a_lock(mail: Place, alice: User, protocol: str) -> None:
    actor = locker(mail, alice)
    actor.do(f"lock({protocol!r}, m); {OPEN}os.write(fd, {HALF!r}); os.fsync(fd)")
    assert mail.content(alice) == b""
    actor.do(f"os.write(fd, {REST!r}); os.close(fd); unlock({protocol!r}, m)")
    # With the lock's own descriptor there, the last close may commit, in a thread as it is synced.
    until(lambda: mail.content(alice) == WHOLE, SOON, "the whole message")


def test_idle(mounting: Callable[..., Place], alice: User) -> None:
    mail = mounting("sessions.idle_commit=1")
    actor = locker(mail, alice)
    actor.do(f"{OPEN}os.write(fd, {WHOLE!r})")
    assert mail.content(alice) == b""
    until(lambda: mail.content(alice) == WHOLE, 5.0, "committed though it is open")
    actor.do("os.close(fd)")
    assert mail.content(alice) == WHOLE


# --- by name --------------------------------------------------------------------------------------


def test_truncate_by_name(mail: Place, alice: User) -> None:
    actor = locker(mail, alice)
    actor.do(f"append(m, {WHOLE * 2!r}); os.truncate(m, {len(WHOLE)})")
    assert mail.content(alice) == WHOLE
    actor.do(f"fd = os.open(m, os.O_RDWR); os.pwrite(fd, b'FROM', 0); os.truncate(m, {len(HALF)})")
    assert mail.content(alice) == HALF.replace(b"From", b"FROM")


def test_rename_over(mail: Place, alice: User) -> None:
    """What the process itself has appended before is part of what it knows: not kept behind its save again."""
    actor = locker(mail, alice)
    actor.do(f"append(m, {WHOLE!r}); get(m); {OPEN}os.write(fd, {WHOLE!r})")
    actor.do(f"put(m + '.new', {WHOLE * 2!r}, mode=0o660); os.rename(m + '.new', m)")
    assert mail.content(alice) == WHOLE * 2
    actor.do("os.close(fd)")
    assert mail.content(alice) == WHOLE * 2


def test_removal(mail: Place, alice: User) -> None:
    """What its remover had written goes with it; closing it later does not bring it back."""
    actor = locker(mail, alice)
    actor.do(f"append(m, {HALF!r}); {OPEN}os.write(fd, {REST!r}); os.unlink(m)")
    assert not (mail.spool / alice.name).exists()
    actor.do("os.close(fd)")
    assert actor.errno("os.stat(m)") == errno.ENOENT
    assert not (mail.spool / alice.name).exists()


def test_rename_of_the_mailbox(mail: Place, alice: User) -> None:
    """An administrator moves it to another name: with what he had written."""
    actor = mail.crew.actor()
    actor.do(names_of(mail, alice))
    actor.do(f"append(m, {HALF!r}); {OPEN}os.write(fd, {REST!r}); os.rename(m, spool + '/old')")
    assert (mail.spool / "old").read_bytes() == WHOLE
    actor.do("os.close(fd)")
    assert (mail.spool / "old").read_bytes() == WHOLE
    assert not (mail.spool / alice.name).exists()
