"""The rule of access control lists, against lists that setfacl made."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

from mailfs.policy import acl
from mailfs.policy.rights import Credentials

if TYPE_CHECKING:
    from pathlib import Path

OWNER, GROUP = 4001, 4002


@pytest.mark.parametrize(
    ("entries", "caller", "expected"),
    [
        ("u::rw,g::r,o::-,u:7:rw,m::rw", Credentials(7, 7), True),
        ("u::rw,g::r,o::-,u:7:rw,m::r", Credentials(7, 7), False),
        ("u::rw,g::r,o::-,u:7:rw,m::rw", Credentials(8, GROUP), False),  # the mode would say rw
        ("u::rw,g::rw,o::-,u:7:r,m::rw", Credentials(8, 8, frozenset({GROUP})), True),
        (
            "u::rw,g::rw,o::-,u:7:r,m::rw",
            Credentials(7, GROUP),
            False,
        ),  # the user's entry comes first
        ("u::rw,g::-,o::-,g:9:rw,m::rw", Credentials(8, 9), True),
        ("u::rw,g::-,o::rw,g:9:r,m::rw", Credentials(8, 9), False),  # in a group: not "other"
        ("u::rw,g::-,o::rw,g:9:r,m::rw", Credentials(8, 8), True),
        ("u::r,g::rw,o::rw,g:9:rw,m::rw", Credentials(OWNER, GROUP), False),
    ],
)
def test_as_the_kernel_judges(
    tmp_path: Path, entries: str, caller: Credentials, expected: bool
) -> None:
    file = tmp_path / "file"
    file.touch()
    done = subprocess.run(["setfacl", "--set", entries, file], capture_output=True, timeout=10)
    assert done.returncode == 0, done.stderr
    text = os.getxattr(file, acl.ATTRIBUTE)
    assert acl.may_write(text, OWNER, GROUP, caller) is expected


@pytest.mark.parametrize("text", [b"", b"\x02\0\0\0x", b"\x03\0\0\0", b"\x02\0\0\0"])
def test_what_cannot_be_read_lets_nobody_write(text: bytes) -> None:
    assert not acl.may_write(text, OWNER, GROUP, Credentials(7, 7))
