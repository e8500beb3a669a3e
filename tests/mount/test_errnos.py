"""Every row of the errno table that a client can reach, reached on a real mount (design 6).

A test says which causes it reaches; the last one compares them with the table.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from mailfs.errors import Cause
from tests.mount.test_exclusion import free, taken
from tests.mount.test_lockfile import locker, names_of
from tests.support.mounts import MODES, Place, make_spool
from tests.support.processes import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.processes import Actor
    from tests.support.users import User

MAIL = b"From a\n\nfirst\n\n"
MORE = b"From b\n\nsecond\n\n"

UNREACHABLE = {
    Cause.WAIT_LIMIT: "a commit that waited too long is deferred, and its writer told of success",
    Cause.NO_SUCH_NAME: "the kernel looks names up before it asks to remove them; left to a race",
    Cause.QUOTA: "root, as which the daemon runs here, has no quota (dquot_initialize, fs/quota)",
}
LEASE = "locks.lease=1,locks.implicit_hold=0"
"""An unlocked writer's claim would outlast so short a lease."""
_reached: set[Cause] = set()


def reaches(*causes: Cause) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Note which rows a test is about."""
    _reached.update(causes)
    return lambda test: test


def named(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def expect(actor: Actor, code: str, number: int, limit: float = 10.0) -> None:
    """Run code that must fail with an errno."""
    found = actor.errno(code, limit)
    assert named(found) == named(number), code


@pytest.fixture
def small(machine: Path, people: dict[str, User]) -> Iterator[Path]:
    """A spool on a file system of its own, of a megabyte and few inodes."""
    where = machine / "small"
    where.mkdir()
    options = "size=1m,nr_inodes=64,mode=0755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", where], timeout=10, check=True)
    try:
        yield make_spool(where, MODES[1], [people[letter] for letter in "abc"])
    finally:
        subprocess.run(["umount", "-l", where], timeout=10, check=True)
        where.rmdir()


# --- locks ----------------------------------------------------------------------------------------


@reaches(Cause.LOCK_HELD)
@pytest.mark.parametrize("protocol", ["flock", "fcntl", "dotlock"])
def test_held(mail: Place, alice: User, protocol: str) -> None:
    holder, other = locker(mail, alice), locker(mail, alice)
    holder.do(f"append(m, {MAIL!r}); lock({protocol!r}, m)")
    other.do(f"get(m); put(m + '.new', {MORE!r}, mode=0o660); fd = os.open(m, os.O_RDWR)")
    expect(other, "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)", errno.EWOULDBLOCK)
    expect(other, "fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)", errno.EWOULDBLOCK)
    expect(other, "fcntl_lock(fd, fcntl.F_WRLCK)", errno.EAGAIN)
    expect(other, "fcntl_lock(fd, fcntl.F_RDLCK, F_OFD_SETLK)", errno.EAGAIN)
    expect(other, "lock('dotlock', m)", errno.EEXIST)
    expect(other, "lock('dotlock-link', m)", errno.EEXIST)
    expect(other, "os.mknod(l)", errno.EEXIST)
    expect(other, "os.rename(m + '.new', l)", errno.EEXIST)
    expect(other, "os.rename(m + '.new', m)", errno.EAGAIN)
    expect(other, "os.unlink(m)", errno.EAGAIN)
    assert mail.content(alice) == MAIL


@reaches(Cause.DEADLOCK)
def test_deadlock(mail: Place, alice: User, bob: User) -> None:
    """fcntl(2): EDEADLK for the request that would close the circle, and nobody loses anything."""
    first, second = mail.crew.actor(), mail.crew.actor()
    a, b = mail.path(alice), mail.path(bob)
    first.do(f"lock('fcntl', {a!r})")
    second.do(f"lock('fcntl', {b!r})")
    second.start(f"lock('fcntl', {a!r}, wait=True)")
    assert second.busy(0.3)
    expect(first, f"lock('fcntl', {b!r}, wait=True)", errno.EDEADLK)
    assert second.busy()
    first.do(f"unlock('fcntl', {a!r})")
    second.result(1.0)


@reaches(Cause.TOO_MANY_WAITERS)
@pytest.mark.parametrize("protocol", ["flock", "fcntl"])
@pytest.mark.parametrize("limit", ["of-a-user", "of-all"])
def test_too_many_waiters(
    mounting: Callable[..., Place], alice: User, bob: User, protocol: str, limit: str
) -> None:
    in_all = 2 if limit == "of-all" else 1000
    mail = mounting(f"locks.max_waiters_per_uid=2,locks.max_waiters={in_all}")
    path = mail.path(alice)
    (mail.spool / alice.name).chmod(0o666)
    holder, *waiters = (mail.crew.actor(alice) for _ in range(3))
    holder.do(f"lock({protocol!r}, {path!r})")
    for waiter in waiters:
        waiter.start(f"lock({protocol!r}, {path!r}, wait=True)")
        assert waiter.busy(0.2)
    expect(mail.crew.actor(alice), f"lock({protocol!r}, {path!r}, wait=True)", errno.ENOLCK)
    stranger = mail.crew.actor(bob)
    if limit == "of-all":
        expect(stranger, f"lock({protocol!r}, {path!r}, wait=True)", errno.ENOLCK)
    else:
        stranger.start(f"lock({protocol!r}, {path!r}, wait=True)")
        assert stranger.busy(0.2), "another's limit is not mine"
    assert taken(mail.crew.actor(bob), "flock", mail.path(bob)), "who need not wait is not refused"


@reaches(Cause.TOO_MANY_WAITERS, Cause.DEADLOCK)
def test_the_same_for_files_that_are_not_mailboxes(
    mounting: Callable[..., Place], alice: User
) -> None:
    mail = mounting("locks.max_waiters_per_uid=1")
    mail.crew.ok(["mkdir", mail.dir / "folders"])
    mail.crew.ok(["chown", alice.name, mail.dir / "folders"])
    a, b = (str(mail.dir / "folders" / name) for name in "ab")
    first, second, third = (mail.crew.actor(alice) for _ in range(3))
    first.do(f"put({a!r}); put({b!r}); lock('fcntl', {a!r})")
    second.do(f"lock('fcntl', {b!r})")
    expect(second, f"lock('fcntl', {a!r})", errno.EAGAIN)
    second.start(f"lock('fcntl', {a!r}, wait=True)")
    assert second.busy(0.2)
    expect(first, f"lock('fcntl', {b!r}, wait=True)", errno.EDEADLK)
    expect(third, f"lock('flock', {a!r}); lock('ofd', {a!r}, wait=True)", errno.ENOLCK)


@reaches(Cause.INTERRUPTED)
@pytest.mark.parametrize(
    "call",
    [
        "_libc.flock(fd, fcntl.LOCK_EX)",
        "_libc.fcntl(fd, fcntl.F_SETLKW, _region(fcntl.F_WRLCK))",
        "_libc.fcntl(fd, F_OFD_SETLKW, _region(fcntl.F_WRLCK))",
    ],
    ids=["flock", "fcntl", "ofd"],
)
def test_interrupted(mail: Place, alice: User, call: str) -> None:
    """The C library's call, as Python's repeats itself (PEP 475)."""
    holder, waiter = locker(mail, alice), locker(mail, alice)
    holder.do("lock('dotlock', m)")
    waiter.do("signal.signal(signal.SIGALRM, lambda *_: None); fd = os.open(m, os.O_RDWR)")
    waiter.do("signal.setitimer(signal.ITIMER_REAL, 0.3)")
    assert waiter.do(f"({call}, ctypes.get_errno())", 2.0) == (-1, errno.EINTR)


# --- lock files -----------------------------------------------------------------------------------


@reaches(Cause.NOT_OWNER, Cause.NAME_TAKEN)
def test_a_lock_file_of_somebody_else(mail: Place, alice: User) -> None:
    """Another program of the same user: the mode bits would let it, the lock's rules do not."""
    holder, other = locker(mail, alice), locker(mail, alice)
    holder.do("lock('dotlock', m)")
    expect(other, "os.unlink(l)", errno.EACCES)
    expect(other, "os.rename(l, spool + '/mine')", errno.EACCES)
    expect(other, "os.chmod(l, 0)", errno.EACCES)
    expect(other, "os.utime(l, (1, 1))", errno.EACCES)
    expect(other, "os.open(l, os.O_WRONLY)", errno.EEXIST)
    expect(other, "os.open(l, os.O_WRONLY | os.O_TRUNC)", errno.EEXIST)
    holder.do("unlock('dotlock', m)")


