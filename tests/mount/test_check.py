"""``mailfs check`` through a mount and on the real spool behind it, while both are in use."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.mounts import Place
    from tests.support.users import User

WHOLE = b"From bob Thu Jan  1 00:00:00 1970\nSubject: x\n\ntext\n\n"


def check(spool: Path, *names: str) -> tuple[int, dict[str, Any]]:
    command = [sys.executable, "-m", "mailfs", "check", "--json", str(spool), *names]
    done = subprocess.run(command, capture_output=True, timeout=30, check=False)
    assert done.stderr == b""
    return done.returncode, json.loads(done.stdout)


def fill(path: Path, content: bytes) -> None:
    """Without O_CREAT, which fs.protected_regular refuses in a sticky directory."""
    with path.open("r+b") as file:
        file.write(content)


def kinds(document: dict[str, Any], name: str | None) -> set[str]:
    (one,) = [one for one in document["checked"] if one["name"] == name]
    return {finding["kind"] for finding in one["findings"]}


def test_both_sides_of_a_mount(mail: Place, alice: User) -> None:
    fill(mail.spool / alice.name, WHOLE)
    holder = mail.crew.actor(alice)
    holder.do(f"lock('flock', {mail.path(alice)!r})")
    code, inside = check(mail.dir)
    assert (code, inside["mount"]) == (0, True)
    assert kinds(inside, None) == {"state"}
    assert kinds(inside, f"{alice.name}.lock") == {"lock-live"}
    code, outside = check(mail.spool)
    assert (code, outside["mount"]) == (0, False)
    details = [finding["detail"] for finding in outside["checked"][0]["findings"]]
    assert any(detail.startswith("served by daemon ") for detail in details)
    assert kinds(outside, f"{alice.name}.lock") == {"lock-live"}


def test_a_torn_mailbox_is_found_through_the_mount(mail: Place, alice: User) -> None:
    fill(mail.spool / alice.name, WHOLE + WHOLE[:40])
    for spool in (mail.dir, mail.spool):
        code, document = check(spool, alice.name)
        assert code == 65
        assert kinds(document, alice.name) == {"cut-header", "cut-at-end"}
