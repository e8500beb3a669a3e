"""The virtual lock file: every habit of making one, and what a program may see of it (design 5)."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_exclusion import free, taken
from tests.support.processes import Actor, until

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User

# How programs make their lock (clients.md): code with ``m`` the mailbox, ``l`` its lock file,
# ``spool``, ``host``.
BY_CREATING = {
    "dovecot": "fd = os.open(l, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666); os.write(fd, b'1:h');"
    " made = os.fstat(fd); os.close(fd)",
    "postfix": "fd = os.open(l, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0); made = os.fstat(fd);"
    " os.close(fd)",
    "upas-without-excl": "fd = os.open(l, os.O_WRONLY | os.O_CREAT, 0o666); made = os.fstat(fd);"
    " os.close(fd)",
    "mknod": "os.mknod(l, 0o600 | stat.S_IFREG); made = os.lstat(l)",
}
BY_LINKING = {  # name of the temporary, flags, mode, content
    "mutt": ("'%s.%s.%d' % (name, host, pid)", "os.O_WRONLY | os.O_CREAT | os.O_EXCL", 0, b""),
    "alpine": (
        "'%s.lock.%d.%d.%s' % (name, now, pid, host)",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL",
        0o666,
        b"",
    ),
    "s-nail": (
        "name + '.lock3A1DLWbkGKvBlKb_' + host",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_SYNC",
        0o644,
        b"",
    ),
    "procmail": (
        "'_EGF.DciArB.' + host",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL",
        0o400,
        b"0",
    ),
    "dotlockfile": (
        "'.lk%05da%s' % (pid, host)",
        "os.O_WRONLY | os.O_CREAT | os.O_EXCL",
        0o644,
        b"0\n",
    ),
    "maildrop": ("'%d.0.%s' % (pid, host)", "os.O_WRONLY | os.O_CREAT", 0o644, b"123\n"),
    "lockmail": (
        "'%s.lock.%d.%d.%s' % (name, now, pid, host)",
        "os.O_WRONLY | os.O_CREAT",
        0o644,
        b"123:h",
    ),
    "python": (
        "'%s.lock.%d.%s.%d' % (name, now, host, pid)",
        "os.O_RDWR | os.O_CREAT | os.O_EXCL",
        0o666,
        b"",
    ),
    "255-bytes": ("'x' * 255", "os.O_WRONLY | os.O_CREAT | os.O_EXCL", 0o600, b"x"),
}


def names_of(place: Place, user: User) -> str:
    """Code that gives an actor the names used above."""
    return (
        f"m = {place.path(user)!r}; l = m + '.lock'; spool = {str(place.dir)!r};"
        f" name = {user.name!r}; host = os.uname().nodename; pid = os.getpid(); now = time.time()"
    )


def locker(place: Place, user: User) -> Actor:
    actor = place.crew.actor(user)
    actor.do(names_of(place, user))
    return actor


@pytest.mark.parametrize("habit", BY_CREATING)
def test_made_by_creating(place: Place, alice: User, habit: str) -> None:
    one, other = locker(place, alice), locker(place, alice)
    one.do(BY_CREATING[habit])
    assert one.do("made[:6] == os.lstat(l)[:6]"), "fstat and lstat differ: dovecot says stolen"
    assert one.do("stat.S_ISREG(made.st_mode) and made.st_nlink == 1")
    for again in BY_CREATING:
        if again != "upas-without-excl" or habit == "postfix":
            assert other.errno(BY_CREATING[again]) in (errno.EEXIST, errno.EACCES), again
    assert not taken(other, "dotlock-link", place.path(alice))
    assert one.do("os.unlink(l); os.path.exists(l)") is None
    until(lambda: taken(other, "dotlock", place.path(alice)), 1.0, "free afterwards")


@pytest.mark.parametrize("how", ["link", "rename"])
@pytest.mark.parametrize("habit", BY_LINKING)
def test_made_from_a_temporary(place: Place, alice: User, habit: str, how: str) -> None:
    temp, flags, mode, content = BY_LINKING[habit]
    one, other = locker(place, alice), locker(place, alice)
    one.do(f"t = spool + '/' + {temp}")
    one.do(f"fd = os.open(t, {flags}, {mode}); os.write(fd, {content!r}); a = os.fstat(fd)")
    one.do("os.close(fd); b = os.lstat(t)")
    assert one.do("a.st_ino == b.st_ino and a.st_nlink == b.st_nlink == 1")
    assert one.do("a.st_uid == os.getuid()")
    if how == "link":
        one.do("os.link(t, l)")
        assert one.do("os.stat(t).st_nlink") == 2, "mutt, alpine, maildrop ask this"
        assert one.do("os.lstat(t).st_ino == os.lstat(l).st_ino"), "dotlockfile asks this"
        one.do("os.unlink(t)")
    else:
        one.do("os.rename(t, l)")
    assert one.errno("os.lstat(t)") == errno.ENOENT
    assert one.do("os.lstat(l).st_nlink") == 1
    if mode & 0o400:
        assert one.do("get(l)") == content
    assert not taken(other, "dotlock-link", place.path(alice))
    assert not taken(other, "dotlock", place.path(alice))
    one.do("os.unlink(l)")
    until(lambda: taken(other, "dotlock-link", place.path(alice)), 1.0, "free afterwards")


def test_a_temporary_is_linked_again_and_again(place: Place, alice: User) -> None:
    """dotlockfile keeps one temporary over all its tries."""
    one, other = locker(place, alice), locker(place, alice)
    other.do("lock('dotlock', m)")
    one.do("t = spool + '/.lk12345ah'; put(t, b'0\\n')")
    for _ in range(3):
        assert one.errno("os.link(t, l)") == errno.EEXIST
        assert one.do("os.stat(t).st_nlink") == 1
    other.do("unlock('dotlock', m)")
    until(lambda: one.errno("os.link(t, l)") == 0, 1.0, "got it")
    assert one.do("os.stat(t).st_nlink") == 2
    one.do("os.unlink(t); os.unlink(l)")


def test_times_are_always_now_for_others(mail: Place, alice: User) -> None:
    """A live lock never looks stale, whatever its holder did to it (P5)."""
    one, other = locker(mail, alice), locker(mail, alice)
    one.do("lock('dotlock-link', m); os.utime(l, (1000, 1000))")
    time.sleep(1.1)
    asked = int(time.time())
    for times in other.do("[os.lstat(l)[7:], os.stat(l)[7:]]"):
        assert all(asked <= value <= time.time() for value in times[1:]), times
    assert one.do("os.lstat(l).st_mtime") == 1000, "its maker sees what it set"


def test_chmod_and_chown_by_the_holder_harm_nobody(mail: Place, alice: User) -> None:
    one, other = locker(mail, alice), locker(mail, alice)
    one.do("lock('dotlock', m); os.chmod(l, 0); os.chown(l, os.getuid(), os.getgid())")
    assert other.errno("os.open(l, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)") == errno.EEXIST
    assert other.errno("os.lstat(l)") == 0
    assert one.do("get(l) == b'%d' % os.getpid()")
    assert other.do("int(get(l))") == one.pid, "readable for those who look for a dead pid"
    one.do("os.unlink(l)")
    until(lambda: taken(other, "dotlock", mail.path(alice)), 1.0, "free")


def test_content_can_be_rewritten_by_the_holder(mail: Place, alice: User) -> None:
    one, other = locker(mail, alice), locker(mail, alice)
    one.do("lock('dotlock', m); put(l, b'another content', os.O_TRUNC)")
    assert one.do("get(l)") == b"another content" == other.do("get(l)")
    assert other.do("os.stat(l).st_size") == 15


def test_flock_on_a_live_lock_file(mail: Place, alice: User) -> None:
    """c-client v3 takes a lock file that it can flock() for stale (P5)."""
    one, other = locker(mail, alice), locker(mail, alice)
    one.do("lock('dotlock', m)")
    other.do("fd = os.open(l, os.O_RDONLY)")
    for how in ("LOCK_EX", "LOCK_SH"):
        code = f"fcntl.flock(fd, fcntl.{how} | fcntl.LOCK_NB)"
        assert other.errno(code) == errno.EWOULDBLOCK
    assert one.errno("fd = os.open(l, os.O_RDONLY); fcntl.flock(fd, 6); os.close(fd)") == 0


@pytest.mark.parametrize(
    ("attempt", "code"),
    [
        ("unlink", "os.unlink(l)"),
        ("rename-away", "os.rename(l, spool + '/mine')"),
        ("rename-over", "put(spool + '/t', b''); os.rename(spool + '/t', l)"),
    ],
)
def test_a_live_lock_is_not_taken_away(
    mail: Place, alice: User, bob: User, attempt: str, code: str
) -> None:
    """By another program of the same user, or by a stranger: EACCES for a removal (4.5), EEXIST
    for a theft.
    """
    one, same, other = locker(mail, alice), locker(mail, alice), mail.crew.actor(bob)
    other.do(names_of(mail, alice))
    one.do("lock('dotlock', m)")
    refused = (errno.EACCES, errno.EPERM, errno.EEXIST, errno.EBUSY)
    assert same.errno(code) in refused, attempt
    assert other.errno(code) in refused, attempt
    assert same.do("os.path.exists(l)")
    assert not free(same, mail.path(alice))
    one.do("os.unlink(l)")
    until(lambda: free(same, mail.path(alice)), 1.0, "free")


def test_rename_away_releases(mail: Place, alice: User) -> None:
    one, other = locker(mail, alice), locker(mail, alice)
    one.do("lock('dotlock', m); os.rename(l, m + '.lock.old')")
    until(lambda: taken(other, "dotlock", mail.path(alice)), 1.0, "free")


def test_it_is_listed_exactly_while_it_is_there(mail: Place, alice: User) -> None:
    one, other = locker(mail, alice), locker(mail, alice)
    listed = "name + '.lock' in os.listdir(spool)"
    assert not other.do(listed)
    one.do("lock('dotlock', m)")
    assert other.do(listed)
    one.do("unlock('dotlock', m)")
    assert not other.do(listed)
    assert other.errno("os.unlink(l)") == errno.ENOENT


@pytest.mark.parametrize("protocol", ["flock", "fcntl"])
def test_kernel_locks_show_as_a_lock_file(mail: Place, alice: User, protocol: str) -> None:
    """Seen by those it denies; its holder sees none and may make its own."""
    one, other = locker(mail, alice), locker(mail, alice)
    one.do(f"lock({protocol!r}, m)")
    assert other.do("os.path.exists(l)")
    assert not one.do("os.path.exists(l)")
    assert other.errno("os.unlink(l)") in (errno.EACCES, errno.EPERM)
    one.do(f"unlock({protocol!r}, m)")
    assert not other.do("os.path.exists(l)")


def test_a_lock_file_of_nothing_is_no_lock(mail: Place, alice: User, bob: User) -> None:
    """Where there is neither mailbox nor account, X.lock is a name like any other."""
    one, other = mail.crew.actor(alice), mail.crew.actor(bob)
    path = f"{str(mail.dir)!r} + '/nobody-has-this.lock'"
    one.do(f"put({path}, b'mine')")
    other.do(f"put({path}, b'also mine')")
    assert one.do(f"get({path})") == b"mine"
    one.do(f"os.unlink({path})")
    assert other.do(f"get({path})") == b"also mine"


def test_1000_rounds_of_three_users_on_the_same_names(
    mail: Place, alice: User, bob: User, carol: User
) -> None:
    """Names differ by caller and are never cached: nobody sees another's file (design 6)."""
    code = (
        f"t = {str(mail.dir)!r} + '/same-name'\n"
        "for i in range(1000):\n"
        "    put(t, b'%d' % os.getpid())\n"
        "    assert get(t) == b'%d' % os.getpid()\n"
        "    assert os.stat(t).st_uid == os.getuid()\n"
        "    os.unlink(t)\n"
        "    assert not os.path.exists(t)\n"
    )
    actors = [mail.crew.actor(user) for user in (alice, bob, carol)]
    for actor in actors:
        actor.start(code)
    for actor in actors:
        actor.result(50)
