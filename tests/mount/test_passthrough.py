"""Mailboxes that the kernel reads and maps by itself, and the same without it."""

from __future__ import annotations

import errno
import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import fresh_spool, mounted
from tests.mount.test_readers import drawn_until, mutt
from tests.mount.test_writers import UNLOCKED, write_sources
from tests.mount.work import fill, settled
from tests.support.mbox import examine, message, names
from tests.support.mounts import MODES, OPTIONS
from tests.support.processes import Actor, until
from tests.support.system import with_var_mail

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.support.mounts import Place
    from tests.support.users import User

NEW = message("new", 0)


def mount(
    request: pytest.FixtureRequest, machine: Path, people: dict[str, User], *options: str
) -> Iterator[Place]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(OPTIONS, raising=False)
        with mounted(request.node, fresh_spool(machine, people, MODES[1]), options) as place:
            yield place


@pytest.fixture
def passed(
    request: pytest.FixtureRequest, machine: Path, people: dict[str, User]
) -> Iterator[Place]:
    """A spool whose readers the kernel passes through."""
    for place in mount(request, machine, people):
        assert status(place)["readers"] == "passthrough"
        yield place


@pytest.fixture(params=["passthrough", "no_passthrough"])
def either(
    request: pytest.FixtureRequest, machine: Path, people: dict[str, User]
) -> Iterator[Place]:
    """A spool with and without passthrough."""
    yield from mount(request, machine, people, request.param)


def status(place: Place) -> dict[str, Any]:
    found = json.loads(place.crew.ok(["cat", place.dir / ".mailfs" / "status.json"]))
    assert isinstance(found, dict)
    return found


def reader(place: Place, user: User) -> Actor:
    """A process that has the mailbox open for reading."""
    actor = place.crew.actor(user)
    actor.do(f"path = {place.path(user)!r}")
    actor.do("fd = os.open(path, os.O_RDONLY)")
    actor.do("def look(fd): return os.pread(fd, 1 << 20, 0)")
    return actor


def test_no_read_reaches_the_daemon(passed: Place, alice: User) -> None:
    """It answers although the daemon is stopped."""
    fill(passed, alice)
    looking = reader(passed, alice)
    assert passed.mailfs
    process = passed.mailfs.process
    process.send_signal(19)
    try:
        assert looking.do("os.read(fd, 1 << 20)") == passed.content(alice)
        assert looking.do("len(os.pread(fd, 4096, 100))") > 0
    finally:
        process.send_signal(18)


def test_the_option_forces_direct_io(
    request: pytest.FixtureRequest, machine: Path, people: dict[str, User]
) -> None:
    for place in mount(request, machine, people, "no_passthrough"):
        assert status(place)["readers"] == "direct I/O (option no_passthrough)"
        alice = people["a"]
        fill(place, alice)
        looking = reader(place, alice)
        looking.do("import mmap")
        assert looking.errno("mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)") == errno.ENODEV
        assert looking.do("mmap.mmap(fd, 0, mmap.MAP_PRIVATE)[:]") == place.content(alice)


def test_what_is_committed_is_seen_at_once(either: Place, alice: User) -> None:
    """By a handle that was open before, and by a new one: an append, a rewrite, a truncation, changes outside."""
    fill(either, alice)
    looking, writing = reader(either, alice), either.crew.actor(alice)
    path = either.path(alice)
    for change in (
        f"append({path!r}, {NEW!r})",
        f"put({path!r}, {NEW * 3!r}, os.O_TRUNC)",
        f"os.truncate({path!r}, {len(NEW)})",
        f"put({path!r}, b'', os.O_TRUNC)",
        f"append({path!r}, {NEW * 300!r})",
        f"put({path!r}, {NEW!r}, os.O_TRUNC)",
    ):
        writing.do(f"get({path!r})")  # a save by who knows the mailbox
        writing.do(change)
        assert looking.do("look(fd)") == looking.do("get(path)") == either.content(alice), change
        assert looking.do("os.fstat(fd).st_size") == len(either.content(alice))
    real = either.spool / alice.name
    real.write_bytes(NEW * 2)
    assert looking.do("look(fd)") == looking.do("get(path)") == NEW * 2
    assert looking.do("os.lseek(fd, 0, os.SEEK_END)") == len(NEW * 2)


