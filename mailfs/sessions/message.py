"""One message as a mailbox holds it: a separator line, the text, an empty line (RFC 4155).

What is done to a message that comes from a pipe, and no more:

* It begins with a separator. A first line that starts with ``From `` is taken for one; otherwise
  one is made of the sender and the time, in UTC, as RFC 4155 has it.
* Any other line that starts with ``From `` gets a ``>`` before it ("mboxo"), as procmail, maildrop
  and Postfix do. Lines that start with ``>From `` stay as they are: mail readers do not take a
  second ``>`` away.
* It ends with an empty line.
* If its first line ends in CRLF, it is taken for text from the network, and each CRLF becomes LF.

Every other byte stays as it is, NUL included: a message is nobody's to repair on its way.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol

from mailfs.sessions.merge import SEPARATOR

if TYPE_CHECKING:
    from collections.abc import Iterator

PIECE = 65536
"""Bytes of a line that are kept in memory: a message may be one line of any length."""


class Source(Protocol):
    """What a message is read from; any binary file."""

    def readline(self, size: int, /) -> bytes:
        """The next line, or ``size`` bytes of it."""


def separator(sender: bytes, seconds: float) -> bytes:
    """Make the line that begins a message.

    Args:
        sender: an address without spaces, as `is_sender` says.
        seconds: since the epoch.

    """
    return b"%s%s %s\n" % (SEPARATOR, sender, time.asctime(time.gmtime(seconds)).encode())


def is_sender(text: bytes) -> bool:
    """Whether a text can stand in a separator: one word without control characters."""
    return bool(text) and all(byte > 0x20 and byte != 0x7F for byte in text)


def mbox_text(
    source: Source, *, sender: bytes | None, otherwise: bytes, now: float
) -> Iterator[bytes]:
    """Turn a message into what is appended to a mailbox, in pieces; nothing if there is none.

    Args:
        source: the message.
        sender: replaces what a separator of the message's own says.
        otherwise: the sender if there is neither.
        now: seconds since the epoch, for the separator.

    """
    piece = _piece(source)
    if not piece:
        return
    crlf = piece.endswith(b"\r\n")
    own = piece.startswith(SEPARATOR)
    if sender is not None or not own:
        yield separator(sender if sender is not None else otherwise, now)
    elif own:
        yield _unix(piece, crlf=crlf)
    line_start, empty_line = piece.endswith(b"\n") or not own, False
    if own:
        if sender is not None:  # its own separator goes, however long
            while piece and not piece.endswith(b"\n"):
                piece = _piece(source)
            line_start = True
        piece = _piece(source)
    while piece:
        piece = _unix(piece, crlf=crlf)
        if line_start and piece.startswith(SEPARATOR):
            yield b">"
        yield piece
        line_start, empty_line = piece.endswith(b"\n"), line_start and piece == b"\n"
        piece = _piece(source)
    yield (b"" if line_start else b"\n") + (b"" if empty_line else b"\n")


def _piece(source: Source) -> bytes:
    """A line, or a part of a long one that does not end between CR and LF."""
    piece = source.readline(PIECE)
    return piece + source.readline(1) if piece.endswith(b"\r") else piece


def _unix(piece: bytes, *, crlf: bool) -> bytes:
    return piece[:-2] + b"\n" if crlf and piece.endswith(b"\r\n") else piece
