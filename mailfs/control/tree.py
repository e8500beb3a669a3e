"""The files of ``.mailfs/``: each name with what renders its text."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from mailfs import __version__
from mailfs.control.render import (
    LockRow,
    Status,
    locks_json,
    locks_text,
    status_json,
    status_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.locking.settings import LockRow as CoreRow
    from mailfs.locking.table import LockTable


@dataclass(frozen=True, slots=True)
class Numbers:
    """What the daemon counts, asked for when a status is rendered."""

    mailboxes: Callable[[], int]
    sessions: Callable[[], int]
    handles: Callable[[], int]
    readers: Callable[[], str]


class ControlTree:
    """Renders the control files from the state of the core.

    Args:
        locks: the lock table.
        numbers: counters of the daemon.
        spool: the backing directory, for people.
        mountpoint: where it is mounted.
        limits: limits in force, by name.
        config: the configuration in force, as TOML.

    """

    def __init__(
        self,
        locks: LockTable,
        numbers: Numbers,
        spool: str,
        mountpoint: str,
        limits: dict[str, int | float],
        config: str,
    ) -> None:
        self._locks = locks
        self._numbers = numbers
        self._spool = spool
        self._mountpoint = mountpoint
        self._limits = limits
        self._config = config
        self._started = time.time()

    def files(self) -> dict[bytes, Callable[[], bytes]]:
        """What to show under which name; each call renders a consistent snapshot."""
        return {
            b"locks": lambda: locks_text(self._rows()).encode(),
            b"locks.json": lambda: locks_json(self._rows()).encode(),
            b"status": lambda: status_text(self._status()).encode(),
            b"status.json": lambda: status_json(self._status()).encode(),
            b"config": self._config.encode,
        }

    def _rows(self) -> list[LockRow]:
        now = trio.current_time()
        return [_row(row, now) for row in self._locks.rows()]

    def _status(self) -> Status:
        rows = self._locks.rows()
        return Status(
            version=__version__,
            spool=self._spool,
            mountpoint=self._mountpoint,
            pid=os.getpid(),
            started=self._started,
            uptime=time.time() - self._started,
            mailboxes_known=self._numbers.mailboxes(),
            claims=sum(row.state == "held" for row in rows),
            waiting=self._locks.waiting(),
            sessions=self._numbers.sessions(),
            handles=self._numbers.handles(),
            readers=self._numbers.readers(),
            limits=self._limits,
        )


def _row(row: CoreRow, now: float) -> LockRow:
    return LockRow(
        mailbox=os.fsdecode(row.mailbox),
        state=row.state,
        mode=row.mode.name.lower(),
        kind=row.kind.value,
        uid=row.uid,
        pid=row.pid,
        program=row.program,
        generation=row.generation,
        age=max(0.0, now - row.since),
        idle=row.idle,
        lease_left=None if row.lease_until is None else max(0.0, row.lease_until - now),
        detail=row.detail,
    )
