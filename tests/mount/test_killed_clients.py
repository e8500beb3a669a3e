"""Clients killed by SIGKILL, at random moments and at each of their calls: no message is half, no mailbox damaged.

Appends may leave whole messages or nothing, a rewrite the old mailbox or the new one. What a client had finished
before it was killed is there, and the lock is free at once. The moments are spread over the time that the client needs
when it is left alone, and a bit more; the seed is in the failure.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import subprocess
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_exclusion import free
from tests.mount.work import owned
from tests.support.mbox import examine, message, verify_mbox
from tests.support.processes import PYTHON, Actor, kill_group, until
from tests.support.system import program
from tests.support.users import ROOT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.support.mounts import Place
    from tests.support.users import User

MOMENTS = 200  # random kills of appends, and as many of rewrites
SOON = 2.0  # seconds until the lock of a dead client must be free
SIZE = 700  # of a message's body, bytes
BOTH = "lock('dotlock', m); lock('fcntl', m)\n{}\nunlock('fcntl', m); unlock('dotlock', m)"

# What an actor runs. ``m`` is the mailbox, ``texts`` are the messages to be appended.
WRITES = "for text in texts: append(m, text, 7)"
ADD = """
import mailbox
box = mailbox.mbox(m, create=False); box.lock()
for text in texts: box.add(mailbox.mboxMessage(text))
box.flush(); box.unlock(); box.close()
"""
PWRITES = """
import re
text = get(m)
fd = os.open(m, os.O_RDWR)
for status in re.finditer(b'Status:  O', text): os.pwrite(fd, b'Status: RO', status.start())
second = text.index(b'\\nFrom ') + 1
text = os.pread(fd, 1 << 20, second)
for at in range(0, len(text), 512): os.pwrite(fd, text[at : at + 512], at)
os.ftruncate(fd, len(text))
os.close(fd)
"""
REWRITTEN = "text = get(m).replace(b'whole', b'WHOLE')\n"
SAVE = (
    REWRITTEN
    + """
fd = os.open(m, os.O_WRONLY | os.O_TRUNC)
for at in range(0, len(text), 512): os.write(fd, text[at : at + 512])
os.close(fd)
"""
)
FLUSH = """
import mailbox
box = mailbox.mbox(m, create=False){}; box.remove(0); box.flush(){}; box.close()
"""

APPENDS = {
    "writes": WRITES,
    "locked writes": BOTH.format(WRITES),
    "mailbox.add": ADD,
}
REWRITES = {
    "pwrite and ftruncate": PWRITES,
    "locked pwrite and ftruncate": BOTH.format(PWRITES),
    "save": SAVE,
    "mailbox.flush": FLUSH.format("", ""),
    "locked mailbox.flush": FLUSH.format("; box.lock()", "; box.unlock()"),
}
# Programs, by the shell: $0 is the mailbox, $1 and $2 are files with a message each, in the user's home.
APPENDING = {
    "cat": "cat $1 >> $0; cat $2 >> $0",
    "children": "for f in $1 $2; do (head -c 99 $f; tail -c +100 $f) >> $0; done",
    "exec": "exec 3>>$0; for f in $1 $2; do head -c 9 $f >&3; tail -c +10 $f | head -c 99 >&3;"
    " tail -c +109 $f >&3; done",
    "dd": "for f in $1 $2; do dd if=$f of=$0 oflag=append conv=notrunc bs=64 status=none; done",
    "procmail": "procmail -t $HOME/rc < $1",
    "maildrop": "maildrop $HOME/filter < $1",
}
REWRITING = {
    "sed -i": "sed -i s/whole/WHOLE/ $0",
    "ed": r"printf ',s/whole/WHOLE/\nw\nq\n' | ed -s $0",
    "cp": "sed s/whole/WHOLE/ $0 > $HOME/new; cp $HOME/new $0",
    "s-nail": r"printf 'd 1\nq\n' | s-nail -n -f $0",
}


HEIRS = ("exec",)
"""Killed with the programs it runs: what a shell leaves its child is the child's to finish, by ending as it likes."""


