"""The text of one mailbox, examined as it comes, in bounded memory.

An mbox file is a sequence of messages: a separator line, header lines, an empty line, the text, and an empty line. The
examiner goes from one newline that matters to the next: in a header to its end, in a text to the next line that begins
with ``From ``. What it decides at a newline it decides by the few bytes before it and the `WINDOW` bytes behind it, and
only when those are there, so it does not matter where chunks end. Lines may be of any length.

A ``Content-Length`` is believed as mutt believes it: if the text is followed by a separator, or the end, just there.
If separators come before that place, it is not known yet whether the message was cut or whether they are part of
its text, so the findings stay as a *claim* that is taken back when such a separator is reached.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mailfs.checking.findings import KEPT, Collector, Finding, Kind, Mark, Severity
from mailfs.checking.nuls import BEFORE, Nuls
from mailfs.checking.separator import LONGEST, PREFIX, Form, form_of

if TYPE_CHECKING:
    from collections.abc import Iterable

WINDOW: Final = 2048
"""Bytes behind a newline that decide what it is: a separator line and the name of a header behind it."""

REMEMBERED: Final = 200_000
"""Messages among which identical ones are looked for; a fingerprint is some 70 bytes of memory."""

CLAIMS: Final = 64
"""Claims that are open at a time; more are only made to keep us busy."""

_NEXT: Final = b"\n" + PREFIX
_FIELD: Final = rb"[!-9;-~]{1,256}[ \t]{0,64}:"
_LENGTH: Final = rb"content-length[ \t]{0,9}:[ \t]{0,99}(\d{1,18})[ \t]{0,99}\r?\n"
_HEADER: Final = re.compile(
    rb"\n(?:(?=(\r?\n))|(?=(From ))|(?="
    + _LENGTH
    + rb")|(?!"
    + _FIELD
    + rb"|[ \t]|>From |[^\n]{0,256}\Z))",
    re.IGNORECASE,
)
_HEADER_WITH_FAULT: Final = re.compile(rb"\n(?:(?=(\r?\n))|(?=(From )))")
_STARTS_HEADER: Final = re.compile(_FIELD)


@dataclass(frozen=True, slots=True)
class Examination:
    """What is known of a mailbox's text."""

    size: int
    messages: int
    findings: list[Finding]


def examine(chunks: Iterable[bytes]) -> Examination:
    """Examine a mailbox that comes in chunks of any size."""
    examiner = Examiner()
    for chunk in chunks:
        examiner.feed(chunk)
    return examiner.finish()