def test_a_handle_survives_a_rename_over_it(either: Place, alice: User) -> None:
    fill(either, alice)
    before = either.content(alice)
    looking, saving = reader(either, alice), either.crew.actor(alice)
    path = either.path(alice)
    saving.do(f"get({path!r})")
    saving.do(f"put({path + '.x'!r}, {NEW!r}); os.rename({path + '.x'!r}, {path!r})")
    assert looking.do("look(fd)") == before
    assert looking.do("get(path)") == NEW
    assert looking.do("os.stat(path).st_ino != os.fstat(fd).st_ino")
    saving.do(f"append({path!r}, {NEW!r})")
    assert looking.do("look(fd)") == before
    assert looking.do("get(path)") == NEW * 2


def test_mappings(passed: Place, alice: User) -> None:
    """Both kinds, of readers and of those who may write; what is written through one is a change made outside."""
    fill(passed, alice)
    content = passed.content(alice)
    looking, writing = reader(passed, alice), passed.crew.actor(alice)
    looking.do("import mmap")
    looking.do("shared = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)")
    looking.do("private = mmap.mmap(fd, 0, mmap.MAP_PRIVATE)")
    assert looking.do("shared[:]") == looking.do("private[:]") == content
    writing.do(f"import mmap; fd = os.open({passed.path(alice)!r}, os.O_RDWR)")
    writing.do("mapped = mmap.mmap(fd, 0)")
    assert writing.do("mapped[:]") == content
    writing.do("mapped[5:8] = b'OLD'; mapped.flush()")
    changed = content[:5] + b"OLD" + content[8:]
    assert passed.content(alice) == looking.do("shared[:]") == looking.do("look(fd)") == changed
    assert writing.do("os.pread(fd, 1 << 20, 0)") == changed
    writing.do("mapped.close(); os.close(fd)")
    other = passed.crew.actor(alice)
    other.do(f"append({passed.path(alice)!r}, {NEW!r})")
    assert passed.content(alice) == looking.do("look(fd)") == changed + NEW


def test_readers_and_writers_open_it_in_any_order(either: Place, alice: User) -> None:
    fill(either, alice)
    one, two = either.crew.actor(alice), either.crew.actor(alice)
    flags = ["os.O_RDONLY", "os.O_RDWR", "os.O_WRONLY | os.O_APPEND", "os.O_RDWR | os.O_CREAT"]
    for actor in (one, two):
        actor.do(f"path = {either.path(alice)!r}")
    for first in flags:
        for second in flags:
            one.do(f"fd = os.open(path, {first})")
            two.do(f"fd = os.open(path, {second}, 0o600)")
            one.do(f"again = os.open(path, {second}, 0o600)")
            one.do("os.close(fd)")
            two.do("os.close(os.open(path, os.O_RDONLY)); os.close(fd)")
            one.do("os.close(again)")
    settled(either, alice, names("old", 3))


def test_a_new_mailbox_is_passed_through_too(passed: Place, newuser: User) -> None:
    """CREATE, and a reader beside it."""
    actor = passed.crew.actor(newuser)
    path = passed.path(newuser)
    actor.do(f"path = {path!r}; made = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)")
    actor.do("fd = os.open(path, os.O_RDONLY)")
    actor.do(f"os.write(made, {NEW!r}); os.close(made)")
    until(lambda: actor.do("os.pread(fd, 1 << 20, 0)") == NEW, 5, "committed")


