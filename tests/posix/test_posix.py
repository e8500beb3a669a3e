"""The conformance checks, on a plain directory and on mailfs."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.posix import checks, mailboxes
from tests.support.mounts import MODES, Mount, make_spool
from tests.support.processes import ActorError, Crew

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.users import User

PREAMBLE = '''
def fails(call, number):
    try:
        call()
    except OSError as error:
        assert error.errno == number, f"errno {errno.errorcode.get(error.errno)}"
        return True
    return False

def in_child(body):
    """Run in a child process, which has no locks of ours."""
    child = os.fork()
    if child == 0:
        try:
            body()
        except BaseException as error:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, "the child failed; see stderr"
'''


class Ground:
    """Where the checks run: one spool for all of them."""

    def __init__(self, where: Path, spool: Path, mount: Mount | None) -> None:
        self.dir = where
        self.spool = spool
        self.mount = mount


@pytest.fixture(scope="module", params=["plain", pytest.param("mailfs", marks=pytest.mark.fuse)])
def ground(
    request: pytest.FixtureRequest, machine: Path, people: dict[str, User]
) -> Iterator[Ground]:
    where = machine / f"posix-{request.param}"
    where.mkdir(mode=0o755)
    spool = make_spool(where, MODES[0], people.values())
    for user in people.values():  # as an administrator gives users a directory for their folders
        (spool / f"{user.name}-folders").mkdir(mode=0o700)
        shutil.chown(spool / f"{user.name}-folders", user.uid, user.gid)
    if request.param == "plain":
        yield Ground(spool, spool, None)
        return
    mount = Mount.start(where, spool)
    try:
        yield Ground(mount.dir, spool, mount)
    finally:
        complaints = mount.stop()
    assert not complaints, "\n".join(complaints)


def run_check(ground: Ground, crew: Crew, user: User, code: str) -> None:
    """Run one check as a user; a failure tells the daemon's side too."""
    actor = crew.actor(user)
    actor.do(PREAMBLE)
    try:
        actor.do(code, limit=40)
    except (AssertionError, ActorError, OSError) as error:
        story = ground.mount.story() if ground.mount else ""
        pytest.fail(f"{error}\n{story}", pytrace=False)


@pytest.mark.parametrize("name", checks.CHECKS)
def test_directory(ground: Ground, crew: Crew, alice: User, name: str) -> None:
    directory = ground.dir / f"{alice.name}-folders" / name
    crew.ok(["mkdir", directory], user=alice)
    run_check(ground, crew, alice, f"d = {os.fspath(directory)!r}\n{checks.CHECKS[name]}")


@pytest.mark.parametrize("name", mailboxes.CHECKS)
def test_mailbox(ground: Ground, crew: Crew, bob: User, name: str) -> None:
    check_mailbox(ground, crew, bob, mailboxes.CHECKS[name])


SHARED_MAPPINGS = """
import mmap
append(m, b"From a\\n\\none\\n\\n")
fd = os.open(m, os.O_RDWR)
for prot in (mmap.PROT_READ, mmap.PROT_READ | mmap.PROT_WRITE):
    with mmap.mmap(fd, 0, flags=mmap.MAP_SHARED, prot=prot) as mapped:
        assert mapped[:] == b"From a\\n\\none\\n\\n"
mapped = mmap.mmap(fd, 0)
mapped[8:11] = b"ONE"
assert os.pread(fd, 99, 0) == get(m) == b"From a\\n\\nONE\\n\\n"
os.close(fd)
"""


def test_a_mailbox_can_be_mapped_shared(ground: Ground, crew: Crew, bob: User) -> None:
    """Without passthrough the kernel refuses it (fuse_file_mmap in fs/fuse/file.c); see tests/mount."""
    check_mailbox(ground, crew, bob, SHARED_MAPPINGS)


def check_mailbox(ground: Ground, crew: Crew, user: User, code: str) -> None:
    """Run one check on a user's emptied mailbox."""
    backing = ground.spool / user.name
    os.truncate(backing, 0)  # not O_CREAT: fs.protected_regular forbids it even to root
    shutil.chown(backing, user.uid, "mail")
    backing.chmod(0o660)
    mailbox = ground.dir / user.name
    run_check(ground, crew, user, f"m = {os.fspath(mailbox)!r}\n{code}")