@reaches(Cause.NOT_ALLOWED)
def test_who_may_not_lock(mail: Place, alice: User, bob: User) -> None:
    stranger = mail.crew.actor(bob)
    stranger.do(names_of(mail, alice))
    expect(stranger, "lock('dotlock', m)", errno.EACCES)
    expect(stranger, "lock('dotlock-link', m)", errno.EACCES)
    expect(stranger, "os.mknod(l)", errno.EACCES)


@reaches(Cause.NO_SUCH_LOCK)
@pytest.mark.parametrize("thief", ["dotlock", "flock", "nobody"])
def test_a_lock_file_one_has_lost(mounting: Callable[..., Place], alice: User, thief: str) -> None:
    """Revoked while others waited: the late unlink says so, and leaves their lock alone (P7)."""
    mail = mounting(LEASE)
    holder, waiter = locker(mail, alice), locker(mail, alice)
    holder.do("lock('dotlock', m)")
    waiter.start("lock('flock', m, wait=True)")
    waiter.result(3.0)
    assert mail.mailfs
    mail.mailfs.announce("lock taken from")
    if thief != "flock":
        waiter.do("unlock('flock', m)")
    if thief == "dotlock":
        waiter.do("lock('dotlock', m)")
    expect(holder, "os.unlink(l)", errno.ENOENT)
    if thief != "nobody":
        assert not free(locker(mail, alice), mail.path(alice)), "the new holder's lock went"
        assert waiter.do("os.path.exists(l)") is (thief == "dotlock")


