"""Dovecot delivers, and serves IMAP and POP3, on a plain spool and on mailfs (clients.md)."""

from __future__ import annotations

import os
import re
import select
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.mount.work import NEW, fill, owned, settled
from tests.support.mbox import message
from tests.support.system import program

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User


@pytest.fixture
def dovecot(place: Place, user: User) -> str:
    """Dovecot's configuration; it wants a mailbox of mode 0600 of users that are not in group
    mail.
    """
    place.crew.ok(["chmod", "600", place.path(user)], user=user)
    return owned(
        user,
        "dovecot.conf",
        "protocols =\nlog_path = /dev/stderr\nssl = no\nmail_privileged_group =\n"
        f"mail_location = mbox:~/dmail:INBOX={place.dir}/%u\n",
    )


def dialogue(process: subprocess.Popen[bytes], *turns: tuple[str, str], limit: float = 15) -> str:
    """Send a line and wait for an answer, in turn; gives all that was answered."""
    assert process.stdin
    assert process.stdout
    text = ""
    for line, answer in turns:
        if line:
            process.stdin.write(line.encode() + b"\r\n")
            process.stdin.flush()
        start, end = len(text), time.monotonic() + limit
        while not re.search(answer, text[start:], re.MULTILINE):
            ready, _, _ = select.select([process.stdout], [], [], max(0, end - time.monotonic()))
            part = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            assert part, f"no {answer!r} after {line!r}:\n{text}"
            text += part.decode(errors="replace")
    return text


def test_dovecot_lda(place: Place, user: User, dovecot: str) -> None:
    wanted = fill(place, user)
    argv = [program("dovecot-lda"), "-c", dovecot, "-f", "bob@example.org"]
    place.crew.ok(argv, user=user, content=message("new", 0, envelope=False))
    settled(place, user, [*wanted, "new-0"])


def talker(place: Place, user: User, argv: list[str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return place.crew.start(argv, user=user, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)


def test_dovecot_imap(place: Place, user: User, dovecot: str) -> None:
    wanted = fill(place, user)
    process = talker(place, user, [program("imap"), "-c", dovecot])
    dialogue(
        process,
        ("", r"PREAUTH"),
        ("a SELECT INBOX", r"3 EXISTS[\s\S]*^a OK"),
        ("b FETCH 2 BODY.PEEK[]", r"end old-1[\s\S]*^b OK"),
        (r"c STORE 1 +FLAGS (\Deleted)", r"^c OK"),
        ("d EXPUNGE", r"1 EXPUNGE[\s\S]*^d OK"),
        ("e LOGOUT", r"^e OK"),
    )
    assert process.wait(10) == 0
    settled(place, user, wanted[1:])


def test_dovecot_imap_sees_new_mail(place: Place, user: User, dovecot: str) -> None:
    wanted = fill(place, user)
    process = talker(place, user, [program("imap"), "-c", dovecot])
    dialogue(process, ("", r"PREAUTH"), ("a SELECT INBOX", r"3 EXISTS[\s\S]*^a OK"))
    place.crew.ok(["sh", "-c", 'cat >> "$0"', place.path(user)], user=user, content=NEW)
    place.holds(user, [*wanted, "new-0"])
    dialogue(
        process,
        ("b NOOP", r"4 EXISTS[\s\S]*^b OK"),
        (r"c STORE 2 +FLAGS (\Deleted)", r"^c OK"),
        ("d EXPUNGE", r"2 EXPUNGE[\s\S]*^d OK"),
        ("e LOGOUT", r"^e OK"),
    )
    assert process.wait(10) == 0
    settled(place, user, [wanted[0], wanted[2], "new-0"])


def test_dovecot_pop3(place: Place, user: User, dovecot: str) -> None:
    wanted = fill(place, user)
    process = talker(place, user, [program("pop3"), "-c", dovecot])
    dialogue(
        process,
        ("STAT", r"^\+OK 3 "),
        ("RETR 1", r"end old-0[\s\S]*^\."),
        ("DELE 1", r"^\+OK"),
        ("QUIT", r"^\+OK"),
    )
    assert process.wait(10) == 0
    settled(place, user, wanted[1:])
