from __future__ import annotations

import os
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.policy.rights import (
    Credentials,
    directory_mode,
    may_read,
    may_remove,
    may_write,
    may_write_new,
)

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

ALICE, BOB, ROOT, MAIL, USERS = 1001, 1002, 0, 8, 100


@pytest.mark.parametrize(
    ("mode", "caller", "reads", "writes"),
    [
        (0o660, Credentials(ALICE, USERS), True, True),
        (0o660, Credentials(BOB, USERS), False, False),
        (0o660, Credentials(BOB, MAIL), True, True),
        (0o660, Credentials(BOB, USERS, frozenset({MAIL})), True, True),
        (0o644, Credentials(BOB, USERS), True, False),
        (0o622, Credentials(BOB, USERS), False, True),
        (0o000, Credentials(ROOT, USERS), True, True),
        (0o066, Credentials(ALICE, MAIL), False, False),  # only the owner's class counts
        (0o606, Credentials(BOB, MAIL), False, False),  # only the group's
        (0o600, Credentials(ALICE, MAIL), True, True),
    ],
)
def test_ordinary_rules(mode: int, caller: Credentials, reads: bool, writes: bool) -> None:
    assert may_read(ALICE, MAIL, mode, caller) is reads
    assert may_write(ALICE, MAIL, mode, caller) is writes
    assert may_write(ALICE, MAIL, stat.S_IFREG | mode, caller) is writes


@pytest.mark.skipif(os.geteuid() != 0, reason="acting as other users needs root")
def test_the_kernel_says_the_same(tmp_path: Path) -> None:
    """Every mode and class, asked by a child that has taken the identity."""
    callers = [
        Credentials(ALICE, USERS),
        Credentials(BOB, MAIL),
        Credentials(BOB, USERS, frozenset({MAIL, 77})),
        Credentials(BOB, USERS, frozenset({77})),
    ]
    directory = os.open(tmp_path, os.O_RDONLY)
    os.fchmod(directory, 0o755)
    files = {mode: f"{mode:o}" for mode in range(0, 0o1000, 7)}
    for mode, name in files.items():
        (tmp_path / name).touch()
        os.chown(name, ALICE, MAIL, dir_fd=directory)
        os.chmod(name, mode, dir_fd=directory)
    for caller in callers:
        expected = [
            (may_read(ALICE, MAIL, mode, caller), may_write(ALICE, MAIL, mode, caller))
            for mode in files
        ]
        assert as_seen_by(caller, directory, files.values()) == expected
    os.close(directory)


OPEN = """
import os, sys
directory, uid, gid, *groups = map(int, sys.argv[1].split())
os.setgroups(groups); os.setresgid(gid, gid, gid); os.setresuid(uid, uid, uid)
for name in sys.argv[2:]:
    for flag in os.O_RDONLY, os.O_WRONLY:
        try:
            os.close(os.open(name, flag, dir_fd=directory))
            print("yes")
        except PermissionError:
            print("no")
"""


def as_seen_by(
    caller: Credentials, directory: int, names: Iterable[str]
) -> list[tuple[bool, bool]]:
    """What open() allows to the caller, for each file."""
    who = " ".join(map(str, (directory, caller.uid, caller.gid, *caller.groups)))
    command = [sys.executable, "-I", "-S", "-c", OPEN, who, *names]
    answers = subprocess.check_output(command, pass_fds=[directory], text=True).split()
    allowed = [answer == "yes" for answer in answers]
    return list(zip(allowed[::2], allowed[1::2], strict=True))


def test_a_mailbox_that_does_not_exist_yet() -> None:
    assert may_write_new(ALICE, Credentials(ALICE, USERS))
    assert may_write_new(ALICE, Credentials(ROOT, USERS))
    assert not may_write_new(ALICE, Credentials(BOB, MAIL, frozenset({MAIL})))
    assert not may_write_new(None, Credentials(ALICE, USERS))
    assert may_write_new(None, Credentials(ROOT, ROOT))
    assert not may_write_new(ROOT, Credentials(ALICE, USERS))


def test_removing_is_the_owners() -> None:
    for uid, allowed in ((ALICE, True), (BOB, False), (ROOT, True), (42, True)):
        caller = Credentials(uid, MAIL, frozenset({MAIL}))
        assert may_remove(ALICE, 42, caller) is allowed


@pytest.mark.parametrize(
    ("backing", "shown"),
    [
        (0o2775, 0o2777),
        (0o1777, 0o777),
        (0o3777, 0o2777),
        (0o755, 0o777),
        (0o700, 0o700),
        (0o2770, 0o2770),
        (0o711, 0o733),
        (stat.S_IFDIR | 0o2775, 0o2777),
    ],
)
def test_directory_mode(backing: int, shown: int) -> None:
    assert directory_mode(backing) == shown
    assert directory_mode(backing, 0o1777) == 0o1777
    assert directory_mode(backing, 0) == 0


@given(st.integers(0, 0o177777))
def test_directory_mode_gives_nobody_more_than_writing(backing: int) -> None:
    shown = directory_mode(backing)
    assert not shown & stat.S_ISVTX
    assert shown & 0o6555 == backing & 0o6555
    assert shown & 0o222 >= backing & 0o222
