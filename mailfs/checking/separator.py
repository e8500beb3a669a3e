"""Which lines begin a message: ``From ADDRESS DATE``.

RFC 4155 (appendix A) asks for an address and a date as asctime(3) writes it. Real mailboxes have more forms, which mail
readers accept: mutt's `is_from` (from.c) and Dovecot's `mbox_from_parse` (mbox-from.c) let the address be missing or
contain spaces, the seconds be missing, time zones stand before or behind the year, day and month be swapped as in a
Date header, and anything follow, such as ``remote from HOST``.
"""

from __future__ import annotations

import enum
import re
from typing import Final

PREFIX: Final = b"From "

LONGEST: Final = 1024
"""Bytes of a line that are looked at; mutt reads separators into a buffer of this size (LONG_STRING)."""

_DAY: Final = rb"(?:Sun|Mon|Tue|Wed|Thu|Fri|Sat)"
_MONTH: Final = rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_TIME: Final = rb"\d\d?:\d\d(?::\d\d)?"

# Two spaces before the date are what procmail, Postfix and Exim write, so that is no deviation worth telling.
_RFC: Final = re.compile(
    rb"From [^ \t]+ {1,2}" + _DAY + b" " + _MONTH + rb" [ 0-3]\d [0-2]\d:[0-5]\d:[0-6]\d \d{4}\r?"
)
_ACCEPTED: Final = re.compile(
    rb"From (?:.*[ \t])?"
    + _DAY
    + rb",?[ \t]+(?:"
    + (_MONTH + rb"[ \t]+\d\d?[ \t]+" + _TIME + rb"(?:[ \t]+[A-Z+-][A-Z0-9+-]*){0,2}[ \t]+\d{2,4}")
    + rb"|"
    + (rb"\d\d?[ \t]+" + _MONTH + rb"[ \t]+\d{2,4}[ \t]+" + _TIME)
    + rb")(?:[ \t].*)?\r?",
    re.IGNORECASE | re.DOTALL,
)


class Form(enum.Enum):
    """What a line that begins with ``From `` is."""

    RFC4155 = "RFC 4155"
    ACCEPTED = "another form that mail readers accept"
    NONE = "no separator"


def form_of(line: bytes) -> Form:
    """Judge a line that begins with ``From ``, without its line feed; `LONGEST` bytes of it are enough."""
    if _RFC.fullmatch(line):
        return Form.RFC4155
    if len(line) < LONGEST and _ACCEPTED.fullmatch(line):
        return Form.ACCEPTED
    return Form.NONE
