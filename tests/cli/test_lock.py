"""`mailfs lock`: a mailbox is held exactly as long as a command runs, with a mount and without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from mailfs.daemon.errors import Exit
from tests.cli.commands import mailfs
from tests.conftest import fresh_spool, mounted
from tests.mount.test_exclusion import free, taken
from tests.mount.work import NEW, settled
from tests.support.mbox import message
from tests.support.mounts import MODES, Place
from tests.support.processes import Crew, until
from tests.support.users import ROOT

if TYPE_CHECKING:
    import pathlib

    from tests.support.processes import Actor
    from tests.support.users import User

pytestmark = pytest.mark.fuse

WAITS = "echo $$; read line; exit 3"
"""A command that says its pid, and ends when told to."""


class Holder:
    """`mailfs lock` with a command that waits."""

    def __init__(
        self,
        place: Place,
        name: str,
        *options: object,
        user: User = ROOT,
        script: str = WAITS,
    ) -> None:
        argv = mailfs(
            "lock", "--spool", place.dir, *options, name, "--", "sh", "-c", script, user=user
        )
        self.process = place.crew.start(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        assert self.process.stdout
        self.child = int(self.process.stdout.readline())

    def end(self) -> tuple[int, bytes]:
        """Tell the command to end; give our exit code and what was said."""
        output, _ = self.process.communicate(b"\n", timeout=15)
        return self.process.returncode, output

    def wait(self) -> int:
        """Wait for our end, which the command's input has nothing to do with."""
        return self.process.wait(15)


def run(place: Place, name: str, *command: object, user: User = ROOT, **how: Any) -> int:
    """Lock a mailbox for a command; gives the exit code."""
    argv = mailfs("lock", "--spool", place.dir, name, "--", *command, user=user)
    return place.crew.run(argv, **how).returncode


def test_everybody_is_kept_out_meanwhile(place: Place, alice: User) -> None:
    path = place.path(alice)
    other = place.crew.actor(alice)
    holder = Holder(place, alice.name, user=alice)
    for protocol in ("flock", "fcntl", "dotlock", "dotlock-link"):
        assert not taken(other, protocol, path), protocol
    for program in (
        ["dotlockfile", "-l", "-r", "0", f"{path}.lock"],
        ["lockfile", "-r", "0", f"{path}.lock"],
        ["flock", "-n", path, "true"],
        ["python3", "-c", f"import mailbox; mailbox.mbox({path!r}).lock()"],
    ):
        assert place.crew.run(program, user=alice).returncode != 0, program
    argv = mailfs("lock", "--spool", place.dir, "--timeout", "0.2", alice.name, "--", "true")
    late = place.crew.run(argv)
    assert (late.returncode, b"locked by somebody else" in late.stdout) == (Exit.TEMPFAIL, True)
    assert holder.end() == (3, b"")
    settled(place, alice, [])


def test_who_holds_the_mailbox_is_waited_for(place: Place, alice: User) -> None:
    actor = place.crew.actor(alice)
    for protocol in ("fcntl", "dotlock"):
        actor.do(f"lock({protocol!r}, {place.path(alice)!r})")
        argv = mailfs("lock", "--spool", place.dir, alice.name, "--", "true")
        waiting = place.crew.start(argv)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
        actor.do(f"unlock({protocol!r}, {place.path(alice)!r})")
        assert waiting.wait(15) == 0


def test_the_command_works_with_the_mailbox(place: Place, alice: User) -> None:
    script = f"cat >> {place.path(alice)}"
    assert run(place, alice.name, "sh", "-c", script, user=alice, content=NEW) == 0
    settled(place, alice, ["new-0"])


def test_in_a_mount_the_command_may_lock_it_too(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    script = f'flock "{path}" sh -c "cat >> {path}"'
    assert run(mail, alice.name, "sh", "-c", script, user=alice, content=NEW) == 0
    argv = mailfs("append", "--timeout", "5", path)
    assert run(mail, alice.name, *argv, content=message("second", 0)) == 0
    settled(mail, alice, ["new-0", "second-0"])


@pytest.fixture
def plain(machine: pathlib.Path, people: dict[str, User], crew: Crew) -> Place:
    """A spool without a mount."""
    spool = fresh_spool(machine, people, MODES[0])
    return Place(spool, spool, crew)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 255", 255), ("kill -9 $$", 137), ("kill $$", 143)]
)
def test_the_exit_code_is_the_commands(plain: Place, alice: User, script: str, code: int) -> None:
    assert run(plain, alice.name, "sh", "-c", script) == code
    assert free(plain.crew.actor(alice), plain.path(alice))


def test_other_exit_codes(plain: Place, alice: User, bob: User) -> None:
    for code, name, command, user in (
        (Exit.UNAVAILABLE, alice.name, ["/no/such/command"], ROOT),
        (Exit.UNAVAILABLE, alice.name, ["/"], ROOT),
        (Exit.NOINPUT, "nosuch", ["true"], ROOT),
        (Exit.NOPERM, bob.name, ["true"], alice),
        (Exit.USAGE, alice.name, [], ROOT),
        (Exit.USAGE, alice.name + ".lock", ["true"], ROOT),
    ):
        assert run(plain, name, *command, user=user) == code, (name, command)
    assert [entry.name for entry in plain.spool.iterdir() if ".lock" in entry.name] == []


