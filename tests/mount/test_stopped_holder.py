"""A holder that is stopped with half its rewrite done, loses its lock, and goes on: it changes nothing (P7, 4.5).

test_errnos.py has the same for an append; here the holder is in the midst of a rewrite, the case in which it would
write over what the new holder has written.
"""

from __future__ import annotations

import errno
import signal
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_errnos import LEASE, expect
from tests.mount.test_exclusion import free
from tests.mount.test_lockfile import locker
from tests.mount.work import fill
from tests.support.mbox import message, names
from tests.support.processes import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.mounts import Place
    from tests.support.users import User

NEW = message("new", 0)
HALF = {
    "over": "os.pwrite(fd, text[at:][:300], 0)",
    "cut": "os.ftruncate(fd, 0); os.pwrite(fd, text[at:][:300], 0)",
}
LATE = {
    "write": "os.pwrite(fd, text[at:][300:], 300)",
    "append": "os.lseek(fd, 0, os.SEEK_END); os.write(fd, b'late')",
    "ftruncate": "os.ftruncate(fd, len(text) - at)",
    "truncate": "os.truncate(m, 0)",
    "close": "os.close(fd)",
    "save": "os.open(m, os.O_WRONLY | os.O_TRUNC)",
    "rename": "put(m + '.new', b'late', mode=0o660); os.rename(m + '.new', m)",
}


@pytest.mark.parametrize("half", HALF)
@pytest.mark.parametrize("protocol", ["dotlock", "flock", "fcntl"])
def test_a_stopped_rewriter(
    mounting: Callable[..., Place], alice: User, protocol: str, half: str
) -> None:
    mail = mounting(LEASE)
    assert mail.mailfs
    mail.mailfs.announce("lock taken from")
    mail.mailfs.announce("commit at last close failed: the agent lost its lock")
    wanted = fill(mail, alice)
    holder, other = locker(mail, alice), locker(mail, alice)
    holder.do(f"lock({protocol!r}, m); fd = os.open(m, os.O_RDWR); text = os.read(fd, 1 << 20)")
    holder.do("at = text.index(b'\\nFrom ') + 1; " + HALF[half])
    holder.process.send_signal(signal.SIGSTOP)
    other.start(f"lock({'flock' if protocol != 'flock' else 'ofd'!r}, m, wait=True)")
    other.result(4.0)
    other.do(f"get(m); append(m, {NEW!r})")
    wanted.append("new-0")
    mail.holds(alice, wanted)
    before = mail.content(alice)
    holder.process.send_signal(signal.SIGCONT)
    for name, call in LATE.items():
        found = holder.errno(call)
        if name == "close" and protocol != "dotlock":
            assert found in (0, errno.ESTALE), (
                found
            )  # the lock's own descriptor is another one: the log tells
        else:
            assert found == errno.ESTALE, f"{name}: {found}"
        assert mail.content(alice) == before, name
    if protocol == "dotlock":
        expect(holder, "os.unlink(l)", errno.ENOENT)
    else:
        holder.do(f"unlock({protocol!r}, m)")
    third = locker(mail, alice)
    assert not free(third, mail.path(alice)), "the new holder's lock went"
    assert third.do("os.path.exists(l)")
    other.do("unlock('flock', m)" if protocol != "flock" else "unlock('ofd', m)")
    until(lambda: free(third, mail.path(alice)), 2.0, "free at last")
    mail.holds(alice, [*names("old", 3), "new-0"])
    assert mail.content(alice) == before == mail.seen(alice)
