"""What becomes of a message on its way into a mailbox."""

from __future__ import annotations

import io

import pytest

from mailfs.sessions.message import is_sender, mbox_text, separator

DATE = b"Thu Jan  1 00:00:00 1970"
ME = b"From me " + DATE + b"\n"


def text(given: bytes, sender: bytes | None = None) -> bytes:
    return b"".join(mbox_text(io.BytesIO(given), sender=sender, otherwise=b"me", now=0))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (b"", b""),
        (b"\n", ME + b"\n"),
        (b"A: b", ME + b"A: b\n\n"),
        (b"A: b\n", ME + b"A: b\n\n"),
        (b"A: b\n\nx\n\n", ME + b"A: b\n\nx\n\n"),
        (b"A: b\n\nx\n\n\n\n", ME + b"A: b\n\nx\n\n\n\n"),
        (b"From a now\nA: b\n\nx\n", b"From a now\nA: b\n\nx\n\n"),
        (b"From a now", b"From a now\n\n"),
        (b"From a now\r\nA: b\r\n\r\nFrom x\r\n", b"From a now\nA: b\n\n>From x\n\n"),
        (b"A: b\r\n\r\nx\r\n\r\n", ME + b"A: b\n\nx\n\n"),
        (b"A: b\n\nx\r\n", ME + b"A: b\n\nx\r\n\n"),
        (b"A: b\n\nFrom x\n>From y\n From z\nFromage\n",
         ME + b"A: b\n\n>From x\n>From y\n From z\nFromage\n\n"),
        (b"A: b\n\n\0\xff\x0c\n", ME + b"A: b\n\n\0\xff\x0c\n\n"),
        (b"A: b\rFrom x", ME + b"A: b\rFrom x\n\n"),
    ],
)  # fmt: skip
def test_text(given: bytes, wanted: bytes) -> None:
    assert text(given) == wanted


def test_a_sender_replaces_the_separator() -> None:
    wanted = separator(b"you@x", 0) + b"A: b\n\n"
    assert text(b"From a now\nA: b\n", b"you@x") == wanted
    assert text(b"A: b\n", b"you@x") == wanted
    assert text(b"From " + 200_000 * b"a" + b"\nA: b\n", b"you@x") == wanted
    assert text(b"From a", b"you@x") == separator(b"you@x", 0) + b"\n"


def test_long_lines_stay_whole() -> None:
    line = b"x" * 65530 + b"\r\nFrom y" * 3 + b"z" * 200_000
    assert (
        text(b"A: b\n\n" + line) == ME + b"A: b\n\n" + line.replace(b"\nFrom", b"\n>From") + b"\n\n"
    )


def test_senders() -> None:
    assert is_sender(b"alice@example.org")
    assert is_sender("älice@example.org".encode())
    for wrong in (b"", b"a b", b"a\nb", b"a\x7f"):
        assert not is_sender(wrong)
