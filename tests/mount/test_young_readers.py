"""Readers that take no lock and read piece by piece, next to those who deliver and rewrite.

Each rewrite marks every message it writes with a sign of its own (``X-Test-Gen``), and deliveries have none. So any
state of the mailbox that ever was is some messages with one sign, and behind them some without; a text put together
from two states would show two signs, or half a message.
"""

from __future__ import annotations

import re
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.conftest import fresh_spool, mounted
from tests.mount.test_writers import SHELL, write_sources
from tests.mount.work import fill, settled
from tests.support.mbox import examine, message, names
from tests.support.mounts import MODES
from tests.support.processes import PYTHON, until
from tests.support.system import program

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.mounts import Place
    from tests.support.users import User

CLOSES = 2.5
"""Seconds that no close may take because of somebody else."""

# Reads until told to stop; writes each text it saw to a file, unless it read for longer than a reader is young.
READER = """
import hashlib, os, sys, time
path, where, mode = sys.argv[1], sys.argv[2], int(sys.argv[3])
count = 0
while not os.path.exists(where + "/stop"):
    fd = os.open(path, mode)
    start, parts = time.monotonic(), []
    while part := os.read(fd, 3000):
        parts.append(part)
        time.sleep(0.001)
    quick = time.monotonic() - start < 1.9
    os.close(fd)
    if quick:
        text = b"".join(parts)
        count += 1
        with open(where + "/seen-" + hashlib.sha1(text).hexdigest(), "wb") as file:
            file.write(text)
print(count)
"""
SHELL_READER = """
n=0; while [ ! -e $2/stop ]; do
    n=$((n+1)); part=$2/seen-sh-$n.part
    (dd ibs=700 status=none; cat) < $1 | cat > $part && mv $part $2/seen-sh-$n
done; echo $n
"""

# Saves as the programs of each kind do, and says how long the longest close took and how many saves there were.
SAVER = """
import errno, mailbox, os, re, subprocess, sys, time
path, where, *kinds = sys.argv[1:]
slowest, turn, saves = 0.0, 0, dict.fromkeys(kinds, 0)
MARK = re.compile(rb"^X-Test-Gen: .*\\n", re.MULTILINE)

def marked(text, sign):
    return MARK.sub(b"", text).replace(b"\\nX-Test-Sum", b"\\nX-Test-Gen: " + sign + b"\\nX-Test-Sum")

def close(fd):
    global slowest
    start = time.monotonic()
    try:
        os.close(fd)
    finally:
        slowest = max(slowest, time.monotonic() - start)

def naive(sign):
    fd = os.open(path, os.O_RDWR)
    try:
        text = b"".join(iter(lambda: os.read(fd, 1000), b""))
        new = marked(text, sign)
        os.lseek(fd, 0, os.SEEK_SET)
        for at in range(0, len(new), 999):
            os.write(fd, new[at : at + 999])
        os.ftruncate(fd, len(new))
    finally:
        close(fd)

def truncating(sign):
    with open(path, "rb") as file:
        text = file.read()
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
    try:
        os.write(fd, marked(text, sign))
    finally:
        close(fd)

def sed(sign):
    script = "/^X-Test-Gen/d; s/^X-Test-Sum/X-Test-Gen: %s\\\\n&/" % sign.decode()
    done = subprocess.run(["sed", "-i", script, path], stderr=subprocess.PIPE)
    if done.returncode:
        raise OSError(errno.ESTALE, done.stderr)

def python(sign):
    box = mailbox.mbox(path, create=False)
    try:
        box.lock()
        for key in box.keys():
            if box[key]["X-Test-Id"].startswith("junk-"):
                box.remove(key)
                break
        box.flush()
    except mailbox.ExternalClashError as error:  # somebody has the lock; or the size, of which the kernel has only one
        raise OSError(errno.EAGAIN, "locked") from error
    finally:
        box._pending = False  # close() would try again
        box.unlock()
        box.close()

while not (os.path.exists(where + "/stop") and all(saves.values())):
    kind = kinds[turn % len(kinds)]
    turn += 1
    out, to = os.pipe()
    if not os.fork():  # as a program does that is started to edit, and ends: what an earlier one knew does not count
        try:
            globals()[kind](b"%s-%d" % (kind.encode(), turn))
            saved = 1
        except OSError as error:
            if error.errno not in (errno.ESTALE, errno.EAGAIN, errno.EEXIST):
                raise
            saved = 0
        os.write(to, b"%f %d" % (slowest, saved))
        os._exit(0)
    os.close(to)
    took, saved = os.read(out, 99).split()
    os.close(out)
    os.wait()
    slowest = max(slowest, float(took))
    saves[kind] += int(saved)
    time.sleep(0.2)
print(slowest, *saves.values())
"""


CLEAN = """
import mailbox, sys
box = mailbox.mbox(sys.argv[1], create=False)
box.lock()
for key in box.keys():
    if box[key]["X-Test-Id"].startswith("junk-"):
        box.remove(key)
box.flush()
box.unlock()
"""


