"""Which messages of a window a save lacks."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.sessions.merge import line_break_before, missing_messages, split_messages


def message(name: str, extra: str = "") -> bytes:
    return f"From {name}\nMessage-ID: <{name}>\n{extra}\nbody of {name}\n\n".encode()


def nothing() -> bytes:
    return b""


def test_what_is_saved_is_not_kept_again() -> None:
    window = message("a") + message("b")
    assert missing_messages(window, message("a"), nothing) == message("b")
    assert missing_messages(window, window, nothing) == b""
    assert missing_messages(b"", message("a"), nothing) == b""


def test_a_changed_status_is_the_same_message() -> None:
    assert missing_messages(message("a"), message("a", "Status: RO\n"), nothing) == b""


def test_without_message_id_the_text_decides() -> None:
    one = b"From x\nSubject: 1\n\nhello\n"
    assert missing_messages(one, b"From x\nSubject: 1\nStatus: O\n\nhello\n\n", nothing) == b""
    assert missing_messages(one, b"From x\nSubject: 2\n\nhello\n", nothing) == one


def test_two_equal_messages_count_twice() -> None:
    assert missing_messages(message("a") * 2, message("a"), nothing) == message("a")


@given(st.lists(st.sampled_from([b"From a\n", b"text\n", b">From b\n", b"\n", b"From", b"x"])))
def test_pieces_are_the_text(parts: list[bytes]) -> None:
    text = b"".join(parts)
    pieces = split_messages(text)
    assert b"".join(pieces) == text
    assert all(piece.startswith(b"From ") for piece in pieces[1:])


@pytest.mark.parametrize(
    ("last", "appended", "between"),
    [(b"", b"From a", b""), (b"\n", b"From a", b""), (b"x", b"From a", b"\n"), (b"x", b"y", b"")],
)
def test_a_separator_is_on_a_line_of_its_own(last: bytes, appended: bytes, between: bytes) -> None:
    assert line_break_before(last, appended) == between


OLD = b"From x Mon\nSubject: old\n\nbody\n\n"
NEW = b"From y Tue\nSubject: new\n\nbody\n\n"


def test_a_message_that_was_edited_is_there() -> None:
    saved = (OLD + NEW).replace(b"body", b"BODY")
    assert missing_messages(NEW, saved, lambda: OLD) == b""
    assert missing_messages(NEW + NEW, saved, lambda: OLD) == NEW


def test_a_message_like_one_that_was_edited_is_not() -> None:
    """Two messages with the same separator and headers: what was saved is accounted for by the old one."""
    new = OLD.replace(b"body", b"another body")
    assert missing_messages(new, OLD.replace(b"body", b"BODY"), lambda: OLD) == new
    assert missing_messages(new, OLD, lambda: OLD) == new
    assert missing_messages(new, OLD + new.replace(b"body", b"BODY"), lambda: OLD) == b""


def test_an_edited_message_does_not_stand_for_an_old_one_that_was_deleted() -> None:
    assert missing_messages(NEW, b"", lambda: OLD) == NEW
    assert missing_messages(NEW, OLD, lambda: OLD + OLD) == NEW
