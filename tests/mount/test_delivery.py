"""Programs that deliver, or lock for a shell script, do their normal job, on a plain spool and on
mailfs (clients.md).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.mount.work import NEW, fill, owned, settled
from tests.support.mbox import message
from tests.support.system import with_var_mail

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User


def test_procmail(place: Place, user: User) -> None:
    wanted = fill(place, user)
    path = place.path(user)
    rc = owned(user, "rc", f"DEFAULT={path}\nVERBOSE=yes\nLOGFILE={user.home}/log\n:0:\n{path}\n")
    place.crew.ok(["procmail", "-t", rc], user=user, content=NEW)
    log = (user.home / "log").read_text()
    assert "Lock failure" not in log, log
    settled(place, user, [*wanted, "new-0"])


def test_procmail_d(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = with_var_mail(place.dir, ["procmail", "-t", "-d", user.name])
    place.crew.ok(argv, content=NEW)
    settled(place, user, [*wanted, "new-0"])


def test_procmail_d_makes_a_mailbox(place: Place, newuser: User) -> None:
    """procmail(1): a new mailbox is made by link(2) from a temporary, as root."""
    argv = with_var_mail(place.dir, ["procmail", "-t", "-d", newuser.name])
    place.crew.ok(argv, content=NEW)
    settled(place, newuser, ["new-0"])


def test_maildrop(place: Place, user: User) -> None:
    wanted = fill(place, user)
    filters = owned(user, "filter", f'to "{place.path(user)}"\n')
    text = message("new", 0, envelope=False)
    place.crew.ok(["maildrop", filters], user=user, content=text)
    settled(place, user, [*wanted, "new-0"])


def test_maildrop_d(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = with_var_mail(place.dir, ["maildrop", "-d", user.name])
    place.crew.ok(argv, content=message("new", 0, envelope=False))
    settled(place, user, [*wanted, "new-0"])


def test_lockmail(place: Place, user: User) -> None:
    wanted = fill(place, user)
    path = place.path(user)
    place.crew.ok(
        ["lockmail", "-t", "10", path, "sh", "-c", f"cat >> {path}"], user=user, content=NEW
    )
    settled(place, user, [*wanted, "new-0"])


@pytest.mark.parametrize("tool", ["dotlockfile -l -r 1", "lockfile -r 1"])
def test_a_shell_script_that_locks(place: Place, user: User, tool: str) -> None:
    wanted = fill(place, user)
    path = place.path(user)
    script = f"{tool} {path}.lock && cat >> {path} && rm -f {path}.lock"
    place.crew.ok(["sh", "-c", script], user=user, content=NEW)
    settled(place, user, [*wanted, "new-0"])


def test_dotlockfile_of_ones_own_mailbox(place: Place, user: User) -> None:
    wanted = fill(place, user)
    script = f"dotlockfile -ml && cat >> /var/mail/{user.name} && dotlockfile -mu"
    argv = with_var_mail(place.dir, ["sh", "-c", script], user)
    place.crew.ok(argv, content=NEW, env={"USER": user.name, "HOME": str(user.home)})
    settled(place, user, [*wanted, "new-0"])


def test_dotlockfile_with_a_command(place: Place, user: User) -> None:
    wanted = fill(place, user)
    path = place.path(user)
    argv = ["dotlockfile", "-l", "-r", "1", f"{path}.lock", "sh", "-c", f"cat >> {path}"]
    place.crew.ok(argv, user=user, content=NEW)
    settled(place, user, [*wanted, "new-0"])
