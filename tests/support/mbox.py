"""Messages that can be told whole from torn, and the check of a mailbox made of them.

A message carries its name (``writer-number``), the length and checksum of its body, and ends with a
line that names it again:

    From writer@test Thu Jan  1 00:00:00 2026
    X-Test-Id: writer-number
    X-Test-Length: 321
    X-Test-Sum: 1a2b3c4d
    (blank)
    body of 321 bytes, whose last line is "end writer-number"
    (blank)

Programs may add header lines of their own (Status, X-UID …) but nothing else.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

_ADDED = re.compile(
    rb"(status|x-status|x-uid|x-imap|x-imapbase|x-keywords|content-length|lines|return-path"
    rb"|delivered-to|received|date|from|to|subject|message-id|envelope-to|x-original-to"
    rb"|mime-version|content-[a-z-]*):",
    re.IGNORECASE,
)


def message(writer: str, number: int, size: int = 300, *, envelope: bool = True) -> bytes:
    """One message of about ``size`` bytes of body; without its ``From `` line for programs that
    write their own.
    """
    name = f"{writer}-{number}".encode()
    lines = []
    length = 0
    line = 0
    while length < size:
        text = b"%s line %d of a body that is to stay whole\n" % (name, line)
        lines.append(text)
        length += len(text)
        line += 1
    lines.append(b"end %s\n" % name)
    body = b"".join(lines)
    head = b"From %s@test Thu Jan  1 00:00:00 2026\n" % writer.encode() if envelope else b""
    head += b"X-Test-Id: %s\nX-Test-Length: %d\nX-Test-Sum: %08x\n\n" % (
        name,
        len(body),
        zlib.crc32(body),
    )
    return head + body + b"\n"


def names(writer: str, count: int) -> list[str]:
    """The names of a writer's messages."""
    return [f"{writer}-{number}" for number in range(count)]


@dataclass
class Report:
    """What is wrong with a mailbox; empty if nothing is."""

    found: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reordered: list[str] = field(default_factory=list)

    def faults(self) -> dict[str, list[str]]:
        """The faults by kind."""
        kinds = ("torn", "lost", "doubled", "unexpected", "reordered")
        return {kind: getattr(self, kind) for kind in kinds if getattr(self, kind)}


def _split(content: bytes) -> tuple[bytes, list[bytes]]:
    starts = [found.start() for found in re.finditer(rb"^From ", content, re.MULTILINE)]
    ends = [*starts[1:], len(content)]
    if not starts:
        return content, []
    head = content[: starts[0]]
    return head, [content[a:b] for a, b in zip(starts, ends, strict=True)]


def _judge(text: bytes) -> tuple[str, str]:
    """Name a message and say what is wrong with it, or ""."""
    head, blank, rest = text.partition(b"\n\n")
    ours: dict[bytes, bytes] = {}
    wrong = "" if blank else "no end of header"
    for line in head.split(b"\n")[1:]:
        key, _, value = line.partition(b": ")
        if key.startswith(b"X-Test-"):
            wrong = wrong or ("header twice" if key in ours else "")
            ours[key] = value
        elif not _ADDED.match(line) and not line.startswith((b" ", b"\t")):
            wrong = wrong or f"strange header line {line[:60]!r}"
    name = ours.get(b"X-Test-Id", b"?").decode("ascii", "replace")
    try:
        length, total = int(ours[b"X-Test-Length"]), int(ours[b"X-Test-Sum"], 16)
    except (KeyError, ValueError):
        return name, wrong or "header lines missing"
    body, tail = rest[:length], rest[length:]
    if len(body) < length:
        return name, wrong or f"cut short at {len(body)} of {length} bytes"
    if zlib.crc32(body) != total or not body.endswith(b"end %s\n" % name.encode()):
        return name, wrong or "body differs"
    if tail.strip(b"\n"):
        return name, wrong or f"followed by {tail[:60]!r}"
    return name, wrong


def examine(content: bytes, expected: Iterable[str]) -> Report:
    """Compare a mailbox with the names of the messages it must hold."""
    report = Report()
    head, messages = _split(content)
    if head:
        report.torn.append(f"before the first message: {head[:60]!r}")
    for text in messages:
        name, wrong = _judge(text)
        if (
            b"MAILER-DAEMON" in text.split(b"\n", 1)[0] and b"X-Test-" not in text
        ):  # c-client's and Dovecot's folder data
            continue
        if wrong:
            report.torn.append(f"{name}: {wrong}")
        else:
            report.found.append(name)
    wanted = list(expected)
    count = Counter(report.found)
    report.lost = [name for name in wanted if not count[name]]
    report.doubled = [name for name, times in count.items() if times > 1]
    report.unexpected = sorted(set(count) - set(wanted))
    last: dict[str, int] = {}
    for name in report.found:
        writer, _, number = name.rpartition("-")
        if int(number) < last.get(writer, -1):
            report.reordered.append(name)
        last[writer] = int(number)
    return report


def verify_mbox(content: bytes, expected: Iterable[str]) -> None:
    """Assert that a mailbox holds exactly these messages, each whole, each writer's in its
    order.
    """
    faults = examine(content, expected).faults()
    short = {kind: f"{len(items)}: {items[:5]}" for kind, items in faults.items()}
    assert not short, f"mailbox of {len(content)} bytes: {short}"
