"""A spool on which one operation is tried again and again while system calls go wrong."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

import pytest

from mailfs.sessions.record import Record, State
from mailfs.spool.door import Door
from mailfs.spool.journal import look
from tests.mount.operations import TEXT, Operation, Scene
from tests.support.injection import Faults
from tests.support.mounts import Mount, Place
from tests.support.prefork import Prefork
from tests.support.processes import Crew, until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.users import User


class Trial:
    """Runs an operation on a mailbox of its own.

    Args:
        spool: a fresh one.
        user: whose mailbox it is.
        library: as `tests.support.injection.build` made it.
        operation: what to run.

    """

    def __init__(self, spool: Path, user: User, library: Path, operation: Operation) -> None:
        self.spool, self.user, self.operation = spool, user, operation
        self.private = spool / ".mailfs"
        self.file = spool / user.name
        self.mount: Mount | None = None
        self.calls: list[str] = []
        self.faults = Faults(library, spool)
        self.prefork = Prefork(self.faults.environment)
        self.crew = Crew()
        self.actors = [self.crew.actor(user) for _ in range(2)]

    def start(self) -> Mount:
        """Mount."""
        options = ["sessions.spill=65536"]
        self.mount = Mount.start(self.spool.parent, self.spool, options, self.prefork)
        return self.mount

    def scene(self) -> Scene:
        """The mailbox as it is before the operation."""
        assert self.mount
        with self.file.open("r+b") as file:  # not O_CREAT, which fs.protected_regular forbids
            file.truncate()
            # Seen by the daemon, so that what follows is not taken for mail behind what there was.
            self.crew.ok(["stat", self.mount.dir / self.user.name])
            file.write(TEXT)
        place = Place(self.mount.dir, self.spool, self.crew, self.mount)
        scene = Scene(place, self.user, self.actors)
        self.operation.prepare(scene)
        assert not scene.errors
        return scene

    def journal(self) -> list[str]:
        """What is in the journal."""
        found = []
        with Door.at(str(self.spool)) as door:
            for file, record in look(door):
                if not isinstance(record, Record) or record.state is not State.FREE:
                    found.append(f"{file}: {record}")
                file.leave()
        return found

    def quiet(self) -> bool:
        """Nothing is on its way to the mailbox any more."""
        return not os.path.exists(f"{self.file}.lock") and not self.journal()

    def at_the_end(self) -> bool:
        """Whether all of the operation is done."""
        return self.file.read_bytes() == self.operation.states[-1]

    def wait(self, condition: Callable[[], bool], scene: Scene) -> None:
        """Wait for the end of an attempt."""
        try:
            until(condition, 10, "over")
        except AssertionError:
            assert self.mount
            calls, left = self.faults.calls, sorted(path.name for path in self.spool.iterdir())
            told = self.mount.log()[-2000:]
            pytest.fail(f"not over: {calls} {scene.errors} {self.journal()} {left} {told}")

    def check(self, acknowledged: int, what: str) -> int:
        """The mailbox is in one of the operation's states, and in none before those that its clients were told of."""
        text, states = self.file.read_bytes(), self.operation.states
        assert self.mount
        if text in self.operation.also:
            return 0
        assert text in states, f"{what}: half a change: {_short(text)}\n{self.mount.log()[-1500:]}"
        number = states.index(text)
        assert number >= acknowledged, f"{what}: lost: {_short(text)}\n{self.mount.log()[-1500:]}"
        return number

    def forget_locks(self) -> None:
        """Let the actors close what they still hold."""
        for actor in self.actors:
            actor.do("[os.close(held.pop(each)) for each in list(held)]")

    def close(self) -> None:
        """End everything."""
        self.crew.close()
        if self.mount is not None:
            self.mount.destroy()
        self.prefork.close()


def _short(text: bytes) -> str:
    found = re.findall(rb"^(?:X-Test-Id: |end )(.*)", text, re.MULTILINE)
    return f"{len(text)} bytes: {found}"
