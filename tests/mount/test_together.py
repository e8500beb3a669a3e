"""The main job: programs that lock in different ways, and not at all, at one mailbox at the same time."""

from __future__ import annotations

import contextlib
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_readers import drawn_until, mutt
from tests.mount.test_writers import SHELL, write_sources
from tests.mount.work import fill, settled
from tests.support.mbox import names
from tests.support.processes import until
from tests.support.system import program

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User

COUNTS = {"procmail": 3, "dotlockfile": 5, "shell": 25}


@pytest.mark.timeout(200)
def test_procmail_mutt_vim_dotlockfile_and_a_shell(mail: Place, alice: User) -> None:
    """vim deletes one message and mutt another, while mail keeps coming: the others are all there, once and whole."""
    for name in ("procmail", "dotlockfile", "mutt", "vim"):
        program(name)
    assert mail.mailfs
    path = mail.path(alice)
    (alice.home / "rc").write_text(f"DEFAULT={path}\nLOGFILE={alice.home}/log\n:0:\n{path}\n")
    mail.crew.ok(["chown", alice.name, alice.home / "rc"])
    wanted = fill(mail, alice)
    vim = mail.crew.terminal(["vim", "-u", "NONE", "-N", path], user=alice)
    vim.wait_for("From old@test")
    vim.settle()
    jobs = []
    for name, count in COUNTS.items():
        script = SHELL[name].replace("; done", "; sleep 0.2; done")
        argv = ["sh", "-c", script, "sh", write_sources(alice, name, count), path, str(count)]
        pipe = subprocess.PIPE
        jobs.append(mail.crew.start(argv, user=alice, stdout=pipe, stderr=subprocess.STDOUT))
        wanted += names(name, count)
    drawn_until(vim, lambda: mail.content(alice).count(b"\nend ") > 5, "mail has come")
    vim.send(":1,/^end old-0/+1d\r")
    vim.settle()
    vim.send(":wq\r")
    vim.wait_for(
        "Do you really want to write"
    )  # it has seen the time stamp; on a plain spool "y" would lose the mail
    vim.send("y")
    assert vim.finish() == 0
    # It may have had to wait longer than a close does; a mail reader that sees it come is at a loss about its flags.
    until(lambda: b"end old-0\n" not in mail.content(alice), 10, "vim's save is there")
    reader = mail.crew.terminal(mutt(mail, alice), user=alice)
    reader.wait_for(r"Msgs:")
    reader.settle()
    reader.send("1\r")
    reader.settle()
    reader.send("d")
    reader.settle()
    for _ in range(
        4
    ):  # it gives up after five seconds ("Unable to write"), as it does on a busy plain spool
        reader.send("$")
        with contextlib.suppress(AssertionError):
            drawn_until(reader, lambda: b"end old-1\n" not in mail.content(alice), "synced")
            break
    assert b"end old-1\n" not in mail.content(alice), reader.screen[-2000:]
    reader.settle()
    reader.send("q")
    assert reader.finish() == 0
    mail.crew.finish(jobs, 90)
    settled(mail, alice, [name for name in wanted if name not in ("old-0", "old-1")])