def test_a_mailbox_that_does_not_exist(place: Place, alice: User, newuser: User) -> None:
    """Its lock file is all there is to lock; only its account and root may."""
    assert run(place, newuser.name, "true", user=alice) == Exit.NOPERM
    holder = Holder(place, newuser.name, user=newuser)
    actor = place.crew.actor(newuser)
    assert not taken(actor, "dotlock", place.path(newuser))
    assert holder.end() == (3, b"")
    assert taken(actor, "dotlock", place.path(newuser))
    actor.do(f"unlock('dotlock', {place.path(newuser)!r})")
    assert run(place, newuser.name, "true") == 0


def gone(pid: int) -> bool:
    """Whether there is no such process, or only its remains."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def test_a_time_limit(place: Place, alice: User) -> None:
    """The whole group ends, children included."""
    holder = Holder(place, alice.name, "--limit", "0.5", script="echo $$; sleep 60 & wait")
    assert holder.wait() == 128 + signal.SIGTERM
    until(lambda: gone(holder.child), 5, "the command is gone")
    assert free(place.crew.actor(alice), place.path(alice))


def test_a_command_that_does_not_end_is_killed(plain: Place, alice: User) -> None:
    script = "trap '' TERM; echo $$; while :; do sleep 0.1; done"
    holder = Holder(plain, alice.name, "--limit", "0.1", script=script)
    assert holder.wait() == 128 + signal.SIGKILL
    assert free(plain.crew.actor(alice), plain.path(alice))


def signalled(place: Place, user: User, number: int) -> None:
    name = signal.Signals(number).name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 9' {name}; echo $$; while :; do sleep 0.05; done"
    holder = Holder(place, user.name, script=script)
    holder.process.send_signal(number)
    output, _ = holder.process.communicate(timeout=15)
    assert holder.process.returncode == 9, output
    assert f"got {name}\n".encode() in output
    assert free(place.crew.actor(user), place.path(user))


def test_a_signal_reaches_the_command(place: Place, alice: User) -> None:
    signalled(place, alice, signal.SIGTERM)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_other_signals_do_too(plain: Place, alice: User, number: int) -> None:
    signalled(plain, alice, number)


def test_a_stopped_command_is_told_too(plain: Place, alice: User) -> None:
    holder = Holder(plain, alice.name)
    os.kill(holder.child, signal.SIGSTOP)
    holder.process.terminate()
    assert holder.wait() == 128 + signal.SIGTERM


def test_killed_while_it_holds(place: Place, alice: User) -> None:
    """In a mount the lock ends with us; without one the next who looks finds us dead."""
    holder = Holder(place, alice.name)
    holder.process.kill()
    holder.process.wait(10)
    try:
        if place.mailfs:
            actor = place.crew.actor(alice)
            until(lambda: free(actor, place.path(alice)), 5, "free")
        assert run(place, alice.name, "true") == 0
        settled(place, alice, [])
    finally:
        os.kill(holder.child, signal.SIGKILL)


def test_stopped_while_it_waits(place: Place, alice: User) -> None:
    holder = Holder(place, alice.name)
    argv = mailfs("lock", "--spool", place.dir, alice.name, "--", "true")
    waiting = place.crew.start(argv)
    until(lambda: turned_to(place, waiting.pid), 10, "waits")
    waiting.terminate()
    assert waiting.wait(10) == 128 + signal.SIGTERM
    assert holder.end() == (3, b"")
    assert free(place.crew.actor(alice), place.path(alice))


def turned_to(place: Place, pid: int) -> bool:
    """Whether a command waits for the lock: it looks at the spool, and its signals are blocked."""
    links = [f"/proc/{pid}/fd/{number}" for number in os.listdir(f"/proc/{pid}/fd")]
    return str(place.dir) in [os.readlink(link) for link in links if os.path.lexists(link)]


def test_a_lock_file_that_was_taken_away_is_told(plain: Place, alice: User) -> None:
    holder = Holder(plain, alice.name, script="echo $$; read line")
    (plain.spool / f"{alice.name}.lock").unlink()
    code, output = holder.end()
    assert (code, b"the lock was taken away" in output) == (Exit.TEMPFAIL, True)


def test_a_lock_that_was_revoked_is_told(
    request: pytest.FixtureRequest,
    machine: pathlib.Path,
    people: dict[str, User],
) -> None:
    alice = people["a"]
    spool = fresh_spool(machine, people, MODES[0])
    with mounted(request.node, spool, ["locks.lease=1"]) as place:
        assert place.mailfs
        place.mailfs.announce("lock taken from")
        holder = Holder(place, alice.name, script="echo $$; read line")
        other: Actor = place.crew.actor(alice)
        other.do(f"lock('flock', {place.path(alice)!r}, wait=True)", 10)
        code, output = holder.end()
        assert (code, b"the lock was taken away" in output) == (Exit.TEMPFAIL, True)
        assert not free(place.crew.actor(alice), place.path(alice))


def test_on_a_terminal_the_command_can_read_it(plain: Place, alice: User) -> None:
    """And Ctrl-C is its own business."""
    script = "trap 'echo interrupted; exit 8' INT; echo ready; read line; echo $line; while :; do sleep 0.1; done"
    base = [sys.executable, "-m", "mailfs", "lock", plain.path(alice), "--", "sh", "-c", script]
    terminal = plain.crew.terminal(base, user=ROOT, cwd=os.getcwd())
    terminal.wait_for("ready")
    terminal.send("hello\r")
    terminal.wait_for(r"hello\s+hello")
    terminal.send("\x03")
    terminal.wait_for("interrupted")
    assert terminal.finish() == 8
    assert free(plain.crew.actor(alice), plain.path(alice))
