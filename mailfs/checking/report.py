r"""What a check found, as lines of text and as one JSON document; docs/check.md describes both.

Both are written as the check goes on, so that a spool of any size takes no more memory than its largest mailbox's
findings. Names and details may hold anything, and are escaped as everywhere (`mailfs.control.render`).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import msgspec

from mailfs.checking.findings import Severity
from mailfs.control.render import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from mailfs.checking.findings import Finding
    from mailfs.checking.spool import Checked

FORMAT: Final = 1
"""Version of the JSON document; raised when a field changes its meaning or goes."""

SPOOL: Final = "-"
"""Stands for the name where a finding is about all of the spool; no mailbox is called so in text without ``./``."""


@dataclass(slots=True)
class Totals:
    """Counts while a check goes on."""

    mailboxes: int = 0
    messages: int = 0
    size: int = 0
    denied: int = 0
    found: Counter[Severity] = field(default_factory=Counter)

    def add(self, checked: Checked) -> None:
        """Count what was found under a name."""
        self.mailboxes += checked.is_mailbox
        self.messages += checked.messages
        self.size += checked.size
        self.denied += checked.denied
        for finding in checked.findings:
            self.found[finding.severity] += finding.count

    def summary(self) -> str:
        """One line for people."""
        number = {severity: self.found[severity] for severity in Severity}
        denied = f"; {self.denied} could not be read: run as root" if self.denied else ""
        return (
            f"{self.mailboxes} mailboxes, {self.messages} messages, {self.size} bytes: "
            f"{number[Severity.DAMAGE]} damaged places, {number[Severity.SUSPICIOUS]} suspicious,"
            f" {number[Severity.INFORMATION]} for information{denied}"
        )


def cells(checked: Checked, finding: Finding) -> tuple[str, str, str, str, str]:
    """A finding for people: severity, name, offset, kind, and what it is in words."""
    name = SPOOL if checked.name is None else _name(checked.name)
    offset = "" if finding.offset is None else str(finding.offset)
    detail = printable(finding.detail, spaces=True)
    return finding.severity.value, name, offset, finding.kind.code, detail


def line(checked: Checked, finding: Finding) -> str:
    """A finding as a line of columns."""
    severity, name, offset, kind, detail = cells(checked, finding)
    return f"{severity:<11}  {name:<16}  {offset or '-':>10}  {kind:<27}  {detail}\n"


def remedy(finding: Finding) -> str:
    """What to do about it, as a line that goes below its own."""
    return f"{'':<11}  {printable(finding.kind.remedy, spaces=True)}\n"


def json_parts(
    spool: str, results: Iterable[Checked], totals: Totals, *, mounted: bool
) -> Iterator[str]:
    """Write the JSON document piece by piece."""
    encode = msgspec.json.encode
    head = encode({"format": FORMAT, "spool": printable(spool), "mount": mounted}).decode()
    yield head[:-1] + ',"checked":['
    comma = "\n"
    for checked in results:
        totals.add(checked)
        yield comma + encode(_plain(checked)).decode()
        comma = ",\n"
    yield '\n],"summary":' + encode(_summary(totals)).decode() + "}\n"


def _plain(checked: Checked) -> dict[str, object]:
    return {
        "name": None if checked.name is None else printable(checked.name),
        "mailbox": checked.is_mailbox,
        "bytes": checked.size,
        "messages": checked.messages,
        "denied": checked.denied,
        "findings": [
            {
                "kind": finding.kind.code,
                "severity": finding.severity.value,
                "offset": finding.offset,
                "count": finding.count,
                "detail": printable(finding.detail, spaces=True),
                "remedy": finding.kind.remedy,
            }
            for finding in checked.findings
        ],
    }


def _summary(totals: Totals) -> dict[str, int]:
    return {
        "mailboxes": totals.mailboxes,
        "messages": totals.messages,
        "bytes": totals.size,
        "denied": totals.denied,
        **{severity.value: totals.found[severity] for severity in Severity},
    }


def _name(name: bytes) -> str:
    return "./-" if name == SPOOL.encode() else printable(name)