@dataclass(slots=True)
class _Message:
    """The message that is being read. Offsets are in bytes from the file's beginning."""

    start: int
    header: int  # the newline that ends the separator line
    text: int | None = None  # where the text begins, once the header has ended
    length: int | None = None  # Content-Length
    newlines: int = 0  # in the text, if there is a Content-Length
    faulty: bool = False  # a header line was none
    loose: list[tuple[int, Kind, Severity]] = field(default_factory=list)  # From lines in the text
    loose_more: Counter[tuple[Kind, Severity]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Claim:
    """A message's Content-Length says that it ends at ``end``, behind a separator that came before."""

    start: int
    end: int
    mark: Mark
    messages: int


class Examiner:
    """Examines one mailbox: `feed` it all chunks, then `finish`."""

    def __init__(self) -> None:
        self._buffer = b""
        self._base = 0  # the offset of the buffer
        self._at = -1  # newlines before this offset are settled; -1: the beginning is not
        self._found = Collector()
        self._nuls = Nuls()
        self._message: _Message | None = None
        self._messages = 0
        self._claims: list[_Claim] = []
        self._digest = _fresh()
        self._digested = 0
        self._seen: set[bytes] = set()

    def feed(self, data: bytes) -> None:
        """Take the next chunk."""
        self._nuls.feed(data)
        self._buffer += data
        self._advance(self._base + len(self._buffer) - WINDOW)
        keep = max(0, min(self._at - BEFORE, self._base + len(self._buffer)) - self._base)
        if keep:
            self._digest_to(self._base + keep)
            self._buffer = self._buffer[keep:]
            self._base += keep

    def finish(self) -> Examination:
        """Take the end, and say what was found."""
        size = self._base + len(self._buffer)
        if size:
            self._advance(size)
        self._nuls.finish()
        end = size - self._nuls.trailing
        if end:
            self._settle_end(end)
        findings = self._found.findings() + self._nuls.found.findings()
        findings.sort(key=lambda finding: (finding.offset is None, finding.offset or 0))
        return Examination(size, self._messages, findings)

    # -- going on

    def _advance(self, limit: int) -> None:
        """Settle all newlines before the offset ``limit``."""
        if self._at < 0 and limit > 0:
            self._begin()
        while 0 <= self._at < limit:
            message = self._message
            if message is not None and message.text is None:
                self._go_through_header(message, limit)
            else:
                self._go_through_text(limit)

    def _begin(self) -> None:
        self._at = 0
        if not self._buffer.startswith(PREFIX):
            start = self._buffer[:40].partition(b"\n")[0]
            self._damage(Kind.NO_SEPARATOR, f"the file begins with {_quoted(start)}", 0)
            return
        line = self._line(0)
        form = form_of(line)
        if form is Form.NONE:
            self._damage(Kind.MALFORMED, f"the first line is {_quoted(line)}", 0)
        self._start(0, line, form)

    def _go_through_header(self, message: _Message, limit: int) -> None:
        pattern = _HEADER_WITH_FAULT if message.faulty else _HEADER
        match = pattern.search(self._buffer, self._at - self._base)
        newline = self._base + match.start() if match else limit
        if match is None or newline >= limit:
            self._at = limit
            return
        self._at = newline + 1
        if match[1]:
            self._end_header(message, newline, match[1])
        elif match[2]:
            line = self._line(newline + 1)
            form = form_of(line)
            if form is Form.NONE:
                self._header_fault(message, newline)
            else:
                self._separator(newline + 1, line, form, clean=False)
        elif not message.faulty and match[3]:
            message.length = int(match[3])
        else:
            self._header_fault(message, newline)

    def _end_header(self, message: _Message, newline: int, blank: bytes) -> None:
        if newline == message.header:
            self._suspicious(Kind.NO_HEADER, "no header", message.start)
        message.text = newline + 1 + len(blank)
        self._at = message.text - 1

    def _header_fault(self, message: _Message, newline: int) -> None:
        message.faulty = True
        line = self._line(newline + 1)
        self._suspicious(Kind.HEADER_LINE, f"no header line: {_quoted(line)}", newline + 1)

    def _go_through_text(self, limit: int) -> None:
        start = self._at
        found = self._buffer.find(_NEXT, start - self._base, limit - 1 + len(_NEXT) - self._base)
        newline = self._base + found
        self._at = newline + 1 if found >= 0 else limit
        message = self._message
        if message is not None and message.text is not None and message.length is not None:
            text = max(start, message.text)  # the empty line before it is none of it
            message.newlines += self._buffer.count(b"\n", text - self._base, self._at - self._base)
        if found < 0:
            return
        line = self._line(newline + 1)
        form = form_of(line)
        before = self._buffer[max(0, found - BEFORE) : found + 1]
        empty = newline == 0 or _ends_empty(before)
        if form is not Form.NONE:
            self._separator(newline + 1, line, form, clean=empty)
        else:
            self._loose(newline + 1, line, empty=empty)

    def _line(self, offset: int) -> bytes:
        """The line at an offset, or `LONGEST` bytes of it."""
        start = offset - self._base
        end = self._buffer.find(b"\n", start, start + LONGEST)
        return self._buffer[start : end if end >= 0 else start + LONGEST]

    # -- messages

    def _loose(self, offset: int, line: bytes, *, empty: bool) -> None:
        """A line of text that begins with ``From`` and is no separator."""
        kind, severity = Kind.UNQUOTED, Severity.SUSPICIOUS if empty else Severity.INFORMATION
        after = offset - self._base + len(line) + 1
        if empty and _STARTS_HEADER.match(self._buffer, after):
            kind = Kind.MALFORMED
        message = self._message
        if message is None:
            self._found.add(kind, severity, "", offset)
        elif len(message.loose) < KEPT:
            message.loose.append((offset, kind, severity))
        else:
            message.loose_more[kind, severity] += 1

    def _separator(self, offset: int, line: bytes, form: Form, *, clean: bool) -> None:
        """A message begins; ``clean``: behind an empty line."""
        if not self._fulfilled(offset) and self._message is not None:
            self._end(self._message, offset, clean=clean)
        elif self._message is None and not clean:
            self._suspicious(Kind.MERGED, "no empty line before the first separator", offset)
        self._start(offset, line, form)

    def _start(self, offset: int, line: bytes, form: Form) -> None:
        if form is Form.ACCEPTED:
            detail = f"not as RFC 4155 has it: {_quoted(line)}"
            self._found.add(Kind.VARIANT, Severity.INFORMATION, detail, offset)
        self._messages += 1
        newline = offset + len(line)
        self._message = _Message(offset, newline)
        self._at = newline
        self._digest, self._digested = _fresh(), newline

    def _end(self, message: _Message, end: int, *, clean: bool, last: bool = False) -> None:
        """A message ends at ``end``; ``clean``: with an empty line."""
        if message.text is None:
            where = "at the end of the file" if last else f"at offset {end}"
            what = "nothing but a separator" if end <= message.header + 1 else "the header"
            detail = f"{what}, which ends {where}"
            self._found.add(Kind.CUT_HEADER, Severity.DAMAGE, detail, message.start, at_end=last)
            return
        size = end - message.text
        fits = _fits(message, end)
        if message.length is not None and message.length > size and len(self._claims) < CLAIMS:
            promised = message.text + message.length
            mark = self._found.mark()
            self._claims.append(_Claim(message.start, promised, mark, self._messages))
        self._tell_loose(message, fits=fits)
        if message.length is not None and not fits:
            self._judge_length(message, size, message.length, clean=clean, last=last)
        if not clean and not last:
            severity = Severity.SUSPICIOUS if fits else Severity.DAMAGE
            detail = f"the message at offset {message.start} does not end with an empty line"
            self._found.add(Kind.MERGED, severity, detail, end)
        if not self._claims:
            self._compare(message, end)

    def _tell_loose(self, message: _Message, *, fits: bool) -> None:
        """Tell of the From lines in a message's text; its Content-Length protects them if it is right."""
        for offset, kind, severity in message.loose:
            if fits:
                self._found.add(Kind.UNQUOTED, Severity.INFORMATION, "in a text", offset)
            else:
                detail = "a header follows" if kind is Kind.MALFORMED else "in a text"
                self._found.add(kind, severity, detail, offset)
        for (kind, severity), number in message.loose_more.items():
            self._found.count(
                *((Kind.UNQUOTED, Severity.INFORMATION) if fits else (kind, severity)), number
            )

    def _judge_length(
        self, message: _Message, size: int, length: int, *, clean: bool, last: bool
    ) -> None:
        detail = f"Content-Length {length}, and {size} bytes of text"
        counted_crlf = abs(size + message.newlines - length) <= 2
        if length < size or (counted_crlf and clean):
            self._found.add(Kind.OTHER_LENGTH, Severity.INFORMATION, detail, message.start)
            return
        severity = Severity.SUSPICIOUS if clean and not last else Severity.DAMAGE
        self._found.add(Kind.SHORTER, severity, detail, message.start, at_end=last)

    def _fulfilled(self, offset: int) -> bool:
        """Whether a separator, or the end, is where an earlier message's Content-Length says."""
        self._claims = [claim for claim in self._claims if claim.end + 2 >= offset]
        for number, claim in enumerate(self._claims):
            if claim.end <= offset:
                inside = self._messages - claim.messages
                self._found.back_to(claim.mark)
                self._messages = claim.messages
                detail = f"{inside} lines like separators within its Content-Length"
                self._found.add(Kind.INSIDE, Severity.SUSPICIOUS, detail, claim.start)
                del self._claims[number:]
                return True
        return False

    def _settle_end(self, end: int) -> None:
        tail = self._nuls.tail
        whole = self._fulfilled(end)
        if not whole and self._message is not None:
            self._end(self._message, end, clean=_ends_empty(tail), last=True)
            whole = _fits(self._message, end)
        if not tail.endswith(b"\n"):
            severity = Severity.SUSPICIOUS if whole else Severity.DAMAGE
            self._found.add(Kind.CUT_AT_END, severity, "no newline at the end", end, at_end=True)
        elif not _ends_empty(tail) and not (self._message and self._message.text is None):
            self._found.add(
                Kind.NO_EMPTY_LINE_AT_END, Severity.SUSPICIOUS, "no empty line", end, at_end=True
            )

    # -- identical messages

    def _digest_to(self, offset: int) -> None:
        if offset > self._digested and len(self._seen) < REMEMBERED:
            start = max(0, self._digested - self._base)
            self._digest.update(memoryview(self._buffer)[start : offset - self._base])
        self._digested = max(offset, self._digested)

    def _compare(self, message: _Message, end: int) -> None:
        """Compare a message with those before it, but for its separator."""
        if len(self._seen) >= REMEMBERED:
            return
        self._digest_to(end)
        name = self._digest.digest()
        if name in self._seen:
            detail = "an earlier message has the same header and text"
            self._found.add(Kind.DUPLICATE, Severity.INFORMATION, detail, message.start)
        self._seen.add(name)

    def _damage(self, kind: Kind, detail: str, offset: int) -> None:
        self._found.add(kind, Severity.DAMAGE, detail, offset)

    def _suspicious(self, kind: Kind, detail: str, offset: int) -> None:
        self._found.add(kind, Severity.SUSPICIOUS, detail, offset)


def _ends_empty(text: bytes) -> bool:
    """Whether a text ends with an empty line."""
    return text.endswith((b"\n\n", b"\n\r\n"))


def _fits(message: _Message, end: int) -> bool:
    """Whether a message that ends at ``end`` is as long as its Content-Length says, an empty line more or less."""
    if message.text is None or message.length is None:
        return False
    return 0 <= end - message.text - message.length <= len(b"\r\n")


def _quoted(line: bytes) -> str:
    """The start of a line, for people; what is not ASCII is escaped."""
    return repr(line[:60])[1:]


def _fresh() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=12)
