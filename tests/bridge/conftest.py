"""Fixtures: a mounted server, which must not have complained at the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.bridge.mounted import Mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Mounted]:
    server = Mounted(tmp_path)
    try:
        yield server
    finally:
        server.end()
    assert "ERROR" not in server.log.read_text()
    assert "Traceback" not in server.log.read_text()
