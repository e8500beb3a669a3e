"""Which programs are meant by what the configuration names."""

from __future__ import annotations

import pytest

from mailfs.policy.programs import Programs

NAMED = Programs(session_hold=frozenset({"/usr/lib/dovecot/pop3", "popper"}))


@pytest.mark.parametrize(
    ("executable", "held"),
    [
        ("/usr/lib/dovecot/pop3", True),
        ("/usr/lib/dovecot/pop3 (deleted)", True),
        ("/home/bob/pop3", False),
        ("/usr/lib/dovecot/imap", False),
        ("/usr/sbin/popper", True),
        ("/home/bob/popper (deleted)", True),
        ("popper/x", False),
        ("", False),
        (None, False),
    ],
)
def test_programs_are_known_by_path_or_base_name(executable: str | None, held: bool) -> None:
    assert NAMED.holds_session(executable) is held


def test_nobody_is_looked_at_if_no_program_is_named() -> None:
    assert not Programs()
    assert NAMED