@pytest.fixture(params=["passed", "direct"])
def mail(request: pytest.FixtureRequest, machine: Path, people: dict[str, User]) -> Iterator[Place]:
    """A mounted spool whose readers read in the kernel, if it can do that, and one where they never do."""
    options = ["no_passthrough"] if request.param == "direct" else []
    with mounted(request.node, fresh_spool(machine, people, MODES[1]), options) as place:
        yield place


def wrong(text: bytes) -> str:
    """What shows that a text was never the mailbox, or ""."""
    report = examine(text, [])
    if report.torn or report.doubled:
        return f"torn {report.torn[:3]}, doubled {report.doubled[:3]}"
    signs = [
        re.findall(rb"^X-Test-Gen: (.*)$", part, re.MULTILINE)
        for part in re.split(rb"^(?=From )", text, flags=re.MULTILINE)[1:]
    ]
    line = [sign[0] if sign else b"" for sign in signs]
    first = line[0] if line else b""
    rewritten = line.index(b"") if b"" in line else len(line)
    if set(line[:rewritten]) - {first} or any(line[rewritten:]):
        return f"of several versions: {line}"
    return ""


@pytest.mark.timeout(150)
def test_readers_that_loop_see_nothing_half_done(mail: Place, alice: User) -> None:
    program("procmail")
    assert mail.mailfs
    # A save that waits behind a reader for longer than a close may take is judged when its turn comes.
    mail.mailfs.announce(r"deferred commit failed: .*rewritten since")
    path = mail.path(alice)
    where = alice.home / f"seen-{mail.dir.parent.name}"
    where.mkdir()
    mail.crew.ok(["chown", alice.name, where])
    (alice.home / "rc").write_text(f"DEFAULT={path}\nLOGFILE={alice.home}/log\n:0:\n{path}\n")
    mail.crew.ok(["chown", alice.name, alice.home / "rc"])
    wanted = fill(mail, alice, 20)
    junk = b"".join(message("junk", number) for number in range(30))
    mail.crew.ok(["sh", "-c", 'cat >> "$0"', path], user=alice, content=junk)
    pipe = subprocess.PIPE

    def start(*argv: str) -> subprocess.Popen[bytes]:
        return mail.crew.start(argv, user=alice, stdout=pipe, stderr=subprocess.STDOUT)

    readers = [
        start(PYTHON, "-I", "-c", READER, path, str(where), "0"),
        start(PYTHON, "-I", "-c", READER, path, str(where), "2"),
        start("sh", "-c", SHELL_READER, "sh", path, str(where)),
    ]
    kinds = ("naive", "truncating", "sed", "python")
    savers = [
        start(PYTHON, "-I", "-c", SAVER, path, str(where), *order) for order in (kinds, ("naive",))
    ]
    jobs = []
    for name, count in {"shell": 30, "procmail": 2}.items():
        script = SHELL[name].replace("; done", "; sleep 0.1; done")
        jobs.append(
            start("sh", "-c", script, "sh", write_sources(alice, name, count), path, str(count))
        )
        wanted += names(name, count)
    mail.crew.finish(jobs, 100)
    (where / "stop").touch()
    outputs = mail.crew.finish([*readers, *savers], 40)
    seen = [file.read_bytes() for file in where.glob("seen-*[!t]")]
    bad = {
        problem + file.name
        for file in where.glob("seen-*[!t]")
        if (problem := wrong(file.read_bytes()))
    }
    assert not bad, f"{len(seen)} texts: {sorted(bad)[:3]}"
    assert len(seen) > 10, outputs
    for output in outputs[len(readers) :]:
        assert float(output.split()[0]) < CLOSES, output
    mail.crew.ok([PYTHON, "-I", "-c", CLEAN, path], user=alice)
    settled(mail, alice, wanted)


PIPES = {
    "pipe": 'cat < "$0" | sed s/old-/new-/ >> "$0"',
    "open and append": 'exec 3< "$0"; read -r line <&3; sed s/old-/new-/ < "$0" > "$HOME/t"; cat "$HOME/t" >> "$0"',
    "twice": 'exec 3< "$0" 4< "$0"; sed s/old-/new-/ <&3 > "$HOME/t"; while read -r l; do :; done <&4;'
    ' printf "%s\\n\\n" "$(cat "$HOME/t")" >> "$0"',
}


@pytest.mark.parametrize("script", PIPES.values(), ids=PIPES)
def test_who_reads_and_appends_waits_for_nobody(mail: Place, alice: User, script: str) -> None:
    fill(mail, alice, 1)
    before = mail.content(alice)
    mail.crew.ok(["sh", "-c", script, mail.path(alice)], user=alice, timeout=CLOSES)
    until(lambda: mail.content(alice) == before + before.replace(b"old-", b"new-"), CLOSES, "both")