@dataclass
class Victim:
    """A user whose clients are killed, with a mailbox of its own."""

    place: Place
    user: User
    rng: random.Random
    probe: Actor
    acknowledged: list[str] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)

    @property
    def path(self) -> str:
        return self.place.path(self.user)

    def content(self) -> bytes:
        """What is there for good, once the client's last close is worked off; the same is seen inside."""
        seen = self.probe.do("get(m)")
        assert isinstance(seen, bytes)
        until(lambda: free(self.probe, self.path), SOON, "the lock of a dead client is free")
        content = self.place.content(self.user)
        if content != seen:  # somebody's last close came between the two looks
            seen = self.probe.do("get(m)")
            content = self.place.content(self.user)
        assert seen == content
        return content

    def write(self, content: bytes) -> None:
        """Give the mailbox another content."""
        self.probe.do(f"put(m, {content!r}, os.O_TRUNC)")
        until(lambda: self.place.content(self.user) == content, SOON, "put back")


@dataclass
class Run:
    """One client at work: its process, what must be waited for until it is ready, and how it is told to begin."""

    process: subprocess.Popen[bytes]
    actor: Actor | None = None
    code: str = ""

    def begin(self) -> None:
        if self.actor is not None:
            self.actor.start(self.code)

    def done(self, limit: float) -> bool:
        """Wait so many seconds; whether the client has done its work and said so."""
        if self.actor is not None:
            if self.actor.busy(limit):
                return False
            self.actor.result()
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            assert self.process.wait(limit) == 0
            return True
        return False

    def kill(self, *, children: bool) -> None:
        """Kill it, with or without the processes that it has started."""
        if children:
            kill_group(self.process)
        else:
            self.process.kill()
        self.process.wait(5)
        if not children:  # what it has started goes on
            until(lambda: not _group(self.process.pid), 10, "the end of a killed shell's children")
        for stream in (self.process.stdin, self.process.stdout):
            if stream:
                stream.close()


def _group(leader: int) -> bool:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, 0)
        return True
    return False


def by_actor(victim: Victim, code: str, texts: list[bytes]) -> Run:
    actor = victim.place.crew.actor(victim.user)
    actor.do(f"m = {victim.path!r}; texts = {texts!r}; import mailbox, re")
    return Run(actor.process, actor, code)


def by_shell(victim: Victim, script: str, texts: list[bytes]) -> Run:
    files = [
        owned(victim.user, f"text{number}", text.decode()) for number, text in enumerate(texts)
    ]
    argv = ["sh", "-c", script, victim.path, *files]
    return Run(victim.place.crew.start(argv, user=victim.user))


def begin(victim: Victim, kind: str, texts: list[bytes]) -> Run:
    actors, scripts = APPENDS | REWRITES, APPENDING | REWRITING
    if kind in actors:
        return by_actor(victim, actors[kind], texts)
    return by_shell(victim, scripts[kind], texts)


def mails(victim: Victim, kind: str, turn: int) -> list[bytes]:
    envelope = kind != "maildrop"
    writer = f"{kind.replace(' ', '')}{turn}"
    return [message(writer, number, SIZE, envelope=envelope) for number in range(2)]


def acknowledged(victim: Victim, kind: str, turn: int) -> None:
    count = 1 if kind in ("procmail", "maildrop") else 2
    victim.acknowledged += [f"{kind.replace(' ', '')}{turn}-{number}" for number in range(count)]


def alone(victim: Victim, kind: str) -> float:
    """Seconds that a client of this kind takes if nobody kills it."""
    run = begin(victim, kind, mails(victim, kind, 0))
    start = time.monotonic()
    run.begin()
    assert run.done(20), f"{kind} is not done within 20 s"
    took = time.monotonic() - start
    run.kill(children=True)
    acknowledged(victim, kind, 0)
    return took


def kill_once(victim: Victim, kind: str, turn: int, longest: float) -> None:
    run = begin(victim, kind, mails(victim, kind, turn))
    moment = victim.rng.uniform(0, 0.9 * longest)
    run.begin()
    done = run.done(moment)
    run.kill(children=kind in HEIRS or victim.rng.random() < 0.7)
    if done:
        acknowledged(victim, kind, turn)
    victim.outcomes["done" if done else "killed"] += 1


def until_killed(victim: Victim, turns: list[str]) -> Iterator[tuple[int, str]]:
    """Again and again, until as many clients as there are turns were killed before they were done."""
    for turn, kind in enumerate(itertools.cycle(turns), 1):
        if victim.outcomes["killed"] >= len(turns):
            return
        assert turn < 6 * len(turns), f"too few were killed: {victim.outcomes}"
        yield turn, kind