@reaches(Cause.BUDGET)
def test_a_lock_file_at_the_limit_of_open_files(
    mounting: Callable[..., Place], alice: User
) -> None:
    """EEXIST, and what could not be opened does not stay locked."""
    mail = mounting("policy.open_files=16")
    greedy, other = locker(mail, alice), mail.crew.actor()
    greedy.do("fds = [os.open(m, os.O_RDONLY) for _ in range(16)]")
    expect(greedy, "os.open(m, os.O_RDONLY)", errno.ENOSPC)
    expect(greedy, "lock('dotlock', m)", errno.EEXIST)
    assert free(other, mail.path(alice)), "refused, and yet locked"
    greedy.do("for fd in fds: os.close(fd)")
    until(lambda: taken(greedy, "dotlock", mail.path(alice)), 1.0, "locked")


# --- names and budgets ----------------------------------------------------------------------------


@reaches(Cause.NAME_RESERVED, Cause.NOT_ALLOWED, Cause.NOT_OWNER)
def test_names_and_mailboxes_of_others(mail: Place, alice: User, bob: User, newuser: User) -> None:
    stranger, owner = mail.crew.actor(bob), locker(mail, alice)
    stranger.do(names_of(mail, newuser))
    expect(stranger, "put(m)", errno.EACCES)
    expect(stranger, "put(spool + '/t'); os.rename(spool + '/t', m)", errno.EACCES)
    stranger.do(names_of(mail, alice))
    expect(stranger, "os.unlink(m)", errno.EPERM)
    expect(stranger, "os.rename(spool + '/t', m)", errno.EACCES)
    expect(stranger, "put(m)", errno.EEXIST)
    expect(owner, "os.link(m, spool + '/again')", errno.EPERM)
    expect(owner, "os.mkdir(spool + '/folder')", errno.EPERM)
    expect(owner, "os.mkfifo(spool + '/pipe')", errno.EPERM)


