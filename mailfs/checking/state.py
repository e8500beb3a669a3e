"""What is in ``.mailfs/`` of a real spool: a daemon at work, rescued mail, scratch files.

Nothing there is opened, let alone locked.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from mailfs.checking.findings import Finding, Kind, Severity
from mailfs.spool.private import PRIVATE, RESCUE, SCRATCH

if TYPE_CHECKING:
    import os

    from mailfs.checking.holders import Holders
    from mailfs.spool.door import Door, Path


def state_findings(door: Door, holders: Holders) -> list[Finding]:
    """Say whether a daemon serves the spool, and what is kept in ``.mailfs/``.

    Raises:
        OSError: it cannot be read; PermissionError for anybody but its owner.
    """
    try:
        door.listdir((PRIVATE,))
    except FileNotFoundError:
        return []
    found = [_daemon(door, holders)]
    files, size = _contents(door, RESCUE)
    if files:
        detail = f"rescued mail that nobody has fetched: {files} files, {size} bytes"
        found.append(Finding(Kind.RESCUE, Severity.SUSPICIOUS, detail))
    files, size = _contents(door, SCRATCH)
    if files:
        detail = f"users' scratch files: {files}, {size} bytes"
        found.append(Finding(Kind.STATE, Severity.INFORMATION, detail))
    return found


def _daemon(door: Door, holders: Holders) -> Finding:
    path = (PRIVATE, b"daemon.lock")
    detail = "no daemon has its lock"
    try:
        running = [holder for holder in holders.of(door.stat(path)) if holder.flock]
    except FileNotFoundError:
        running = []
    if running:
        detail = f"served by daemon {running[0].pid}"
    return Finding(Kind.STATE, Severity.INFORMATION, detail)


def _contents(door: Door, top: Path) -> tuple[int, int]:
    """Count the files below a directory, and their bytes."""
    files = size = 0
    try:
        entries = door.listdir(top)
    except (FileNotFoundError, NotADirectoryError):
        return 0, 0
    for entry in entries:
        path = (*top, entry.name)
        try:
            found: os.stat_result = door.stat(path)
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(found.st_mode):
            below = _contents(door, path)
            files, size = files + below[0], size + below[1]
        else:
            files, size = files + 1, size + found.st_size
    return files, size