def appends(victim: Victim, turns: list[str]) -> None:
    longest = {kind: alone(victim, kind) for kind in sorted(set(turns))}
    for turn, kind in until_killed(victim, turns):
        kill_once(victim, kind, turn, longest[kind])
        report = examine(victim.content(), victim.acknowledged)
        faults = {k: v for k, v in report.faults().items() if k not in ("unexpected", "reordered")}
        assert not faults, f"{kind}: {faults}"
    victim.outcomes["landed"] += len(report.found)


def old_mailbox() -> bytes:
    texts = [message("old", number, SIZE) for number in range(4)]
    return b"".join(text.replace(b"\nX-", b"\nStatus:  O\nX-", 1) for text in texts)


def rewrites(victim: Victim, turns: list[str]) -> None:
    old = old_mailbox()
    longest, new = {}, {}
    for kind in sorted(set(turns)):
        victim.write(old)
        longest[kind] = alone(victim, kind)
        new[kind] = victim.content()
        assert new[kind] != old
        verify_mbox(
            new[kind].replace(b"WHOLE", b"whole"),
            [f"old-{number}" for number in range(4)][new[kind].count(b"\nend ") == 3 :],
        )
    for turn, kind in until_killed(victim, turns):
        if victim.content() != old:
            victim.write(old)
        before = victim.outcomes["done"]
        kill_once(victim, kind, turn, longest[kind])
        content = victim.content()
        assert content in (old, new[kind]), f"{kind}: {content!r}"
        assert content == new[kind] or victim.outcomes["done"] == before, (
            f"{kind}: the save is gone"
        )
        victim.outcomes["new" if content == new[kind] else "old"] += 1


def prepare(place: Place, user: User) -> None:
    for name in ("procmail", "maildrop", "ed", "s-nail", "strace", "mutt"):
        program(name)
    path = place.path(user)
    owned(user, "rc", f"DEFAULT={path}\nLOGFILE={user.home}/log\n:0:\n{path}\n")
    owned(user, "filter", f'to "{path}"\n')


def work_on(
    place: Place,
    people: dict[str, User],
    seed: int,
    work: Callable[[Victim, list[str]], None],
    turns: list[str],
) -> Counter[str]:
    """Let three users' clients be killed at the same time, each user's in their mailbox; gives what became of them."""
    victims = []
    for number, user in enumerate(people[letter] for letter in "abc"):
        prepare(place, user)
        probe = place.crew.actor(user)
        probe.do(f"m = {place.path(user)!r}")
        victims.append(Victim(place, user, random.Random(seed + number), probe))
    with ThreadPoolExecutor(len(victims)) as pool:
        jobs = [
            pool.submit(work, victim, turns[n :: len(victims)]) for n, victim in enumerate(victims)
        ]
    failed = [str(job.exception()) for job in jobs if job.exception()]
    assert not failed, f"MAILFS_TEST_SEED={seed}: {failed}"
    return sum((victim.outcomes for victim in victims), Counter[str]())


