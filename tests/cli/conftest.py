"""Both ways the commands work, and with them both kinds of spool."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.conftest import fresh_spool, mounted
from tests.support.mounts import MODES, Place

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator

    from tests.support.processes import Crew
    from tests.support.users import User


@pytest.fixture(params=["plain", "mailfs"])
def place(
    request: pytest.FixtureRequest, machine: pathlib.Path, people: dict[str, User], crew: Crew
) -> Iterator[Place]:
    """A plain spool of mode 1777, then a mounted one of mode 2775."""
    if request.param == "plain":
        spool = fresh_spool(machine, people, MODES[0])
        yield Place(spool, spool, crew)
        return
    with mounted(request.node, fresh_spool(machine, people, MODES[1])) as place:
        yield place
