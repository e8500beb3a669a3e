"""Clients that end: while they wait, while they hold, in all the ways helper programs do."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_exclusion import free, taken
from tests.support.processes import kill_group, until

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGKILL]
AT_ONCE = 1.0  # seconds


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("protocol", ["flock", "flock-sh", "fcntl", "fcntl-r", "ofd"])
def test_a_signal_ends_a_waiter(
    mail: Place, alice: User, protocol: str, number: signal.Signals
) -> None:
    path = mail.path(alice)
    holder, waiter, third = (mail.crew.actor(alice) for _ in range(3))
    holder.do(f"lock('dotlock', {path!r})")
    waiter.start(f"lock({protocol!r}, {path!r}, wait=True)")
    assert waiter.busy(0.2)
    assert waiter.kill(number) < AT_ONCE
    assert waiter.process.returncode == -number
    holder.do(f"unlock('dotlock', {path!r})")
    until(lambda: free(third, path), AT_ONCE, "the dead waiter's place is not granted")


def test_a_handled_signal_interrupts_and_the_wait_goes_on(mail: Place, alice: User) -> None:
    """EINTR reaches the program's handler (Dovecot's alarm); Python then waits again (PEP 475)."""
    path = mail.path(alice)
    holder, waiter = mail.crew.actor(alice), mail.crew.actor(alice)
    holder.do(f"lock('flock', {path!r})")
    waiter.do("rung = []; signal.signal(signal.SIGALRM, lambda *_: rung.append(time.monotonic()))")
    waiter.do("begin = time.monotonic(); signal.setitimer(signal.ITIMER_REAL, 0.2)")
    waiter.start(f"lock('fcntl', {path!r}, wait=True)")
    assert waiter.busy(0.6)
    holder.do(f"unlock('flock', {path!r})")
    waiter.result(AT_ONCE)
    assert 0.1 < waiter.do("rung[0] - begin") < AT_ONCE


def test_a_stopped_waiter_goes_on(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    holder, waiter = mail.crew.actor(alice), mail.crew.actor(alice)
    holder.do(f"lock('flock', {path!r})")
    waiter.start(f"lock('flock', {path!r}, wait=True)")
    assert waiter.busy(0.2)
    waiter.process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    waiter.process.send_signal(signal.SIGCONT)
    assert waiter.busy(0.2)
    holder.do(f"unlock('flock', {path!r})")
    waiter.result(AT_ONCE)


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("protocol", ["flock", "fcntl", "ofd", "dotlock", "dotlock-link"])
def test_a_killed_holder_delays_nobody(
    mail: Place, alice: User, protocol: str, number: signal.Signals
) -> None:
    path = mail.path(alice)
    holder, waiter, poller = (mail.crew.actor(alice) for _ in range(3))
    holder.do(f"lock({protocol!r}, {path!r})")
    waiter.start(f"lock('fcntl', {path!r}, wait=True)")
    assert waiter.busy(0.2)
    holder.kill(number)
    waiter.result(AT_ONCE)
    waiter.do(f"unlock('fcntl', {path!r})")
    until(lambda: taken(poller, "dotlock", path), AT_ONCE, "free for a dotlock")


def test_a_holder_that_is_killed_in_the_middle_of_a_message(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    holder, other = mail.crew.actor(alice), mail.crew.actor(alice)
    holder.do(f"lock('dotlock', {path!r}); lock('fcntl', {path!r})")
    holder.do(f"os.write(held['fcntl', {path!r}], b'From half a mess')")
    holder.kill(signal.SIGKILL)
    until(lambda: free(other, path), AT_ONCE, "free")
    assert mail.content(alice) == b""
    assert mail.seen(alice) == b""


HELPER = """
child = os.fork()
if child == 0:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    lock('dotlock-link', path)
    os.write(told, b'x')
    os.read(orders, 1)
    unlock('dotlock', path)
    os.write(told, b'x')
    os._exit(0)
