"""What a lock file in the spool means, by one look at it.

The rules are those by which the daemon judges them (`mailfs.spool.foreign`), but for age: the daemon watches a lock
file on its own clock, and somebody who looks once has only its times and the mailbox's.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from mailfs.checking.findings import Finding, Kind, Severity
from mailfs.policy.rights import may_lock
from mailfs.spool.dotlock import alive
from mailfs.spool.foreign import sight

if TYPE_CHECKING:
    import os

    from mailfs.checking.holders import Holders
    from mailfs.spool.door import Door
    from mailfs.spool.foreign import Sighting

STALE_AFTER: Final = 120.0
"""Seconds without a change: the default of `backing.stale_after`."""


def judge_lock(
    door: Door,
    name: bytes,
    mailbox: os.stat_result | None,
    *,
    host: str,
    account_uid: int | None,
    holders: Holders,
) -> Finding | None:
    """Say what the lock file ``name`` of a mailbox means; None if it has gone.

    Args:
        door: the way to the spool.
        name: of the lock file, in the spool's root.
        mailbox: the mailbox, if there is one.
        host: ours, as it stands in lock files.
        account_uid: whose mailbox it would be if there is none.
        holders: kernel locks: a mailbox with one is not abandoned.

    Raises:
        OSError: the spool cannot be looked at.
    """
    sighting = sight(door, (name,))
    if sighting is None:
        return None
    age = time.time() - max(sighting.mtime_ns, sighting.ctime_ns) / 1e9
    who = f"{_named(sighting)}uid {sighting.uid}, {max(0, age):.0f} s old"
    about = (mailbox.st_uid, mailbox.st_gid, mailbox.st_mode) if mailbox else None
    spool = door.stat(()).st_mode
    if not may_lock(sighting.uid, sighting.gid, about, account_uid=account_uid, directory=spool):
        return _finding(Kind.LOCK_VOID, f"{who}: its owner may not write the mailbox")
    named = sighting.pid_and_host
    if named and named[1] == host:
        if not alive(named[0]):
            return _finding(Kind.LOCK_STALE, f"{who}: its process is dead")
        return _finding(Kind.LOCK_LIVE, who)
    if mailbox is not None:
        age = min(age, time.time() - max(mailbox.st_mtime, mailbox.st_ctime))
        if holders.of(mailbox):
            return _finding(Kind.LOCK_LIVE, f"{who}, and a kernel lock")
    if age >= STALE_AFTER:
        return _finding(Kind.LOCK_STALE, f"{who}: unchanged for {age:.0f} s, as is the mailbox")
    return _finding(Kind.LOCK_LIVE, who)


def _finding(kind: Kind, detail: str) -> Finding:
    live = kind is Kind.LOCK_LIVE
    return Finding(kind, Severity.INFORMATION if live else Severity.SUSPICIOUS, detail)


def _named(sighting: Sighting) -> str:
    """What the lock file's content says of its holder."""
    if named := sighting.pid_and_host:
        return f"pid {named[0]} on {named[1][:64]}, "
    text = sighting.content.strip()
    return f"pid {text.decode()}, " if text.isdigit() and text != b"0" else ""
