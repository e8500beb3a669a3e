"""What is in ``.mailfs/`` of a real spool: a daemon at work, rescued mail, scratch files.

Nothing there is opened, let alone locked.
"""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

from mailfs.checking.findings import Finding, Kind, Severity
from mailfs.checking.journal import journal_findings
from mailfs.spool.private import PRIVATE, RESCUE, SCRATCH

if TYPE_CHECKING:
    import os

    from mailfs.checking.holders import Holders
    from mailfs.spool.door import Door, Path


def state_findings(door: Door, holders: Holders) -> list[Finding]:
    """Say whether a daemon serves the spool, and what is kept in ``.mailfs/``, the journal included.

    Raises:
        OSError: it cannot be read; PermissionError for anybody but its owner.
    """
    try:
        door.listdir((PRIVATE,))
    except FileNotFoundError:
        return []
    daemon = _daemon(door, holders)
    detail = f"served by daemon {daemon}" if daemon else "no daemon has its lock"
    found = [Finding(Kind.STATE, Severity.INFORMATION, detail)]
    found += journal_findings(door, served=daemon is not None)
    files, size = _contents(door, RESCUE)
    if files:
        detail = f"rescued mail that nobody has fetched: {files} files, {size} bytes"
        found.append(Finding(Kind.RESCUE, Severity.SUSPICIOUS, detail))
    files, size = _contents(door, SCRATCH)
    if files:
        detail = f"users' scratch files: {files}, {size} bytes"
        found.append(Finding(Kind.STATE, Severity.INFORMATION, detail))
    return found


def _daemon(door: Door, holders: Holders) -> int | None:
    """The pid of the daemon that has the spool's lock, as far as it can be seen."""
    try:
        file = door.stat((PRIVATE, b"daemon.lock"))
    except FileNotFoundError:
        return None
    return next((holder.pid for holder in holders.of(file) if holder.flock), None)


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