"""


def test_a_helper_that_lives_until_unlock(mail: Place, alice: User) -> None:
    """alpine with mlock, s-nail with s-nail-dotlock: the helper locks, its parent reads and
    writes.
    """
    path = mail.path(alice)
    parent, other = mail.crew.actor(alice), mail.crew.actor(alice)
    parent.do(f"path = {path!r}; fd = os.open(path, os.O_RDWR)")
    parent.do("(heard, told), (orders, order) = os.pipe(), os.pipe()")
    parent.do(HELPER)
    parent.do("os.read(heard, 1)")
    assert not free(other, path)
    parent.do("fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)")
    parent.do("fcntl_lock(fd, fcntl.F_WRLCK)")
    parent.do("os.write(fd, b'From x\\n\\nx\\n\\n'); fcntl.flock(fd, fcntl.LOCK_UN)")
    parent.do("fcntl_lock(fd, fcntl.F_UNLCK)")
    assert not free(other, path), "the helper still holds it"
    parent.do("os.write(order, b'x'); os.read(heard, 1); os.close(fd)")
    until(lambda: free(other, path), AT_ONCE, "unlocked by the helper")
    assert mail.content(alice) == b"From x\n\nx\n\n"


@pytest.mark.parametrize("victim", ["helper", "both"])
def test_a_killed_helper_delays_nobody(mail: Place, alice: User, victim: str) -> None:
    path = mail.path(alice)
    parent, other = mail.crew.actor(alice), mail.crew.actor(alice)
    parent.do(f"path = {path!r}; fd = os.open(path, os.O_RDWR)")
    parent.do("(heard, told), (orders, order) = os.pipe(), os.pipe()")
    parent.do(HELPER)
    parent.do("os.read(heard, 1)")
    assert not free(other, path)
    if victim == "both":
        kill_group(parent.process)
    else:
        parent.do("os.kill(child, signal.SIGKILL)")
    until(lambda: free(other, path), AT_ONCE, f"free after the end of {victim}")


@pytest.mark.parametrize("tool", ["dotlockfile -l -r 0", "lockfile -r 0"])
def test_a_tool_that_ends_leaves_the_lock_with_its_shell(
    mail: Place, alice: User, tool: str
) -> None:
    path = mail.path(alice)
    shell, second = mail.crew.shell(alice), mail.crew.shell(alice)
    other = mail.crew.actor(alice)
    assert shell.do(f"{tool} {path}.lock") == 0
    assert second.do(f"{tool} {path}.lock") != 0, "a second shell got it as well"
    time.sleep(0.5)
    assert not free(other, path), "the lock did not outlive its tool"
    assert shell.do(f"echo x >> {path}") == 0
    assert shell.do(f"rm {path}.lock") == 0, "the shell may unlock"
    until(lambda: free(other, path), AT_ONCE, "unlocked")
    assert shell.do(f"{tool} {path}.lock") == 0
    shell.process.kill()
    until(lambda: free(other, path), AT_ONCE, "freed with its shell")


def test_unlock_by_a_second_tool(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    shell, other = mail.crew.shell(alice), mail.crew.actor(alice)
    for _ in range(3):
        assert shell.do(f"sh -c 'dotlockfile -l -r 0 {path}.lock'") == 0
        assert not free(other, path)
        assert shell.do(f"sh -c 'dotlockfile -u {path}.lock'") == 0
        until(lambda: free(other, path), AT_ONCE, "unlocked")


def test_a_release_by_close_and_by_exit(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    holder, other = mail.crew.actor(alice), mail.crew.actor(alice)
    for protocol in ("flock", "fcntl", "ofd"):
        holder.do(f"lock({protocol!r}, {path!r}); os.close(held.pop(({protocol!r}, {path!r})))")
        until(lambda: free(other, path), AT_ONCE, f"{protocol} released by close")
    holder.do(f"lock('fcntl', {path!r}); os.close(os.open({path!r}, os.O_RDONLY))")
    until(lambda: free(other, path), AT_ONCE, "POSIX: any close drops the locks")
    holder.do(f"lock('flock', {path!r}); lock('fcntl', {path!r})")
    assert holder.process.stdin
    holder.process.stdin.close()
    assert holder.process.wait(5) == 0
    until(lambda: free(other, path), AT_ONCE, "released by exit")


def test_a_flock_lives_as_long_as_its_last_descriptor(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    holder, other = mail.crew.actor(alice), mail.crew.actor(alice)
    holder.do(f"lock('flock', {path!r}); (r, w) = os.pipe()")
    holder.do("child = os.fork()\nif child == 0:\n    os.close(w); os.read(r, 1); os._exit(0)")
    holder.do(f"os.close(held.pop(('flock', {path!r})))")
    time.sleep(0.3)
    assert taken(other, "flock", path) is False, "the child still has the descriptor"
    holder.do("os.close(w)")
    until(lambda: free(other, path), AT_ONCE, "free with the child's end")


CROWD = """
import fcntl, os, struct, sys, threading
path, count = sys.argv[1], int(sys.argv[2])
begun = threading.Semaphore(0)
def wait(number):
    fd = os.open(path, os.O_RDWR)
    begun.release()
    if number % 3 == 0:
        fcntl.flock(fd, fcntl.LOCK_EX)
    else:
        region = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        fcntl.fcntl(fd, fcntl.F_SETLKW if number % 3 == 1 else 38, region)
    os.close(fd)
threads = [threading.Thread(target=wait, args=(n,)) for n in range(count)]
for thread in threads: thread.start()
for thread in threads: begun.acquire()
print("begun", flush=True)
for thread in threads: thread.join()
"""

STAT = """
import os, sys, time
worst = 0
for _ in range(100):
    begin = time.perf_counter()
    os.stat(sys.argv[1])
    worst = max(worst, time.perf_counter() - begin)
    time.sleep(0.01)
