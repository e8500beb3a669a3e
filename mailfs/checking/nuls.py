"""Runs of NUL bytes in a mailbox: holes that crashes leave, and alpine's padding at its end."""

from __future__ import annotations

import re
from typing import Final

from mailfs.checking.findings import KEPT, Collector, Kind, Severity

BEFORE: Final = 4
"""Bytes before it: an empty line with CR LF."""

HOLE: Final = 16
"""NUL bytes in a row that no message has; fewer may be in a message that breaks RFC 5322, 3.5."""

_NULS: Final = re.compile(rb"\0+")
_HOLES: Final = re.compile(rb"\0{%d,}" % HOLE)


class Nuls:
    """Finds runs of NUL bytes, and what the file ends with before the last of them."""

    def __init__(self) -> None:
        self.found = Collector()
        self.trailing = 0  # NUL bytes at the end of what was fed
        self.tail = b""  # the last `BEFORE` bytes before these
        self._size = 0
        self._short = 0  # runs shorter than `HOLE`

    def feed(self, data: bytes) -> None:
        """Take the next chunk."""
        base, self._size = self._size, self._size + len(data)
        rest = data.lstrip(b"\0")
        if not rest:
            self.trailing += len(data)
            return
        skipped = len(data) - len(rest)
        self.trailing += skipped
        if self.trailing:
            self._run(base + skipped - self.trailing, self.trailing)
        text = rest.rstrip(b"\0")
        if b"\0" in text:
            self._within(text, base + skipped)
        self.tail = (self.tail + b"\0" * min(self.trailing, BEFORE) + text[-BEFORE:])[-BEFORE:]
        self.trailing = len(rest) - len(text)

    def _within(self, text: bytes, base: int) -> None:
        at = 0
        while self._short <= KEPT and (match := _NULS.search(text, at)):
            self._run(base + match.start(), match.end() - match.start())
            at = match.end()
        if self._short > KEPT:  # a file of alternating bytes has half a million in each chunk
            holes = list(_HOLES.finditer(text, at))
            number = sum(1 for _ in _NULS.finditer(text, at)) - len(holes)
            self.found.count(Kind.NUL, Severity.SUSPICIOUS, number)
            for match in holes:
                self._run(base + match.start(), match.end() - match.start())

    def _run(self, offset: int, length: int) -> None:
        severity = Severity.DAMAGE if length >= HOLE else Severity.SUSPICIOUS
        self._short += length < HOLE
        self.found.add(Kind.NUL, severity, f"{length} NUL bytes", offset)

    def finish(self) -> None:
        """Tell of the run at the end."""
        if self.trailing:
            detail = f"{self.trailing} NUL bytes"
            self.found.add(
                Kind.NUL_AT_END,
                Severity.SUSPICIOUS,
                detail,
                self._size - self.trailing,
                at_end=True,
            )
