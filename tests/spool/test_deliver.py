"""A message to the end of a real file, whole or not at all."""

from __future__ import annotations

import errno
import io
import os
import stat
from typing import TYPE_CHECKING

import pytest

from mailfs.spool import deliver
from tests.spool.conftest import ALICE

if TYPE_CHECKING:
    from pathlib import Path

    from mailfs.spool.door import Door

NEW = b"From new\n\nbody\n\n"


def nothing() -> None:
    """Go on."""


def put(door: Door, message: bytes = NEW) -> None:
    deliver.append(door, ALICE, io.BytesIO(message), nothing)


@pytest.mark.parametrize(
    ("before", "between"), [(b"", b""), (b"From a\n\n", b""), (b"From a\n\nx", b"\n")]
)
def test_append(spool: Path, door: Door, before: bytes, between: bytes) -> None:
    (spool / "alice").write_bytes(before)
    put(door)
    assert (spool / "alice").read_bytes() == before + between + NEW


def test_it_counts_as_new_mail(spool: Path, door: Door) -> None:
    put(door)
    found = (spool / "alice").stat()
    assert found.st_atime_ns < found.st_mtime_ns


class StopError(Exception):
    """Somebody wants us to end."""


@pytest.mark.parametrize("stop_at", range(1, 5))
def test_stopped_it_leaves_nothing(
    spool: Path, door: Door, monkeypatch: pytest.MonkeyPatch, stop_at: int
) -> None:
    monkeypatch.setattr(deliver, "CHUNK", 7)
    before = (spool / "alice").read_bytes()
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == stop_at:
            raise StopError

    with pytest.raises(StopError):
        deliver.append(door, ALICE, io.BytesIO(NEW), check)
    assert (spool / "alice").read_bytes() == before


@pytest.mark.parametrize(("call", "number"), [("write", 1), ("write", 2), ("fsync", 1)])
def test_every_failure_leaves_nothing(
    spool: Path, door: Door, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    monkeypatch.setattr(deliver, "CHUNK", 7)
    before = (spool / "alice").read_bytes()
    real, calls = getattr(os, call), 0

    def fail(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == number:
            raise OSError(errno.ENOSPC, "full")
        return real(*arguments)

    monkeypatch.setattr(os, call, fail)
    with pytest.raises(OSError, match="full"):
        put(door)
    assert (spool / "alice").read_bytes() == before


def test_what_others_wrote_meanwhile_stays(
    spool: Path, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "CHUNK", 7)
    calls = 0

    def check() -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            with (spool / "alice").open("ab") as file:
                file.write(b"\nFrom another\n\n")
            raise StopError

    with pytest.raises(StopError):
        deliver.append(door, ALICE, io.BytesIO(NEW), check)
    assert (spool / "alice").read_bytes().endswith(b"\nFrom another\n\n")


def test_a_mailbox_replaced_meanwhile_has_the_message(spool: Path, door: Door) -> None:
    done = False

    def check() -> None:
        nonlocal done
        if not done:
            done = True
            (spool / "other").write_bytes(b"From b\n\n")
            (spool / "other").rename(spool / "alice")

    deliver.append(door, ALICE, io.BytesIO(NEW), check)
    assert (spool / "alice").read_bytes() == b"From b\n\n" + NEW


def test_other_files_are_left_alone(spool: Path, door: Door) -> None:
    before = (spool / "alice").read_bytes()
    os.link(spool / "alice", spool / "second")
    with pytest.raises(OSError, match="another name"):
        put(door)
    assert (spool / "second").read_bytes() == before
    (spool / "alice").unlink()
    (spool / "alice").symlink_to("second")
    with pytest.raises(OSError, match="symbolic links"):
        put(door)
    (spool / "alice").unlink()
    os.mkfifo(spool / "alice")
    with pytest.raises(OSError, match="not a regular file"):
        put(door)


@pytest.mark.parametrize(
    ("mode", "owner"),
    [
        (0o2775, (7, 8, 0o660)),
        (0o775, (7, 8, 0o660)),
        (0o1777, (7, 9, 0o600)),
        (0o755, (7, 9, 0o600)),
    ],
)
def test_whose_a_mailbox_is(mode: int, owner: tuple[int, int, int]) -> None:
    directory = os.stat_result((stat.S_IFDIR | mode, 1, 1, 1, 0, 8, 0, 0, 0, 0))
    assert deliver.owner_in(directory, 7, 9) == owner


def test_making_a_mailbox(spool: Path, door: Door) -> None:
    owner = deliver.Owner(os.geteuid(), os.getegid(), 0o640)
    deliver.make_mailbox(door, b"bob", owner, "here")
    assert stat.S_IMODE((spool / "bob").stat().st_mode) == 0o640
    (spool / "bob").write_bytes(b"x")
    deliver.make_mailbox(door, b"bob", owner, "here")
    assert (spool / "bob").read_bytes() == b"x"
    assert sorted(os.listdir(spool)) == ["alice", "bob"]
