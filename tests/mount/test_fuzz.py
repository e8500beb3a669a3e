"""No sequence of client calls ends the daemon."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_exclusion import free
from tests.support.processes import until

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User

ORDINARY = (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK)
FUZZ = Path(__file__).with_name("fuzz_main.py").read_text()


@pytest.mark.parametrize("seed", ["first", "second"])
def test_random_calls_of_three_users(
    mail: Place, alice: User, bob: User, carol: User, seed: str
) -> None:
    assert mail.mailfs
    mail.mailfs.announce("was rewritten since")  # these users do overwrite what others have written
    victim = mail.crew.actor(carol)
    victim.do(f"append({mail.path(carol)!r}, b'From x\\n\\nx\\n\\n')")
    targets = f"{alice.name} {bob.name}"
    users = (alice, bob, alice)
    jobs = [
        mail.crew.python(FUZZ, str(mail.dir), targets, f"{seed}-{n}", "6", user=user)
        for n, user in enumerate(users)
    ]
    stranger = mail.crew.python(
        FUZZ, str(mail.dir), f"{carol.name} {bob.name}", seed, "6", user=bob
    )
    steps = mail.crew.finish([*jobs, stranger], 40)
    assert all(int(count) > 50 for count in steps), f"the mount was slow: {steps}"
    assert mail.mailfs.alive()
    assert mail.content(carol) == b"From x\n\nx\n\n"
    found = (mail.spool / carol.name).stat()
    assert (found.st_uid, found.st_nlink) == (carol.uid, 1)
    until(lambda: free(victim, mail.path(carol)), 2.0, "the bystander's mailbox is free")
    assert victim.errno(f"os.listdir({os.fspath(mail.dir)!r})") == 0
    strange = [
        path.name
        for path in mail.spool.iterdir()
        if path.name != ".mailfs" and stat.S_IFMT(path.lstat().st_mode) not in ORDINARY
    ]
    assert not strange, f"neither file nor directory in the backing spool: {strange}"


def test_a_flood_of_opens_and_scratch_files(mail: Place, alice: User, bob: User) -> None:
    """One user at its limits leaves the others alone (design 6, budgets)."""
    greedy, other = mail.crew.actor(alice), mail.crew.actor(bob)
    greedy.start(
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))\n"
        "count = 0\n"
        "try:\n"
        "    for count in range(3000):\n"
        f"        os.open({str(mail.dir)!r} + '/s%d' % count, os.O_CREAT | os.O_RDWR, 0o600)\n"
        "except OSError as error:\n"
        "    last = error.errno"
    )
    slowest = 0.0
    while greedy.busy(0.01):
        begin = time.monotonic()
        other.do(f"os.stat({mail.path(bob)!r})")
        slowest = max(slowest, time.monotonic() - begin)
    greedy.result(40)
    assert slowest < 0.5
    assert other.errno(f"put({str(mail.dir / 'mine')!r})") == 0
    greedy.kill(9)
    assert free(other, mail.path(bob))
