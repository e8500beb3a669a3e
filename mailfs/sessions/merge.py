"""Merging a stale save with the mail that came meanwhile (design: "stale rewrites").

An mbox file is a sequence of messages, each beginning with a line that starts with ``From `` at the start of the file
or after a line break (RFC 4155 asks for an empty line before it; some programs forget it, so we do not).

An agent's knowledge of a mailbox ends somewhere in a *window*: what lay before ``low`` it has read, what came after
``high`` it cannot have read, and of what lies between nobody knows. So messages of the window are compared with what
is saved, and kept only where the save does not have them; messages behind the window are new.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SEPARATOR = b"From "


def split_messages(text: bytes) -> list[bytes]:
    """Cut an mbox text into messages, separators included; joined they are ``text`` again.

    Text before the first separator is a piece of its own.
    """
    if not text:
        return []
    starts = [0]
    at = text.find(b"\n" + SEPARATOR)
    while at >= 0:
        starts.append(at + 1)
        at = text.find(b"\n" + SEPARATOR, at + 1)
    return [text[a:b] for a, b in zip(starts, [*starts[1:], len(text)], strict=True)]


def identity(message: bytes) -> bytes:
    """What makes two copies of a message the same one, though a mail reader changed its status headers.

    The separator line and the Message-ID where there is one; otherwise the text without the headers that mail readers
    keep their own notes in.
    """
    head, blank, body = message.partition(b"\n\n")
    separator, _, headers = head.partition(b"\n")
    found = _MESSAGE_ID.search(headers)
    if found:
        return separator + b"\n" + found.group(1).strip()
    return _NOTES.sub(b"", head + b"\n") + blank + body.rstrip(b"\n")


def likeness(message: bytes) -> bytes:
    """What two copies of a message have in common though somebody edited its body: separator line and headers."""
    return _NOTES.sub(b"", message.partition(b"\n\n")[0].rstrip(b"\n") + b"\n")


_MESSAGE_ID = re.compile(rb"^message-id:(.*)$", re.IGNORECASE | re.MULTILINE)
_NOTES = re.compile(
    rb"^(?:status|x-status|x-keywords|x-uid|x-imap|x-imapbase|content-length|lines):.*\n(?:[ \t].*\n)*",
    re.IGNORECASE | re.MULTILINE,
)


def missing_messages(window: bytes, saved: bytes, known: Callable[[], bytes]) -> bytes:
    """The messages of ``window`` that ``saved`` does not have, in order.

    A message is there if one of its identity is. If none is, it may have been edited: then it is there if more
    messages are like it in what was saved than the saver's former messages account for. Where that is wrong, a message
    is there twice; none is lost.

    Args:
        window: bytes of the mailbox that the saver may or may not have read.
        saved: what the saver wrote.
        known: gives what of the mailbox the saver has surely read; only called if messages were edited.

    """
    if not window:
        return b""
    theirs = split_messages(saved)
    have = Counter(identity(message) for message in theirs)
    coming = split_messages(window)
    unseen = []
    for message in coming:
        name = identity(message)
        if have[name] > 0:
            have[name] -= 1
        else:
            unseen.append(message)
    if not unseen or not +have:
        return b"".join(unseen)
    former = split_messages(known())
    spare = Counter(likeness(m) for m in theirs)
    spare.subtract(likeness(m) for m in former)
    spare.subtract(likeness(m) for m in coming)
    for message in unseen:
        spare[likeness(message)] += 1
    kept = []
    for message in unseen:
        like = likeness(message)
        if spare[like] > 0:
            spare[like] -= 1
        else:
            kept.append(message)
    return b"".join(kept)


def line_break_before(last: bytes, appended: bytes) -> bytes:
    """What must stand between the end of a mailbox and an append, so that a separator is on a line of its own.

    Args:
        last: the last byte of the mailbox, empty for an empty one.
        appended: the beginning of what is appended.

    """
    return b"\n" if last not in (b"", b"\n") and appended.startswith(SEPARATOR) else b""
