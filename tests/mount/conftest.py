"""Fixtures of the tests of real clients."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.support.injection import build

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.mounts import Place
    from tests.support.users import User


@pytest.fixture
def user(place: Place, alice: User) -> User:
    """Whose mailbox it is; its home is as a new account's."""
    for entry in alice.home.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return alice


@pytest.fixture(scope="session")
def library(machine: Path) -> Path:
    """What lets system calls of a daemon go wrong."""
    return build(machine)