print(worst)
"""


@pytest.mark.timeout(120)
def test_500_waiters_leave_another_mailbox_alone(mail: Place, alice: User, bob: User) -> None:
    path = mail.path(alice)
    holder, other = mail.crew.actor(alice), mail.crew.actor(alice)
    holder.do(f"lock('dotlock', {path!r})")
    crowd = [mail.crew.python(CROWD, path, "50", user=alice) for _ in range(10)]
    for process in crowd:
        assert process.stdout
        assert process.stdout.readline() == b"begun\n"
    time.sleep(0.5)
    (worst,) = mail.crew.finish([mail.crew.python(STAT, mail.path(bob), user=bob)], 20)
    assert float(worst) < 0.5
    assert taken(mail.crew.actor(bob), "dotlock", mail.path(bob))
    kill_group(crowd[0])
    assert crowd[0].wait(AT_ONCE) == -signal.SIGKILL
    holder.do(f"unlock('dotlock', {path!r})")
    mail.crew.finish(crowd[1:], 30)
    until(lambda: free(other, path), AT_ONCE, "free after all")


EXEC = """
import os, sys, fcntl
path, left, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
head = b"From x@y Thu Jan  1 00:00:00 2026\\nX-N: %s\\n" % f"{name}-{left}".encode()
os.write(fd, head)
os.write(fd, b"\\nbody\\n\\n")
if os.fork() == 0:
    own = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(own, fcntl.LOCK_EX if left % 2 else fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.lockf(own, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        pass
    os._exit(0)
if left:
    os.execv(sys.executable, [*sys.orig_argv[:4], path, str(left - 1), name])
os.close(fd)
while True:
    try:
        os.wait()
    except ChildProcessError:
        break
"""


@pytest.mark.timeout(120)
def test_execve_with_an_open_mailbox_never_stops_the_daemon(
    mail: Place, alice: User, bob: User
) -> None:
    """Design 2.2: the flush of a close-on-exec descriptor comes from inside execve."""
    rounds, path = 10, mail.path(alice)
    runners = [
        mail.crew.python(EXEC, path, str(rounds - 1), f"w{number}", user=alice)
        for number in range(20)
    ]
    (worst,) = mail.crew.finish([mail.crew.python(STAT, mail.path(bob), user=bob)], 20)
    assert float(worst) < 5.0
    mail.crew.finish(runners, 60)
    until(lambda: mail.content(alice).count(b"From ") == 20 * rounds, 5, "all messages")
    torn = [
        part[:60]
        for part in mail.content(alice).split(b"From x@y Thu Jan  1 00:00:00 2026\n")[1:]
        if not re.fullmatch(rb"X-N: w\d+-\d+\n\nbody\n\n", part)
    ]
    assert not torn, f"{len(torn)} of {20 * rounds} messages are torn: {torn}"
    found = [line[5:].decode() for line in mail.content(alice).split(b"\n") if line[:5] == b"X-N: "]
    assert sorted(found) == sorted(f"w{w}-{n}" for w in range(20) for n in range(rounds))


def test_a_killed_writer_leaves_no_half_message(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    writer = mail.crew.actor(alice)
    writer.do(f"append({path!r}, b'From one\\n\\n1\\n\\n')")
    writer.do(f"fd = os.open({path!r}, os.O_WRONLY | os.O_APPEND); os.write(fd, b'From half')")
    writer.kill(signal.SIGKILL)
    assert free(mail.crew.actor(alice), path)
    time.sleep(0.2)
    assert mail.content(alice) == b"From one\n\n1\n\n"


def test_the_daemon_lives_on_after_a_client_dies_in_every_call(mail: Place, alice: User) -> None:
    """A crowd that locks, writes and stats is killed at random moments, again and again."""
    code = (
        "import random\nwhile True:\n  try:\n"
        f"    path = {mail.path(alice)!r}\n"
        "    protocol = random.choice(['flock', 'fcntl', 'ofd', 'dotlock', 'dotlock-link'])\n"
        "    lock(protocol, path, wait=True); append(path, b'From x\\n\\n\\n'); get(path)\n"
        "    unlock(protocol, path)\n"
        "  except OSError as error:\n"
        "    assert error.errno in (17, 11, 2, 35, 4, 37, 116), error\n"
    )
    end = time.monotonic() + 6
    crowd = [mail.crew.actor(alice) for _ in range(6)]
    for actor in crowd:
        actor.start(code)
    turn = 0
    while time.monotonic() < end:
        victim = crowd[turn % len(crowd)]
        if victim.process.poll() is None and not victim.busy():
            pytest.fail(f"a client met an error: {victim.result()}")
        victim.kill(signal.SIGKILL)
        crowd[turn % len(crowd)] = fresh = mail.crew.actor(alice)
        fresh.start(code)
        turn += 1
        time.sleep(0.05 + (turn % 7) / 50)
    for actor in crowd:
        actor.kill(signal.SIGKILL)
    other = mail.crew.actor(alice)
    until(lambda: free(other, mail.path(alice)), 2.0, "free when all are dead")
    content = mail.content(alice)
    assert content == b"From x\n\n\n" * (len(content) // 9)
    assert mail.mailfs
    assert mail.mailfs.alive()
    assert other.errno(f"os.stat({os.fspath(mail.dir)!r} + '/nothing')") == errno.ENOENT