@pytest.mark.timeout(150)
@pytest.mark.parametrize("what", ["appends", "rewrites"])
def test_killed_at_random_moments(
    mounting: Callable[..., Place], people: dict[str, User], what: str
) -> None:
    seed = int(os.environ.get("MAILFS_TEST_SEED") or random.SystemRandom().randrange(1 << 32))
    kinds = [*APPENDS, *APPENDING] if what == "appends" else [*REWRITES, *REWRITING]
    turns = [kinds[turn // 3 % len(kinds)] for turn in range(MOMENTS)]
    outcomes = work_on(mounting(), people, seed, appends if what == "appends" else rewrites, turns)
    assert outcomes["killed"] >= MOMENTS, f"MAILFS_TEST_SEED={seed}: {outcomes}"


# --- each call ------------------------------------------------------------------------------------

CHANGING = re.compile(r"open|close|p?write|truncate|f?sync|fcntl|flock|link|rename|chmod|utime")
MOST = 30  # calls of one client at which it is killed; of more, some are left out

# What a program does that is killed at each of its calls that name something in the spool.
PYTHON_CALLS = {
    "mailbox.add": "import mailbox, sys\nm, text = sys.argv[1], open(sys.argv[2]).read()\ntexts = [text]"
    + ADD,
    "mailbox.flush": "import mailbox, sys\nm = sys.argv[1]"
    + FLUSH.format("; box.lock()", "; box.unlock()"),
    "pwrite": "import os, sys\nm = sys.argv[1]\nget = lambda m: open(m, 'rb').read()" + PWRITES,
}
SHELL_CALLS = {
    "printf": 'exec 3>>$0; while IFS= read -r line; do printf "%s\\n" "$line" >&3; done < $1; exec 3>&-',
    "procmail": "exec procmail -t $HOME/rc < $1",
    "sed -i": "exec sed -i s/whole/WHOLE/ $0",
}
MUTT = [
    "mutt",
    "-n",
    "-F",
    "/dev/null",
    "-e",
    "set move=no delete=yes quit=yes",
    "-e",
    "push d<sync-mailbox><exit>",
    "-f",
]
CALLS = {
    "appends": ["mailbox.add", "printf", "procmail"],
    "rewrites": ["mutt", "mailbox.flush", "pwrite", "sed -i"],
}


def strace(victim: Victim, kind: str, text: bytes, options: list[str]) -> int:
    """Run a client under strace(1), which as root leaves set-id programs their rights; gives its exit status."""
    user, crew = victim.user, victim.place.crew
    source = owned(user, "text", text.decode())
    argv = ["strace", "-qq", "-y", "-u", user.name, "-E", f"HOME={user.home}", *options]
    if kind == "mutt":
        (user.home / "Mail").mkdir(exist_ok=True)
        os.chown(user.home / "Mail", user.uid, user.gid)
        return crew.terminal([*argv, *MUTT, victim.path], user=ROOT).finish()
    if kind in PYTHON_CALLS:
        argv += [PYTHON, "-I", "-S", "-c", PYTHON_CALLS[kind], victim.path, source]
    else:
        argv += ["sh", "-c", SHELL_CALLS[kind], victim.path, source]
    return crew.start(argv, user=ROOT).wait(20)


def calls(victim: Victim, kind: str, text: bytes) -> list[tuple[str, int]]:
    """The calls with which a client left alone changes the spool: (call, its number among those of that name)."""
    record = victim.user.home / "calls"
    assert strace(victim, kind, text, ["-o", str(record)]) == 0
    count: Counter[str] = Counter()
    found = []
    for line in record.read_text(errors="replace").splitlines():
        call = re.match(r"(\w+)\(", line)
        if call:
            count[call[1]] += 1
            if str(victim.place.dir) in line and CHANGING.search(call[1]):
                found.append((call[1], count[call[1]]))
    return found[:: -(-len(found) // MOST)]


def each_call(victim: Victim, kinds: list[str]) -> None:
    """Kill clients at each of their calls in turn; what they append or leave of a rewrite is whole."""
    old = old_mailbox()
    for kind in kinds:
        texts = [message(kind.replace(" ", ""), turn, SIZE) for turn in range(200)]
        victim.write(old)
        moments = calls(victim, kind, texts[0])
        assert len(moments) > 5, f"{kind}: {moments}"
        new = victim.content()
        for turn, (call, number) in enumerate(moments, 1):
            appending = kind in CALLS["appends"]
            if not appending and victim.content() != old:
                victim.write(old)
            options = ["-o", "/dev/null", "-e", f"inject={call}:signal=KILL:when={number}"]
            status = strace(victim, kind, texts[turn], options)
            victim.outcomes["killed" if status else "done"] += 1
            content, where = (
                victim.content(),
                f"{kind}, at {call} number {number} ({turn} of {len(moments)})",
            )
            if appending:
                faults = examine(content, []).faults()
                assert not faults.keys() & {"torn", "doubled"}, f"{where}: {faults}"
            else:
                assert content in (old, new), f"{where}: {content!r}"


@pytest.mark.timeout(150)
def test_killed_at_each_call(mounting: Callable[..., Place], people: dict[str, User]) -> None:
    outcomes = work_on(mounting(), people, 0, each_call, [*CALLS["rewrites"], *CALLS["appends"]])
    assert outcomes["killed"] > 0.9 * outcomes.total(), outcomes