@reaches(Cause.BUDGET)
def test_budgets_of_scratch_files(mounting: Callable[..., Place], alice: User, bob: User) -> None:
    mail = mounting("policy.scratch_files=2", "policy.scratch_bytes=4096")
    one, other = locker(mail, alice), mail.crew.actor(bob)
    one.do("put(spool + '/.t1'); put(spool + '/.t2')")
    expect(one, "put(spool + '/.t3')", errno.ENOSPC)
    assert taken(one, "dotlock", mail.path(alice)), "a lock file is no scratch file"
    one.do("unlock('dotlock', m); os.unlink(spool + '/.t1'); put(spool + '/.t3')")
    expect(one, "put(spool + '/.t3', b'x' * 4097, 0)", errno.ENOSPC)
    other.do(f"put({str(mail.dir)!r} + '/.t3', b'x' * 4096)")
    one.do(f"append(m, {MAIL!r})")
    until(lambda: mail.content(alice) == MAIL, 2.0, "a mailbox is no scratch file")


# --- saves ----------------------------------------------------------------------------------------

SAVES = {
    "open-truncating": "os.open(m, os.O_WRONLY | os.O_TRUNC)",
    "rename-over": "put(m + '.new', b'From z\\n\\n', mode=0o660); os.rename(m + '.new', m)",
    "rewrite-in-place": "os.pwrite(fd, b'From z\\n\\n', 0)",
    "cut": "os.ftruncate(fd, 0)",
    "cut-by-name": "os.truncate(m, 0)",
}


@reaches(Cause.STALE)
@pytest.mark.parametrize("save", SAVES)
def test_a_save_over_a_rewrite_of_another(mail: Place, alice: User, save: str) -> None:
    """3.4: nothing of either side is lost; what is there now can be read and saved again."""
    one, other = locker(mail, alice), locker(mail, alice)
    other.do(f"append(m, {MAIL + MORE!r})")
    one.do("fd = os.open(m, os.O_RDWR); os.read(fd, 9999); get(m)")
    other.do(f"get(m); put(m, {MORE!r}, os.O_TRUNC)")
    until(lambda: mail.content(alice) == MORE, 2.0, "rewritten")
    expect(one, SAVES[save], errno.ESTALE)
    one.errno("os.close(fd)")
    time.sleep(0.2)
    assert mail.content(alice) == MORE == mail.seen(alice)
    assert one.do("get(m)") == MORE
    one.do(f"put(m, {MAIL!r}, os.O_TRUNC)")
    until(lambda: mail.content(alice) == MAIL, 2.0, "saved")


# --- fencing --------------------------------------------------------------------------------------


@reaches(Cause.FENCED)
@pytest.mark.parametrize("protocol", ["flock", "fcntl", "ofd", "dotlock"])
def test_a_stopped_holder(mounting: Callable[..., Place], alice: User, protocol: str) -> None:
    """Revoked after its lease, because somebody waits; resumed, it changes nothing (P7, 4.5)."""
    mail = mounting(LEASE)
    holder, waiter = locker(mail, alice), locker(mail, alice)
    holder.do(f"append(m, {MAIL!r}); lock({protocol!r}, m)")
    holder.do("fd = os.open(m, os.O_WRONLY | os.O_APPEND); os.write(fd, b'From half ')")
    holder.process.send_signal(signal.SIGSTOP)
    begin = time.monotonic()
    waiter.start("lock('flock', m, wait=True)")
    assert waiter.busy(0.5), "taken from it before its lease was over"
    waiter.result(3.0)
    assert mail.mailfs
    mail.mailfs.announce("lock taken from")
    assert time.monotonic() - begin < 2.0
    waiter.do(f"os.write(held['flock', m], b''); append(m, {MORE!r})")
    holder.process.send_signal(signal.SIGCONT)
    expect(holder, "os.write(fd, b'a message')", errno.ESTALE)
    if protocol == "dotlock":
        expect(holder, "os.unlink(l)", errno.ENOENT)
    else:
        holder.do(f"unlock({protocol!r}, m)")  # design 4.5: it succeeds without effect
    holder.errno("os.close(fd)")
    assert not free(locker(mail, alice), mail.path(alice)), "the new holder's lock went"
    waiter.do("unlock('flock', m)")
    until(lambda: mail.content(alice) == MAIL + MORE, 2.0, "the new holder's mail")
    time.sleep(0.2)
    assert mail.content(alice) == MAIL + MORE == mail.seen(alice)


