"""Who may not write a mailbox can do nothing to it (design 6; P2, P3, P4, P14)."""

from __future__ import annotations

import errno
import stat
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_exclusion import free, taken
from tests.mount.test_lockfile import names_of
from tests.support.processes import Actor, until

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User

DENIED = (errno.EACCES, errno.EPERM)


@pytest.fixture
def stranger(mail: Place, alice: User, bob: User) -> Actor:
    """Bob, at alice's mailbox."""
    actor = mail.crew.actor(bob)
    actor.do(names_of(mail, alice))
    return actor


@pytest.mark.parametrize(
    "code",
    [
        "put(l)",
        "put(l, b'', os.O_CREAT)",
        "put(spool + '/t'); os.link(spool + '/t', l)",
        "put(spool + '/t'); os.rename(spool + '/t', l)",
        "os.mknod(l)",
        "os.symlink('/etc/passwd', l)",
        "os.mkdir(l)",
        "os.mkfifo(l)",
        "put(l); os.chmod(l, 0)",
    ],
)
def test_a_stranger_cannot_make_a_lock(
    mail: Place, alice: User, stranger: Actor, code: str
) -> None:
    assert stranger.errno(code) in DENIED
    owner = mail.crew.actor(alice)
    assert owner.do(f"os.path.exists({mail.path(alice) + '.lock'!r})") is False
    assert taken(owner, "dotlock", mail.path(alice))


@pytest.mark.parametrize(
    "code",
    [
        "os.open(m, os.O_RDONLY)",
        "os.open(m, os.O_WRONLY)",
        "os.open(m, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)",
        "os.truncate(m, 0)",
        "os.unlink(m)",
        "os.rename(m, spool + '/mine')",
        "put(spool + '/t'); os.rename(spool + '/t', m)",
        "os.chmod(m, 0o666)",
        "os.chown(m, os.getuid(), -1)",
        "os.utime(m, (1, 1))",
        "os.utime(m)",
        "os.setxattr(m, 'user.x', b'1')",
    ],
)
def test_a_stranger_cannot_touch_a_mailbox(
    mail: Place, alice: User, stranger: Actor, code: str
) -> None:
    owner = mail.crew.actor(alice)
    owner.do(f"append({mail.path(alice)!r}, b'From x\\n\\nx\\n\\n')")
    before = (mail.spool / alice.name).stat()
    assert stranger.errno(code) in DENIED
    after = (mail.spool / alice.name).stat()
    assert (before.st_ino, before.st_mtime_ns, before.st_mode, before.st_uid) == (
        (after.st_ino, after.st_mtime_ns, after.st_mode, after.st_uid)
    )
    assert mail.content(alice) == b"From x\n\nx\n\n"


def test_links_to_a_mailbox_are_refused(mail: Place, alice: User, stranger: Actor) -> None:
    owner = mail.crew.actor(alice)
    owner.do(names_of(mail, alice))
    for actor in (stranger, owner):
        assert actor.errno("os.link(m, spool + '/other-name')") in DENIED
        assert actor.errno("os.link(m, spool + '/.other-name')") in DENIED
    assert (mail.spool / alice.name).stat().st_nlink == 1


@pytest.mark.parametrize("protocol", ["flock", "flock-sh", "fcntl-r", "ofd"])
def test_a_lock_by_one_who_may_only_read_delays_nobody(
    mail: Place, alice: User, bob: User, protocol: str
) -> None:
    (mail.spool / alice.name).chmod(0o664)
    path = mail.path(alice)
    reader, owner = mail.crew.actor(bob), mail.crew.actor(alice)
    reader.do(f"fd = os.open({path!r}, os.O_RDONLY)")
    how = {
        "flock": "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "flock-sh": "fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)",
        "fcntl-r": "fcntl_lock(fd, fcntl.F_RDLCK)",
        "ofd": "fcntl_lock(fd, fcntl.F_RDLCK, F_OFD_SETLK)",
    }[protocol]
    reader.errno(how)  # whatever it is told, nobody is delayed
    for mine in ("flock", "fcntl", "dotlock"):
        assert taken(owner, mine, path), mine
        owner.do(f"unlock({mine!r}, {path!r})")
    owner.do(f"append({path!r}, b'From x\\n\\nx\\n\\n')")
    until(lambda: mail.content(alice), 1.0, "written")


def test_names_of_accounts_are_theirs(mail: Place, bob: User, newuser: User) -> None:
    """P4: nobody makes a mailbox or its lock before its owner does."""
    stranger = mail.crew.actor(bob)
    stranger.do(names_of(mail, newuser))
    for code in (
        "put(m)",
        "put(m, b'', os.O_CREAT)",
        "put(l)",
        "os.mkdir(m)",
        "os.symlink('/etc/passwd', m)",
        "os.mknod(m)",
        "put(spool + '/t', flags=os.O_CREAT); os.rename(spool + '/t', m)",
        "put(spool + '/t', flags=os.O_CREAT); os.link(spool + '/t', m)",
        "put(spool + '/t', flags=os.O_CREAT); os.link(spool + '/t', l)",
    ):
        assert stranger.errno(code) in DENIED, code
    owner = mail.crew.actor(newuser)
    path = mail.path(newuser)
    owner.do(f"lock('dotlock', {path!r})")
    owner.do(f"append({path!r}, b'From x\\n\\nx\\n\\n', create=True)")
    owner.do(f"unlock('dotlock', {path!r})")
    found = (mail.spool / newuser.name).stat()
    assert found.st_uid == newuser.uid
    assert mail.content(newuser) == b"From x\n\nx\n\n"