def test_who_truncates_at_open_hides_nothing_from_readers(either: Place, alice: User) -> None:
    fill(either, alice)
    before = either.content(alice)
    looking, saving = reader(either, alice), either.crew.actor(alice)
    saving.do(f"get({either.path(alice)!r})")
    saving.do(f"fd = os.open({either.path(alice)!r}, os.O_WRONLY | os.O_TRUNC)")
    assert looking.do("look(fd)") == before
    assert looking.do("get(path)") == before
    saving.do(f"os.write(fd, {NEW!r})")
    assert looking.do("look(fd)") == before
    saving.do("os.close(fd)")
    assert looking.do("look(fd)") == looking.do("get(path)") == NEW


def test_its_own_draft_is_read_by_a_process_that_rewrites(either: Place, alice: User) -> None:
    fill(either, alice)
    before = either.content(alice)
    actor = either.crew.actor(alice)
    actor.do(f"path = {either.path(alice)!r}; get(path)")
    actor.do(f"fd = os.open(path, os.O_RDWR | os.O_TRUNC); os.write(fd, {NEW!r})")
    assert actor.do("get(path)") == NEW
    assert reader(either, alice).do("get(path)") == before
    actor.do("os.close(fd)")
    assert either.content(alice) == NEW


def test_copies_are_whole(either: Place, alice: User) -> None:
    """cp, cat and sendfile read by other calls than read(2)."""
    wanted = fill(either, alice, 400)
    for script in ('cp "$0" "$1"', 'cat < "$0" > "$1"', 'cat "$0" | tail -c +1 > "$1"'):
        copy = alice.home / "copy"
        either.crew.ok(["sh", "-ec", script, either.path(alice), str(copy)], user=alice)
        assert copy.read_bytes() == either.content(alice)
    assert not examine(either.content(alice), wanted).faults()


def test_new_mail_is_known_by_its_times(either: Place, alice: User) -> None:
    """It is new until somebody has read it: atime < mtime, as with relatime."""
    fill(either, alice)
    looking = reader(either, alice)
    looking.do("get(path); time.sleep(0.02)")
    size = len(either.content(alice) + NEW)
    either.crew.actor(alice).do(f"append({either.path(alice)!r}, {NEW!r})")
    assert looking.do("os.stat(path).st_size") == size
    assert looking.do("os.stat(path).st_atime_ns < os.stat(path).st_mtime_ns")
    looking.do("look(fd)")
    assert looking.do("os.stat(path).st_atime_ns >= os.stat(path).st_mtime_ns")


def test_nothing_is_left_of_a_thousand_opens(passed: Place, alice: User) -> None:
    fill(passed, alice)
    assert passed.mailfs
    held = f"/proc/{passed.mailfs.process.pid}/fd"
    count = f"len(os.listdir({held!r}))"
    root, actor = passed.crew.actor(), passed.crew.actor(alice)
    actor.do(f"path = {passed.path(alice)!r}")
    actor.do("get(path)")
    until(lambda: status(passed)["handles"] == 0, 5, "all are released")
    before = root.do(count)
    actor.do("for _ in range(500):\n  get(path)\n  os.close(os.open(path, os.O_RDWR))", 30)
    until(lambda: status(passed)["handles"] == 0, 5, "all are released")
    assert root.do(count) <= before + 2
    actor.do("fd = os.open(path, os.O_RDONLY)")
    assert actor.do("len(os.pread(fd, 1 << 20, 0))") == len(passed.content(alice))


def test_saves_keep_mail_that_came_while_it_was_open(either: Place, alice: User) -> None:
    """Before the read, while the file is open, and after it was closed."""
    fill(either, alice, 2)
    path = either.path(alice)
    editor, agent = either.crew.actor(alice), either.crew.actor(alice)
    editor.do(f"path = {path!r}; fd = os.open(path, os.O_RDONLY)")
    agent.do(f"append({path!r}, {message('new', 0)!r})")
    editor.do("text = os.read(fd, 1 << 20)")
    agent.do(f"append({path!r}, {message('new', 1)!r})")
    editor.do("os.close(fd)")
    agent.do(f"append({path!r}, {message('new', 2)!r})")
    editor.do("put(path, text[text.index(b'From ', 1):], os.O_TRUNC)")
    settled(either, alice, ["old-1", *names("new", 3)])


