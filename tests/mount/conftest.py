"""Fixtures of the tests of real clients."""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING

import pytest

from tests.conftest import fresh_spool, mounted
from tests.support.mounts import MODES, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from tests.support.users import User


@pytest.fixture
def user(place: Place, alice: User) -> User:
    """Whose mailbox it is; its home is as a new account's."""
    for entry in alice.home.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return alice


@pytest.fixture
def mounting(
    request: pytest.FixtureRequest, machine: Path, people: dict[str, User]
) -> Iterator[Callable[..., Place]]:
    """Mount a fresh spool with given -o options."""
    with contextlib.ExitStack() as stack:

        def mount(*options: str, spool: Path | None = None) -> Place:
            spool = spool or fresh_spool(machine, people, MODES[1])
            return stack.enter_context(mounted(request.node, spool, options))

        yield mount
