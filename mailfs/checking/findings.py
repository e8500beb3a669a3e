"""What a check can find, how bad it is, and what to do about it.

``damage`` means that mail is lost, torn or hidden, or that the file cannot be read. ``suspicious`` is what damage
leaves behind, or an invitation to it, and may also be harmless. ``information`` is no fault.

A mailbox may hold any number of faults, so a `Collector` keeps the first `KEPT` of a kind and counts the rest.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass
from typing import Final

KEPT: Final = 20
"""Findings of one kind and severity that are kept of one mailbox: enough to see what it is."""


class Severity(enum.StrEnum):
    """How bad it is."""

    DAMAGE = "damage"
    SUSPICIOUS = "suspicious"
    INFORMATION = "information"


class Kind(enum.Enum):
    """What can be found: its name in JSON, and what to do about it. docs/check.md lists them with their severities."""

    def __init__(self, code: str, remedy: str) -> None:
        self.code = code
        self.remedy = remedy

    # The text of a mailbox
    NO_SEPARATOR = (
        "no-separator",
        (
            "Mail readers do not see what is before the first separator. Look what it is; if it is mail, put a line"
            " 'From MAILER-DAEMON Thu Jan  1 00:00:00 1970' before it."
        ),
    )
    MALFORMED = (
        "malformed-separator",
        (
            "If a message begins here, correct the line to 'From ADDRESS DATE', the date as in 'Thu Jan  1"
            " 00:00:00 1970';"
            " if it is text, put a '>' before it."
        ),
    )
    UNQUOTED = (
        "unquoted-from",
        "Simple programs take this line of text for the beginning of a message. A '>' before it prevents that.",
    )
    VARIANT = (
        "separator-variant",
        "None: mail readers accept this form, though RFC 4155 has another.",
    )
    MERGED = (
        "no-empty-line-before",
        (
            "The message before this one was cut off, or its writer forgot the empty line. Look at its end;"
            " insert an empty"
            " line before the separator."
        ),
    )
    NO_HEADER = ("no-header", "The message has no header. Look whether its beginning is elsewhere.")
    CUT_HEADER = ("cut-header", "Half a message: ask the sender, or look for another copy.")
    HEADER_LINE = (
        "header-line",
        (
            "A line in the header is none; some programs take it for the beginning of the text. Insert an empty line"
            " before it if that is what it is."
        ),
    )
    CUT_AT_END = (
        "cut-at-end",
        "Half a message at the end, or one that is being written. Look again later.",
    )
    NO_EMPTY_LINE_AT_END = (
        "no-empty-line-at-end",
        "The last message may have been cut at the end of a line. If it is whole, add an empty line.",
    )
    NUL = (
        "nul-bytes",
        "A hole that a crash has left, or a broken message. Text that was here has to come from a backup.",
    )
    NUL_AT_END = (
        "nul-bytes-at-end",
        "alpine pads a mailbox so while it saves. If no program has it open, cut them off.",
    )
    SHORTER = (
        "shorter-than-content-length",
        "The message was cut off, or its Content-Length is not of this system's making. Look at its end.",
    )
    OTHER_LENGTH = (
        "other-content-length",
        "None: the message was changed after the header was made, or its line ends were counted otherwise.",
    )
    INSIDE = (
        "separator-in-message",
        (
            "The text of a message with Content-Length has lines like separators. Programs that ignore that"
            " header split"
            " it there; a '>' before the lines prevents that."
        ),
    )
    DUPLICATE = ("duplicate", "None needed: the mailbox has this message before, byte for byte.")
    CHANGED = ("changed-while-checked", "Programs are at work here: check it again.")
    IN_USE = ("in-use", "None: somebody holds the mailbox, and may be writing.")
    UNREADABLE = (
        "unreadable",
        "Check as root, or have the disk checked if it is an error of input.",
    )

    # Names
    LINKS = (
        "several-links",
        "Find the other name (find -inum) and remove one: programs refuse such mailboxes.",
    )
    SET_ID = ("set-id", "chmod ug-s")
    WORLD_WRITABLE = ("world-writable", "chmod o-w: anybody may change this mail, and lock it.")
    NO_ACCOUNT = (
        "owner-without-account",
        "chown it to whom it belongs; a later account might get this number.",
    )
    NOT_A_FILE = (
        "not-a-file",
        "Programs that follow it, or open it, can be misled. Remove it if nobody needs it.",
    )
    TEMPORARY = (
        "temporary-file",
        "Left by a program that has ended, if it is old: remove it then.",
    )
    LOCK_LIVE = ("lock-live", "None: somebody holds the mailbox.")
    LOCK_STALE = (
        "lock-stale",
        (
            "mailfs removes it when the mailbox is used next; without it, make sure that no program works"
            " on the mailbox,"
            " and remove it."
        ),
    )
    LOCK_VOID = (
        "lock-void",
        (
            "mailfs removes it when the mailbox is used next, as its owner may not write the mailbox; other"
            " programs wait"
            " for it. Remove it."
        ),
    )

    # .mailfs
    STATE = ("state", "None.")
    RESCUE = (
        "rescue",
        "Look at the files in .mailfs/rescue, give them to their owners, and remove them.",
    )
    JOURNAL = ("journal", "`mailfs mount` or `mailfs recover` does what is said here.")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found.

    Attributes:
        kind: what it is.
        severity: how bad it is.
        detail: in words; may hold anything, and is escaped when shown.
        offset: where in the mailbox, in bytes; None if it is not about a place.
        count: how many there are of it; more than 1 only for what a `Collector` did not keep.
        at_end: it is about the end of the file, where a program may be writing.
    """

    kind: Kind
    severity: Severity
    detail: str
    offset: int | None = None
    count: int = 1
    at_end: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """A state of a `Collector` that it can go back to."""

    kept: int
    counts: Counter[tuple[Kind, Severity]]


class Collector:
    """Findings of one mailbox in bounded memory."""

    def __init__(self) -> None:
        self._kept: list[Finding] = []
        self._counts: Counter[tuple[Kind, Severity]] = Counter()

    def add(
        self, kind: Kind, severity: Severity, detail: str, offset: int, *, at_end: bool = False
    ) -> None:
        """Keep or count a finding."""
        self._counts[kind, severity] += 1
        if self._counts[kind, severity] <= KEPT:
            self._kept.append(Finding(kind, severity, detail, offset, at_end=at_end))

    def count(self, kind: Kind, severity: Severity, number: int) -> None:
        """Count findings of which more than `KEPT` are kept already."""
        self._counts[kind, severity] += number

    def mark(self) -> Mark:
        """Remember what was found so far."""
        return Mark(len(self._kept), self._counts.copy())

    def back_to(self, mark: Mark) -> None:
        """Forget what was found since."""
        del self._kept[mark.kept :]
        self._counts = mark.counts.copy()

    def findings(self) -> list[Finding]:
        """What was found, by place, and last the numbers of what was not kept."""
        more = [
            Finding(kind, severity, f"and {number - KEPT} more", count=number - KEPT)
            for (kind, severity), number in self._counts.items()
            if number > KEPT
        ]
        return sorted(self._kept, key=lambda finding: finding.offset or 0) + more
