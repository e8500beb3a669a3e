"""Faults in the disk under a daemon, at the Nth call that changes something in its spool (``injection.c``).

A library preloaded into the daemon counts those calls while it is *armed*, and lets one of them go wrong. It is the C
library's calls that are counted, so threads and ctypes are covered, no tracer slows the daemon down, and N is exact.
"""

from __future__ import annotations

import enum
import mmap
import os
import struct
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_SOURCE = Path(__file__).with_suffix(".c")
_HEAD = struct.Struct("=IIIiQII")  # armed, action, at, error, device, count, hits
_NAMES, _NAME = 4096, 16


class Action(enum.IntEnum):
    """What becomes of the Nth call."""

    COUNT = 0
    """Nothing."""
    KILL = 1
    """The daemon is killed instead of making it."""
    TEAR = 2
    """The daemon is killed when it has made it; a write is cut in half."""
    FAIL = 3
    """It fails."""
    BROKEN = 4
    """It fails, and so do all after it."""
    SHORT = 5
    """A write writes half of what it was given."""


def build(where: Path) -> Path:
    """Compile the library into a directory."""
    library = where / "injection.so"
    argv: list[str | Path] = [
        "gcc",
        "-O1",
        "-Wall",
        "-shared",
        "-fPIC",
        "-o",
        library,
        _SOURCE,
        "-ldl",
    ]
    subprocess.run(argv, check=True, timeout=60)
    return library


class Faults:
    """The control file of one spool's daemons.

    Args:
        library: as `build` made it.
        spool: whose device is meant.

    """

    def __init__(self, library: Path, spool: Path) -> None:
        path = spool.parent / "faults"
        path.write_bytes(bytes(_HEAD.size + _NAMES * _NAME))
        fd = os.open(path, os.O_RDWR)
        try:
            self._map = mmap.mmap(fd, 0)
        finally:
            os.close(fd)
        self._device = spool.stat().st_dev
        self.environment = {"LD_PRELOAD": str(library), "MAILFS_TEST_FAULTS": str(path)}

    def arm(self, action: Action, at: int = 0, error: int = 0) -> None:
        """Count from now on; call number ``at``, from 1, goes wrong."""
        self._map[_HEAD.size :] = bytes(_NAMES * _NAME)
        _HEAD.pack_into(self._map, 0, 0, action, at, error, self._device, 0, 0)
        struct.pack_into("=I", self._map, 0, 1)

    def disarm(self) -> None:
        """Let everything pass, uncounted."""
        struct.pack_into("=I", self._map, 0, 0)

    @property
    def count(self) -> int:
        """Calls made since it was armed."""
        return int(_HEAD.unpack_from(self._map)[5])

    @property
    def hits(self) -> int:
        """Calls that went wrong."""
        return int(_HEAD.unpack_from(self._map)[6])

    @property
    def calls(self) -> list[str]:
        """The names of the calls made since it was armed."""
        return list(self._names())

    def _names(self) -> Iterator[str]:
        for number in range(min(self.count, _NAMES)):
            at = _HEAD.size + number * _NAME
            yield self._map[at : at + _NAME].rstrip(b"\0").decode()
