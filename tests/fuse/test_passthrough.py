"""A backing id for each node while it is open, and one way for all its handles."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from mailfs.fuse import passthrough
from mailfs.fuse.handles import MailboxHandle
from mailfs.fuse.nodes import Node
from mailfs.fuse.passthrough import Passthrough, Way

if TYPE_CHECKING:
    from pathlib import Path

    from mailfs.sessions.mailbox import Mailbox


class Kernel:
    """Gives out backing ids, and knows which are in use."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.used: set[int] = set()
        self.last = 0
        self.refuses: OSError | None = None
        monkeypatch.setattr(passthrough, "passthrough_agreed", lambda: True)
        monkeypatch.setattr(passthrough, "open_backing", self.open)
        monkeypatch.setattr(passthrough, "close_backing", self.used.remove)

    def open(self, _fd: int) -> int:
        if self.refuses is not None:
            raise self.refuses
        self.last += 1
        self.used.add(self.last)
        return self.last


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Kernel:
    return Kernel(monkeypatch)


class Box:
    """A real file with handles."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self.path = path
        self.node = Node(path.stat().st_ino, ("mailbox", path.name))
        self.passthrough = Passthrough(lambda: os.open(path, os.O_RDONLY))

    def open(self, path: Path | None = None, *, apart: bool = False) -> MailboxHandle:
        fd = os.open(path or self.path, os.O_RDONLY)
        handle = MailboxHandle(
            1, self.node, mailbox=cast("Mailbox", SimpleNamespace(name=b"alice")), fd=fd
        )
        self.passthrough.opened(handle, apart=apart)
        return handle

    def close(self, handle: MailboxHandle) -> None:
        self.passthrough.closed(handle)
        handle.close()


@pytest.fixture
def box(tmp_path: Path) -> Box:
    return Box(tmp_path / "alice")


def test_one_id_for_all_handles(kernel: Kernel, box: Box) -> None:
    for _ in range(3):
        one, two = box.open(), box.open(apart=True)
        assert (one.way, two.way) == (Way.PASSED, Way.MAPPED)
        assert one.backing == two.backing
        assert kernel.used == {one.backing}
        box.close(one)
        assert kernel.used == {two.backing}
        box.close(two)
        assert not kernel.used
        assert not len(box.passthrough)


def test_no_id_as_long_as_a_handle_has_none(kernel: Kernel, box: Box) -> None:
    assert box.passthrough.refused is None
    kernel.refuses = OSError(12, "no memory")
    one = box.open()
    kernel.refuses = None
    two = box.open()
    assert (one.way, two.way) == (Way.DIRECT, Way.DIRECT)
    box.close(one)
    box.close(two)
    three = box.open()
    assert three.way is Way.PASSED
    box.close(three)


def test_another_file_renamed_over_it(kernel: Kernel, box: Box, tmp_path: Path) -> None:
    """Opened by the name after look-up: it is not the node's file, so its reads come to us."""
    other = tmp_path / "other"
    other.touch()
    first = box.open(other)
    assert (first.way, first.backing) == (Way.DIRECT, None)
    second = box.open()
    assert second.way is Way.DIRECT, "as long as the node has another handle without"
    box.close(first)
    box.close(second)
    third, fourth = box.open(), box.open(other)
    assert (third.way, fourth.way) == (Way.PASSED, Way.MAPPED)
    box.close(third)
    box.close(fourth)
    assert not kernel.used


@pytest.mark.parametrize("refused", [None, "option no_passthrough"])
def test_where_there_is_none(kernel: Kernel, box: Box, refused: str | None) -> None:
    kernel.refuses = OSError(40, "Too many levels of symbolic links")
    box.passthrough = Passthrough(lambda: os.open(box.path, os.O_RDONLY), refused)
    assert box.passthrough.wanted is (refused is None)
    handle = box.open()
    assert (handle.way, handle.backing) == (Way.DIRECT, None)
    box.close(handle)
    why = refused or "the kernel refuses it: Too many levels of symbolic links"
    assert str(box.passthrough) == f"direct I/O ({why})"
