"""Every call that changes something in the spool fails, in all the ways calls fail.

For each kind of operation N = 1, 2, … until it completes: the Nth call fails with an error, or a write writes half.
Whoever is told of success finds what was promised; the mailbox ends at a commit; the daemon goes on, and so does the
mail of others.
"""

from __future__ import annotations

import errno
import json
import re
from contextlib import closing
from typing import TYPE_CHECKING

import pytest

from tests.conftest import fresh_spool
from tests.mount.operations import OPERATIONS
from tests.mount.trial import Trial
from tests.support.injection import Action
from tests.support.mbox import message, names, verify_mbox
from tests.support.mounts import MODES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.mount.operations import Operation
    from tests.support.users import User

MOST = 100
"""Calls; more than any operation makes."""

TRIED_AGAIN = [["pwrite64"], ["fallocate"], ["ftruncate"], ["fdatasync"], ["fsync"]]
"""Calls whose manual pages know EINTR, or that may do less than they were asked for."""

WAYS = [
    (Action.FAIL, errno.EIO),
    (Action.FAIL, errno.ENOSPC),
    (Action.FAIL, errno.EINTR),
    (Action.SHORT, 0),
    (Action.BROKEN, errno.EIO),
]
BROKEN_FOR = ("by shell", "append", "save")
"""Operations for which the disk breaks down for good, too; tests/sessions does that for all kinds."""


class Patient(Trial):
    """A spool whose disk fails, under one daemon."""

    def __init__(
        self, spool: Path, people: dict[str, User], library: Path, operation: Operation
    ) -> None:
        super().__init__(spool, people["a"], library, operation)
        self.bob = people["b"]
        self.delivery = self.crew.actor(self.bob)
        self.delivered = 0
        mount = self.start()
        mount.announce("WARNING|ERROR|a refused draft is kept")
        self.faults.arm(Action.COUNT)
        self.faults.disarm()

    def attempt(self, action: Action, at: int, error: int) -> bool:
        """Let one call go wrong, and look what comes of it; whether the call was reached."""
        assert self.mount
        scene = self.scene()
        said = len(self.mount.log())
        self.faults.arm(action, at, error)
        self.operation.run(scene)
        self.faults.disarm()
        reached, calls = bool(self.faults.hits), self.faults.calls
        what = f"{action.name} {errno.errorcode.get(error)} at {at} of {calls}: {scene.errors}"
        self.forget_locks()
        if scene.errors and self.operation.ends:
            for actor in self.actors:
                actor.kill()
            self.actors[:] = [self.crew.actor(self.user) for _ in range(2)]
        if "unlinkat" in calls[at - 1 :]:  # perhaps of the lock file: the next who locks removes it
            self.actors[0].do(f"lock('flock', {scene.path!r}, wait=True)")
            self.forget_locks()
        self.deliver()
        self.wait(lambda: self.over() and self.quiet(), scene)
        number = self.check(scene.acknowledged, what)
        done = number == len(self.operation.states) - 1
        assert done or scene.errors or re.search("WARNING|ERROR", self.mount.log()[said:]), (
            f"{what}: lost in silence"
        )
        assert reached or (done and not scene.errors), what
        if calls[at - 1 : at] in TRIED_AGAIN and (action is Action.SHORT or error == errno.EINTR):
            assert not scene.errors, what
        return reached

    def over(self) -> bool:
        """No client has the mailbox open, and no draft is left."""
        assert self.mount
        status = json.loads(self.crew.ok(["cat", self.mount.dir / ".mailfs" / "status.json"]))
        return not (status["sessions"] or status["handles"] > 1)

    def deliver(self) -> None:
        """Another's mail goes on."""
        text = message("other", self.delivered)
        self.delivery.do(f"append({str(self.spool.parent / 'mnt' / self.bob.name)!r}, {text!r})")
        self.delivered += 1
        verify_mbox((self.spool / self.bob.name).read_bytes(), names("other", self.delivered))


@pytest.fixture
def trial(
    request: pytest.FixtureRequest, machine: Path, people: dict[str, User], library: Path
) -> Iterator[Patient]:
    """A spool for one operation."""
    mode = MODES[OPERATIONS.index(request.param) % 2]
    with closing(
        Patient(fresh_spool(machine, people, mode), people, library, request.param)
    ) as trial:
        yield trial


@pytest.mark.timeout(300)
@pytest.mark.parametrize("trial", OPERATIONS, ids=lambda operation: operation.name, indirect=True)
def test_every_call_fails(trial: Patient) -> None:
    for action, error in WAYS:
        if action is Action.BROKEN and trial.operation.name not in BROKEN_FOR:
            continue
        at = 1
        while trial.attempt(action, at, error):
            at += 1
            assert at < MOST
    assert trial.mount
    assert not trial.mount.stop()
