"""Fixtures of the tests of real clients."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User


@pytest.fixture
def user(place: Place, alice: User) -> User:
    """Whose mailbox it is; its home is as a new account's."""
    for entry in alice.home.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return alice
