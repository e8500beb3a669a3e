"""A spool of real files for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from mailfs.spool.backing_lock import BackingLock, BackingSettings
from mailfs.spool.door import Door
from mailfs.spool.foreign import MayWrite, owner_may_write

if TYPE_CHECKING:
    from pathlib import Path

ALICE = (b"alice",)


class Clock:
    """Monotonic seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    directory = tmp_path / "spool"
    directory.mkdir()
    (directory / "alice").write_bytes(b"From a\n\n")
    return directory


@pytest.fixture
def door(spool: Path) -> Iterator[Door]:
    with Door.at(str(spool)) as door:
        yield door


@pytest.fixture
def clock() -> Clock:
    return Clock()


MakeLock = Callable[..., BackingLock]


@pytest.fixture
def make_lock(spool: Path, clock: Clock) -> Iterator[MakeLock]:
    """Make backing locks as different hosts would: each with a door of its own."""
    doors: list[Door] = []
    locks: list[BackingLock] = []

    def make(
        host: str = "here",
        path: tuple[bytes, ...] = ALICE,
        *,
        may_write: MayWrite = owner_may_write,
        dotlock: bool = True,
        ofd: bool = True,
        flock: bool = True,
    ) -> BackingLock:
        doors.append(Door.at(str(spool)))
        settings = BackingSettings(dotlock=dotlock, ofd=ofd, flock=flock, host=host)
        locks.append(BackingLock(doors[-1], path, settings, may_write, clock))
        return locks[-1]

    yield make
    for lock in locks:
        lock.release()
    for door in doors:
        door.close()