@reaches(Cause.FENCED)
def test_fenced_until_it_locks_again(mounting: Callable[..., Place], alice: User) -> None:
    """It learns of it at its first write, at close at the latest; a new lock is a new beginning."""
    mail = mounting(LEASE)
    holder, waiter = locker(mail, alice), locker(mail, alice)
    holder.do("lock('dotlock', m); fd = os.open(m, os.O_WRONLY | os.O_APPEND)")
    holder.do(f"os.write(fd, {MORE!r})")
    waiter.start("lock('fcntl', m, wait=True)")
    waiter.result(3.0)
    assert mail.mailfs
    mail.mailfs.announce("lock taken from")
    waiter.do("unlock('fcntl', m)")
    expect(holder, "os.close(fd)", errno.ESTALE)
    expect(holder, f"append(m, {MORE!r})", errno.ESTALE)
    expect(holder, "os.open(m, os.O_WRONLY | os.O_TRUNC)", errno.ESTALE)
    assert mail.content(alice) == b""
    holder.do(f"lock('dotlock', m); append(m, {MAIL!r}); unlock('dotlock', m)")
    until(lambda: mail.content(alice) == MAIL, 2.0, "written under the new lock")


def test_a_holder_at_work_keeps_its_lock(mounting: Callable[..., Place], alice: User) -> None:
    """4.4: a lease runs out only if its agent leaves the mailbox alone."""
    mail = mounting(LEASE)
    holder, waiter = locker(mail, alice), locker(mail, alice)
    holder.do("lock('dotlock', m); fd = os.open(m, os.O_RDWR | os.O_APPEND)")
    waiter.start("lock('flock', m, wait=True)")
    for part in (b"From slow\n", b"\n", b"one\n", b"two\n", b"three\n", b"four\n", b"\n"):
        time.sleep(0.4)
        holder.do(f"os.write(fd, {part!r})")
    assert waiter.busy()
    holder.do("os.close(fd); unlock('dotlock', m)")
    waiter.result(1.0)
    assert mail.content(alice).startswith(b"From slow\n\none\n")


# --- the backing file system ----------------------------------------------------------------------


@reaches(Cause.NO_SPACE)
def test_a_full_spool(small: Path, mounting: Callable[..., Place], alice: User) -> None:
    """No inode for the backing lock: a kernel lock says so, a lock file never (design 6)."""
    mail = mounting(spool=small)
    one = locker(mail, alice)
    assert mail.mailfs
    mail.mailfs.announce("backing lock of .* No space left")
    assert free(one, mail.path(alice))
    filler = small.parent / "filler"
    filler.mkdir()
    with contextlib.suppress(OSError):
        for number in range(100):
            (filler / str(number)).touch()
    try:
        expect(one, "lock('dotlock', m)", errno.EEXIST)
        expect(one, "lock('flock', m)", errno.ENOSPC)
        expect(one, "lock('fcntl', m)", errno.ENOSPC)
        expect(one, "put(spool + '/.scratch')", errno.ENOSPC)
    finally:
        for path in filler.iterdir():
            path.unlink()
    assert free(one, mail.path(alice))


@reaches(Cause.IO)
def test_a_failing_spool(mounting: Callable[..., Place], alice: User) -> None:
    """No lock file can be made in the real directory: EIO, but EEXIST for a lock file."""
    mail = mounting()
    one = locker(mail, alice)
    assert mail.mailfs
    mail.mailfs.announce("backing lock of .* Operation not permitted")
    subprocess.run(["chattr", "+i", mail.spool], timeout=10, check=True)
    try:
        expect(one, "lock('dotlock', m)", errno.EEXIST)
        expect(one, "lock('flock', m)", errno.EIO)
        expect(one, "lock('fcntl', m)", errno.EIO)
    finally:
        subprocess.run(["chattr", "-i", mail.spool], timeout=10, check=True)
    assert free(one, mail.path(alice))


def test_every_cause_is_reached_or_cannot_be() -> None:
    assert _reached.isdisjoint(UNREACHABLE)
    assert _reached | set(UNREACHABLE) == set(Cause)
