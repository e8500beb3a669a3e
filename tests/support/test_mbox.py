"""The check of mailboxes finds what it is there to find."""

from __future__ import annotations

import pytest

from tests.support.mbox import examine, message, names, verify_mbox

A, B, C = (message("w", number) for number in range(3))


def test_whole_mailbox_passes() -> None:
    verify_mbox(A + B + C, names("w", 3))


def test_added_headers_pass() -> None:
    verify_mbox(A.replace(b"X-Test-Id", b"Status: RO\nX-Test-Id"), names("w", 1))


def test_nothing_is_a_mailbox() -> None:
    verify_mbox(b"", [])
    assert examine(b"", names("w", 1)).faults() == {"lost": ["w-0"]}


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (A[:200] + B + A[200:] + C, "torn"),
        (A + B[:-40] + C, "torn"),
        (A + C, "lost"),
        (A + B + B + C, "doubled"),
        (A + C + B, "reordered"),
        (A + B + C + message("x", 0), "unexpected"),
        (b"\n" + A + B + C, "torn"),
        (A + b"junk\n" + B + C, "torn"),
        (A.replace(b"X-Test-Id", b"jnk\nX-Test-Id") + B + C, "torn"),
    ],
)
def test_faults_are_found(content: bytes, fault: str) -> None:
    assert fault in examine(content, names("w", 3)).faults()
