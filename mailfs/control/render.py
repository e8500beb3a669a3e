r"""What an administrator reads: the lock table and the status, as text and as JSON.

Pure functions from plain data. The same rows serve the control files and the command line, which
reads the JSON back.

Names come from strangers and may hold anything but ``/`` and NUL. In everything rendered here, a
byte that is not a visible ASCII character, and the backslash, is written ``\xNN``: nothing can
forge a line or a column, send an escape sequence to a terminal, or be mistaken for another name,
and the name can be read back exactly (`unprintable`). Text is therefore ASCII.
"""

from __future__ import annotations

import datetime as dt
import os
import re
from typing import TYPE_CHECKING, TypeVar

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_S = TypeVar("_S", bound=msgspec.Struct)


class LockRow(msgspec.Struct, frozen=True, kw_only=True):
    """One claim or waiter. Strings are as they are (file names by `os.fsdecode`), not escaped.

    Attributes:
        mailbox: its name, relative to the spool.
        state: such as ``held``, ``waiting``, ``reserved``, ``revoked``.
        mode: ``read``, ``append`` or ``write``.
        kind: the protocol, a value of `mailfs.locking.model.Kind`.
        uid: user id of the client; -1 if unknown.
        pid: process id of the client; 0 if it is in another pid namespace.
        program: its name.
        generation: number of the grant; 0 while waiting.
        age: seconds since the grant, or since the wait began.
        idle: seconds since the agent last touched the mailbox.
        lease_left: seconds until the claim may be revoked; None if nobody waits for it.
        detail: for people.

    """

    mailbox: str
    state: str
    mode: str
    kind: str
    uid: int
    pid: int
    program: str
    generation: int
    age: float
    idle: float
    lease_left: float | None = None
    detail: str = ""


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon in numbers.

    Attributes:
        version: of mailfs.
        spool: the backing directory.
        mountpoint: where it is mounted.
        pid: of the daemon.
        started: seconds since the epoch.
        uptime: seconds.
        mailboxes_known: mailboxes with a lock object in memory.
        claims: claims in force.
        waiting: requests parked.
        sessions: sessions with something not committed.
        handles: open files.
        readers: how mailboxes are read: "passthrough", or "direct I/O" and why.
        limits: names of limits (as in the configuration) and their values.

    """

    version: str
    spool: str
    mountpoint: str
    pid: int
    started: float
    uptime: float
    mailboxes_known: int
    claims: int
    waiting: int
    sessions: int
    handles: int
    readers: str = ""
    limits: dict[str, int | float] = {}


class _Locks(msgspec.Struct, frozen=True):
    """The document ``locks.json``."""

    locks: list[LockRow]


HEADER = (
    "MAILBOX",
    "STATE",
    "MODE",
    "PROTOCOL",
    "UID",
    "PID",
    "PROGRAM",
    "GRANT",
    "AGE",
    "IDLE",
    "LEASE",
    "DETAIL",
)

NUMERIC = frozenset(("UID", "PID", "GRANT", "AGE", "IDLE", "LEASE"))
"""Columns set flush right."""


def printable(name: str | bytes, *, spaces: bool = False) -> str:
    r"""Write a name so that it is one visible word; *spaces* lets spaces stand, for sentences.

    >>> printable(b"al ice\n\xff")
    'al\\x20ice\\x0a\\xff'
    """
    lowest = 0x20 if spaces else 0x21
    return "".join(
        chr(byte) if lowest <= byte < 0x7F and byte != 0x5C else f"\\x{byte:02x}"
        for byte in _bytes(name)
    )


def unprintable(text: str) -> str:
    """Give back the name (as `os.fsdecode` has it) that `printable` wrote."""
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda found: bytes((int(found[1], 16),)), _bytes(text))
    return os.fsdecode(raw)


def _bytes(name: str | bytes) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:  # not from os.fsdecode: show it all the same
        return name.encode("utf-8", "surrogatepass") if isinstance(name, str) else name


def duration(seconds: float) -> str:
    """Write a time span for people: ``0.4s``, ``3m05s``, ``4d02h``."""
    if not 0 <= seconds < 1e10:  # a clock that was set back, or nonsense
        return "0.0s" if seconds < 0 else "?"
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def cells(row: LockRow) -> tuple[str, ...]:
    """Write one row as the strings of its columns, in the order of `HEADER`; none is empty."""
    return (
        printable(row.mailbox) or "-",
        printable(row.state) or "-",
        printable(row.mode) or "-",
        printable(row.kind) or "-",
        str(row.uid),
        str(row.pid),
        printable(row.program) or "-",
        str(row.generation),
        duration(row.age),
        duration(row.idle),
        "-" if row.lease_left is None else duration(row.lease_left),
        printable(row.detail, spaces=True).strip() or "-",
    )


def locks_text(rows: Sequence[LockRow]) -> str:
    """Write the lock table: a header, then a line a claim or waiter, in aligned columns."""
    table = [HEADER, *(cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    lines = []
    for line in table:
        parts = [
            cell.rjust(width) if title in NUMERIC else cell.ljust(width)
            for title, cell, width in zip(HEADER, line, widths, strict=True)
        ]
        lines.append("  ".join(parts).rstrip() + "\n")
    return "".join(lines)


def locks_json(rows: Sequence[LockRow]) -> str:
    """Write the lock table as JSON: an object whose ``locks`` is a list of rows, names escaped."""
    return _json({"locks": [_with_strings(row, _escaped) for row in rows]})


def locks_from_json(document: bytes) -> list[LockRow]:
    """Read back what `locks_json` wrote.

    Raises:
        msgspec.DecodeError: it is no such document.

    """
    rows = msgspec.json.decode(document, type=_Locks).locks
    return [_with_strings(row, lambda _, text: unprintable(text)) for row in rows]


def status_lines(status: Status) -> list[tuple[str, str]]:
    """Write the status as names and values for people."""
    lines = [
        ("version", printable(status.version)),
        ("spool", printable(status.spool)),
        ("mountpoint", printable(status.mountpoint)),
        ("pid", str(status.pid)),
        ("started", _moment(status.started)),
        ("uptime", duration(status.uptime)),
        ("mailboxes known", str(status.mailboxes_known)),
        ("claims", str(status.claims)),
        ("waiting", str(status.waiting)),
        ("sessions", str(status.sessions)),
        ("handles", str(status.handles)),
        ("readers", printable(status.readers, spaces=True)),
    ]
    lines += [
        (f"limit {printable(name)}", f"{value:.15g}") for name, value in status.limits.items()
    ]
    return lines


def status_text(status: Status) -> str:
    """Write the status as lines ``name: value``."""
    return "".join(f"{name}: {value}\n" for name, value in status_lines(status))


def status_json(status: Status) -> str:
    """Write the status as a JSON object with the attributes of `Status`, names escaped."""
    return _json(_with_strings(status, _escaped))


def status_from_json(document: bytes) -> Status:
    """Read back what `status_json` wrote.

    Raises:
        msgspec.DecodeError: it is no such document.

    """
    status = msgspec.json.decode(document, type=Status)
    return _with_strings(status, lambda _, text: unprintable(text))


def _json(document: object) -> str:
    return msgspec.json.format(msgspec.json.encode(document), indent=1).decode() + "\n"


def _escaped(field: str, text: str) -> str:
    return printable(text, spaces=field in ("detail", "readers"))


def _with_strings(struct: _S, change: Callable[[str, str], str]) -> _S:
    changes = {
        field: change(field, value)
        for field, value in msgspec.structs.asdict(struct).items()
        if isinstance(value, str)
    }
    return msgspec.structs.replace(struct, **changes)


def _moment(seconds: float) -> str:
    try:
        return dt.datetime.fromtimestamp(seconds, dt.UTC).isoformat(" ", "seconds")
    except (ValueError, OverflowError, OSError):
        return "?"
