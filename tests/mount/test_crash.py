"""The daemon is killed at every call that changes something in its spool, and in the middle of every write.

For each kind of operation N = 1, 2, … until it completes: the Nth call is not made, as the daemon is killed instead
(`tests/support/injection.py`). The state of the disk is then the one *after* call N - 1, so this is every state there
is, with all that clients were told until then. Writes are moreover cut in half. The next mount recovers; the mailbox
must be at a commit, none before those its clients were told of; and the mount after that finds nothing to do.
"""

from __future__ import annotations

import os
import re
import signal
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.conftest import fresh_spool
from tests.mount.operations import OPERATIONS
from tests.mount.trial import Trial
from tests.support.injection import Action
from tests.support.mounts import MODES
from tests.support.processes import until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.users import User

MOST = 100
"""Calls; more than any operation makes."""

WRITES = ("pwrite64", "pwrite", "write")


class Victim(Trial):
    """A spool whose daemons are killed."""

    def attempt(self, action: Action, at: int) -> bool:
        """Kill a daemon at one call, and look what comes of it; whether the call was reached."""
        text = self.file.read_bytes()
        mount = self.start()
        assert self.file.read_bytes() == text, "a second recovery changes something"
        scene = self.scene()
        before = self.file.stat()
        self.faults.arm(action, at)
        self.operation.run(scene)
        self.wait(lambda: not mount.alive() or (self.quiet() and self.at_the_end()), scene)
        reached = bool(self.faults.hits)
        self.calls = self.faults.calls
        self.faults.disarm()
        if not reached:
            assert not scene.errors
            mount.process.kill()
        assert mount.process.wait(10) == -signal.SIGKILL
        what = f"{action.name} at {at} of {self.calls}, {scene.acknowledged} acknowledged"
        self.forget_locks()
        self.recovered(scene.acknowledged, before, what, torn=action is Action.TEAR)
        return reached

    def recovered(
        self, acknowledged: int, before: os.stat_result, what: str, *, torn: bool
    ) -> None:
        """The next mount finishes what was begun, and leaves nothing behind.

        A header of the journal is smaller than a page, so a process cannot be killed in the middle of it
        (generic_perform_write, mm/filemap.c). If it is torn all the same, recovery says so and keeps it.
        """
        mount = self.start()
        if torn:
            mount.announce("is damaged: kept as|the header's checksum is wrong")
        until(lambda: not self.journal(), 10, f"journal worked off: {what}")
        self.check(acknowledged, what)
        after = self.file.stat()
        assert (after.st_uid, after.st_gid, after.st_mode, after.st_nlink) == (
            before.st_uid, before.st_gid, before.st_mode, 1
        ), what  # fmt: skip
        complaints = mount.stop()
        assert not complaints, (what, complaints)
        assert not os.listdir(self.private / "journal"), what
        for name in os.listdir(self.private / "rescue"):
            assert torn, (what, name)
            assert name.startswith("journal-"), (what, name)
            (self.private / "rescue" / name).unlink()
        for path in (self.private / "scratch").glob("*/*"):
            path.unlink()


@pytest.fixture
def trial(
    request: pytest.FixtureRequest, machine: Path, people: dict[str, User], library: Path
) -> Iterator[Victim]:
    """A spool for one operation."""
    mode = MODES[OPERATIONS.index(request.param) % 2]
    with closing(
        Victim(fresh_spool(machine, people, mode), people["a"], library, request.param)
    ) as trial:
        yield trial


CHANGES = (
    "write,writev,pwrite64,pwritev,pwritev2,truncate,ftruncate,fallocate,copy_file_range,sendfile,"
    "open,openat,openat2,creat,link,linkat,unlink,unlinkat,rename,renameat,renameat2,mkdir,mkdirat,"
    "mknodat,symlinkat,fsync,fdatasync,sync_file_range,utimensat,fchown,fchownat,fchmod,fchmodat,chmod,"
    "chown,setxattr,fsetxattr"
)
_SEEN = re.compile(r"^\d+ +(\w+)\((.*)$", re.MULTILINE)


@pytest.mark.parametrize(
    "trial", OPERATIONS[1:2], ids=lambda operation: operation.name, indirect=True
)
def test_what_is_counted_is_what_strace_sees(trial: Victim) -> None:
    mount, out = trial.start(), trial.spool.parent / "strace"
    scene, pid = trial.scene(), str(mount.process.pid)
    tracer = trial.crew.start(
        ["strace", "-f", "-y", "-e", f"trace={CHANGES}", "-o", out, "-p", pid]
    )
    tasks = Path(f"/proc/{pid}/task")
    until(
        lambda: all(
            "TracerPid:\t0" not in (task / "status").read_text() for task in tasks.iterdir()
        ),
        10,
        "traced",
    )
    trial.faults.arm(Action.COUNT)
    trial.operation.run(scene)
    trial.wait(lambda: trial.quiet() and trial.at_the_end(), scene)
    trial.faults.disarm()
    tracer.send_signal(signal.SIGINT)
    tracer.wait(10)
    seen = [
        name
        for name, arguments in _SEEN.findall(out.read_text())
        if f"<{trial.spool}" in arguments
        and (not name.startswith("open") or re.search("O_CREAT|O_TRUNC", arguments))
    ]
    assert len(seen) > 5
    assert seen == trial.faults.calls
    assert not mount.stop()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("trial", OPERATIONS, ids=lambda operation: operation.name, indirect=True)
def test_killed_at_every_call(trial: Victim) -> None:
    at = 1
    while trial.attempt(Action.KILL, at):
        at += 1
        assert at < MOST
    for number, call in enumerate(trial.calls, start=1):
        if call in WRITES:
            trial.attempt(Action.TEAR, number)