def test_a_mailbox_made_by_root_for_its_owner(mail: Place, newuser: User) -> None:
    """procmail -d and postfix make it under a temporary name, or at once, and give it away."""
    root = mail.crew.actor()
    root.do(names_of(mail, newuser))
    root.do(f"t = spool + '/_AbC.dEfGh.' + host; put(t); os.chown(t, {newuser.uid}, -1)")
    root.do("os.link(t, m); os.unlink(t)")
    assert (mail.spool / newuser.name).stat().st_uid == newuser.uid
    assert free(mail.crew.actor(newuser), mail.path(newuser))
    root.do("os.unlink(m)")
    assert not (mail.spool / newuser.name).exists()
    root.do(f"put(m, b'', mode=0o600); os.chown(m, {newuser.uid}, -1)")
    assert free(mail.crew.actor(newuser), mail.path(newuser))


def test_scratch_files_are_private(mail: Place, alice: User, bob: User) -> None:
    one, other, root = mail.crew.actor(alice), mail.crew.actor(bob), mail.crew.actor()
    for actor in (one, other, root):
        actor.do(f"spool = {str(mail.dir)!r}; t = spool + '/sedAbCdEf'")
    one.do("put(t, b'secret', mode=0o666)")
    assert other.errno("os.stat(t)") == errno.ENOENT
    assert other.do("'sedAbCdEf' in os.listdir(spool)") is False
    assert other.errno("put(t, b'own')") == 0, "squatting a temporary name works"
    assert one.do("get(t)") == b"secret"
    assert other.do("get(t)") == b"own"
    other.do("os.unlink(t)")
    assert one.do("get(t)") == b"secret"
    assert not any(p.name == "sedAbCdEf" for p in mail.spool.iterdir())
    one.do("os.unlink(t)")


def test_every_scratch_name_works(mail: Place, alice: User) -> None:
    actor = mail.crew.actor(alice)
    actor.do(names_of(mail, alice))
    for name in (
        *(f"{alice.name}{suffix}" for suffix in ("~", ".tmp", ".bak", ".lock.tmp", ".lock.lock")),
        *(f".{alice.name}{suffix}" for suffix in (".swp", ".swpx", ".swo", ".un~")),
        "4913", "sedabcdef", ".lk12345ahost", "_x.y.host", "tmp.1234", "a b", "-rf", "x" * 255,
    ):  # fmt: skip
        path = str(mail.dir / name)
        actor.do(f"put({path!r}, b'1'); put({path!r}, b'22', os.O_TRUNC)")
        assert actor.do(f"get({path!r})") == b"22", name
        assert actor.do(f"{name!r} in os.listdir(spool)"), name
        actor.do(f"os.rename({path!r}, {path[:-1] + 'Z'!r}); os.unlink({path[:-1] + 'Z'!r})")
        assert actor.errno(f"os.stat({path!r})") == errno.ENOENT
    left = {p.name for p in mail.spool.iterdir()} - {".mailfs"}
    assert len(left) == 3, left


def test_ours_is_not_theirs(mail: Place, alice: User) -> None:
    """What mailfs keeps in the backing spool is out of every user's reach."""
    assert (mail.spool / ".mailfs").stat().st_mode & 0o777 == 0o700
    actor = mail.crew.actor(alice)
    control = str(mail.dir / ".mailfs")
    assert actor.do(f"'.mailfs' in os.listdir({str(mail.dir)!r})") is False
    for code in (f"os.rmdir({control!r})", f"os.rename({control!r}, {control + 'x'!r})"):
        assert actor.errno(code) in (*DENIED, errno.ENOTEMPTY, errno.EBUSY, errno.ENOENT), code
    assert (mail.spool / ".mailfs").is_dir()
    actor.errno(f"put({control + '/x'!r})")
    assert not (mail.spool / ".mailfs" / "x").exists()


def test_an_access_control_list_decides_as_on_the_real_file(
    mail: Place, alice: User, bob: User
) -> None:
    """The mode of a file with a list shows its mask: taken for the group's rights it would let too many in."""
    real = mail.spool / alice.name
    mail.crew.ok(["chgrp", str(bob.gid), real])
    mail.crew.ok(["setfacl", "--set", "u::rw,g::r,o::-,u:daemon:rw,m::rw", real])
    assert stat.S_IMODE(real.stat().st_mode) & 0o020, "the mask"
    actor = mail.crew.actor(bob)
    path = mail.path(alice)
    assert actor.errno(f"os.open({path!r}, os.O_WRONLY)") == errno.EACCES
    assert (
        actor.errno(f"os.open({path + '.lock'!r}, os.O_CREAT | os.O_EXCL | os.O_WRONLY)")
        == errno.EACCES
    )
    assert actor.errno(f"os.close(os.open({path!r}, os.O_RDONLY))") == 0
