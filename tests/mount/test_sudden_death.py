"""The daemon is killed again and again, at random moments, while mail is delivered and read."""

from __future__ import annotations

import random
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.conftest import fresh_spool
from tests.support.mbox import examine, message
from tests.support.mounts import MODES, Mount
from tests.support.prefork import Prefork
from tests.support.processes import Crew, until

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.users import User

DEATHS, WRITERS, SEED = 20, 4, 3

WRITER = """
import os, sys, time
path, source, told = sys.argv[1:4]
texts = open(source, "rb").read().split(b"\\0")
out = open(told, "w", buffering=1)
for number, text in enumerate(texts):
    while True:
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND)
            break
        except OSError:
            time.sleep(0.005)
    well = True
    try:
        try:
            for at in range(0, len(text), 200):
                os.write(fd, text[at:at + 200])
        finally:
            os.close(fd)
    except OSError:
        well = False
    print(number, "well" if well else "failed", file=out)
"""

READER = """
import fcntl, os, sys, time
path = sys.argv[1]
while True:
    try:
        fd = os.open(path, os.O_RDWR)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            text = os.read(fd, 1 << 24)
            at = text.find(b"Status: ")
            if at >= 0:
                os.pwrite(fd, b"Status: O " if text[at:at + 10] == b"Status: RO" else b"Status: RO", at)
            fcntl.flock(fd, fcntl.LOCK_UN)
        finally:
            os.close(fd)
    except OSError:
        pass
    time.sleep(0.01)
"""


@pytest.mark.timeout(120)
def test_no_message_is_lost(machine: Path, people: dict[str, User], alice: User) -> None:
    chance = random.Random(SEED)
    spool = fresh_spool(machine, people, MODES[1])
    file = spool / alice.name
    first = message("first", 0).replace(b"X-Test-Id", b"Status: O \nX-Test-Id", 1)
    file.write_bytes(first)
    prefork, crew = Prefork({}), Crew()
    path = str(spool.parent / "mnt" / alice.name)
    mount = Mount.start(spool.parent, spool, prefork=prefork)
    try:
        tolds = []
        for writer in range(WRITERS):
            source, told = alice.home / f"source{writer}", alice.home / f"told{writer}"
            texts = [message(f"w{writer}", number, 600) for number in range(5000)]
            source.write_bytes(b"\0".join(texts))
            source.chmod(0o644)
            told.unlink(missing_ok=True)
            crew.python(WRITER, path, str(source), str(told), user=alice)
            tolds.append(told)
        crew.python(READER, path, user=alice)
        until(lambda: all(told.exists() for told in tolds), 20, "writers at work")
        for _ in range(DEATHS):
            time.sleep(chance.uniform(0.05, 0.5))
            mount.process.kill()
            assert mount.process.wait(10) == -signal.SIGKILL
            mount = Mount.start(spool.parent, spool, prefork=prefork)
        assert not crew.close()
        complaints = mount.stop()
    finally:
        crew.close()
        mount.destroy()
        prefork.close()
    assert not complaints
    lines = [
        (writer, line.split())
        for writer in range(WRITERS)
        for line in tolds[writer].read_text().splitlines()
    ]
    told_well = [f"w{writer}-{number}" for writer, (number, how) in lines if how == "well"]
    report = examine(file.read_bytes(), ["first-0", *told_well])
    assert len(told_well) > DEATHS
    faults = report.faults()
    faults.pop("unexpected", None)  # written, and the daemon was killed before it could say so
    assert not faults
