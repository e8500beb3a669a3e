"""Many writers without locks next to programs that lock: no message is torn, lost, doubled or
out of order.
"""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.support.mbox import examine, message, names, verify_mbox
from tests.support.system import program

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User

# Each program gets: its messages as files dir/0, dir/1 …, the mailbox, their number.
UNLOCKED = """
import os, sys
source, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(count):
    text = open(f"{source}/{number}", "rb").read()
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o660)
    step = -(-len(text) // 5)
    for at in range(0, len(text), step):
        os.write(fd, text[at : at + step])
    os.close(fd)
"""
PYTHON_MAILBOX = """
import mailbox, sys, time
source, path, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
for number in range(count):
    box = mailbox.mbox(path, create=False)
    while True:
        try:
            box.lock()
            break
        except mailbox.ExternalClashError:
            time.sleep(0.02)
    box.add(mailbox.mboxMessage(open(f"{source}/{number}", "rb").read()))
    box.flush()
    box.unlock()
    box.close()
"""
SHELL = {
    "procmail": 'for n in $(seq 0 $(($3 - 1))); do procmail -t "$HOME/rc" < $1/$n || exit 1; done',
    "maildrop": 'for n in $(seq 0 $(($3 - 1))); do maildrop "$HOME/filter" < $1/$n || exit 1; done',
    "dotlockfile": """
        for n in $(seq 0 $(($3 - 1))); do
            dotlockfile -l -r 20 $2.lock || exit 1
            cat $1/$n >> $2
            dotlockfile -u $2.lock || exit 2
        done""",
    "shell": "for n in $(seq 0 $(($3 - 1))); do (head -c 99 $1/$n; tail -c +100 $1/$n) >> $2; done",
}
COUNTS = {"procmail": 4, "maildrop": 6, "dotlockfile": 6, "shell": 10, "python": 10}


def write_sources(user: User, writer: str, count: int, *, envelope: bool = True) -> str:
    directory = user.home / f"messages-{writer}"
    directory.mkdir(exist_ok=True)
    for number in range(count):
        text = message(writer, number, 200 + 97 * (number % 20), envelope=envelope)
        (directory / str(number)).write_bytes(text)
    return str(directory)


@pytest.mark.timeout(200)
def test_16_writers_without_locks_next_to_programs_that_lock(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    (alice.home / "rc").write_text(f"DEFAULT={path}\nLOGFILE={alice.home}/log\n:0:\n{path}\n")
    (alice.home / "filter").write_text(f'to "{path}"\n')
    (alice.home / "filter").chmod(0o600)
    mail.crew.ok(["chown", alice.name, alice.home / "filter", alice.home / "rc"])
    jobs, wanted = [], []
    for name, script in SHELL.items():
        if name != "shell":
            program(name)
        count = COUNTS[name]
        source = write_sources(alice, name, count, envelope=name != "maildrop")
        argv = ["sh", "-c", script, "sh", source, path, str(count)]
        pipe = subprocess.PIPE
        jobs.append(mail.crew.start(argv, user=alice, stdout=pipe, stderr=subprocess.STDOUT))
        wanted += names(name, count)
    source = write_sources(alice, "python", COUNTS["python"])
    jobs.append(mail.crew.python(PYTHON_MAILBOX, source, path, str(COUNTS["python"]), user=alice))
    wanted += names("python", COUNTS["python"])
    for number in range(16):
        source = write_sources(alice, f"w{number}", 50)
        jobs.append(mail.crew.python(UNLOCKED, source, path, "50", user=alice))
        wanted += names(f"w{number}", 50)
    try:
        mail.crew.finish(jobs, 150)
    except AssertionError as error:
        faults = examine(mail.content(alice), wanted).faults()
        raise AssertionError(f"{error}\n{ {kind: len(v) for kind, v in faults.items()} }") from None
    mail.holds(alice, wanted, 10)
    verify_mbox(mail.seen(alice), wanted)


def test_readers_never_see_half_a_message(mail: Place, alice: User) -> None:
    """While writers append, every look at the mailbox shows whole messages only."""
    path = mail.path(alice)
    jobs, wanted = [], []
    for number in range(4):
        source = write_sources(alice, f"w{number}", 40)
        jobs.append(mail.crew.python(UNLOCKED, source, path, "40", user=alice))
        wanted += names(f"w{number}", 40)
    looks = 0
    while any(job.poll() is None for job in jobs):
        # Through the mount: whoever reads the real file without its locks may look between two pages of a write.
        assert not examine(mail.seen(alice), []).torn, "a reader saw half of a message"
        looks += 1
    mail.crew.finish(jobs, 20)
    assert looks > 1
    mail.holds(alice, wanted)


def test_users_with_their_own_mailboxes(mail: Place, alice: User, bob: User, carol: User) -> None:
    jobs = []
    for user in (alice, bob, carol):
        for number in range(3):
            source = write_sources(user, f"w{number}", 30)
            jobs.append(mail.crew.python(UNLOCKED, source, mail.path(user), "30", user=user))
    mail.crew.finish(jobs, 50)
    for user in (alice, bob, carol):
        mail.holds(user, [n for w in range(3) for n in names(f"w{w}", 30)])


def test_a_message_of_megabytes(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    texts = [message(f"big{number}", 0, 6_000_000) for number in range(2)]
    actors = [mail.crew.actor(alice) for _ in texts]
    for number, actor in enumerate(actors):
        (alice.home / f"big{number}").write_bytes(texts[number])
        actor.start(f"append({path!r}, get({str(alice.home / f'big{number}')!r}), 50)")
    for actor in actors:
        actor.result(30)
    mail.holds(alice, ["big0-0", "big1-0"])