@pytest.mark.timeout(90)
def test_saves_beside_deliveries(either: Place, alice: User) -> None:
    """An editor that reads and saves again and again beside unlocked writers: no message is lost or doubled."""
    wanted = fill(either, alice)
    path, jobs = either.path(alice), []
    for number in range(3):
        source = write_sources(alice, f"w{number}", 30)
        jobs.append(either.crew.python(UNLOCKED, source, path, "30", user=alice))
        wanted += names(f"w{number}", 30)
    editor = either.crew.actor(alice)
    editor.do(f"path = {path!r}")
    saves = 0
    while any(job.poll() is None for job in jobs):
        editor.do("text = get(path)")
        editor.do("put(path, text, os.O_TRUNC)")
        saves += 1
    either.crew.finish(jobs, 30)
    assert saves
    settled(either, alice, wanted)


def deliver(place: Place, user: User, number: int) -> None:
    """An unlocked append, while others have the mailbox open."""
    text = message("new", number)
    place.crew.ok(["sh", "-c", 'cat >> "$0"', place.path(user)], user=user, content=text)
    until(lambda: place.content(user).endswith(text), 5, "delivered")


def test_mutt_deletes_mail_that_came_while_it_was_open(either: Place, alice: User) -> None:
    """It has looked at it under its lock, through a handle from before."""
    wanted = fill(either, alice)
    mutt_ = either.crew.terminal(mutt(either, alice), user=alice)
    mutt_.wait_for(r"Msgs:3")
    mutt_.settle()
    deliver(either, alice, 0)
    mutt_.send("\x0c")
    mutt_.wait_for("new@test")
    mutt_.settle()
    mutt_.send("4\r")
    mutt_.settle()
    mutt_.send("d")
    mutt_.settle()
    mutt_.send("$")
    drawn_until(mutt_, lambda: b"end new-0" not in either.content(alice), "synced")
    mutt_.settle()
    mutt_.send("q")
    assert mutt_.finish() == 0
    settled(either, alice, wanted)


def test_mutt_syncs_while_mail_comes_that_it_has_not_seen(either: Place, alice: User) -> None:
    wanted = fill(either, alice)
    mutt_ = either.crew.terminal(mutt(either, alice), user=alice)
    mutt_.wait_for(r"Msgs:3")
    mutt_.settle()
    mutt_.send("d")
    mutt_.settle()
    deliver(either, alice, 0)
    mutt_.send("$")
    mutt_.settle()
    mutt_.send("$")
    drawn_until(mutt_, lambda: b"end old-0" not in either.content(alice), "synced")
    mutt_.settle()
    mutt_.send("q")
    assert mutt_.finish() == 0
    settled(either, alice, [*wanted[1:], "new-0"])


def test_bsd_mailx_quits_after_mail_came(either: Place, alice: User) -> None:
    wanted = fill(either, alice)
    env = {"USER": alice.name, "LOGNAME": alice.name, "HOME": str(alice.home)}
    pause = alice.home / "pause"
    script = f"d 1\n!touch {pause}; while test -e {pause}; do sleep 0.05; done\nq\n"
    argv = with_var_mail(either.dir, ["bsd-mailx", "-n"], alice)
    pipe = subprocess.PIPE
    mailx = either.crew.start(argv, env=env, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)
    assert mailx.stdin is not None
    mailx.stdin.write(script.encode())
    mailx.stdin.close()
    mailx.stdin = None
    until(pause.exists, 10, "it has read the mailbox")
    deliver(either, alice, 0)
    pause.unlink()
    either.crew.finish([mailx], 30)
    settled(either, alice, [*wanted[1:], "new-0"])
