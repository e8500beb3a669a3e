"""The daemon is killed at every call that changes the disk, in every kind of operation.

After recovery each mailbox equals a state between what its clients were told: nothing acknowledged is missing, nothing
is torn, nothing is there twice; and a second recovery changes nothing.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import pytest
import trio

from mailfs.sessions.recovery import What
from tests.sessions.disk import PAGE, Kind, Strike
from tests.sessions.lives import ALICE, BOB, CONFIG, POWER, SPILL, Lives, fresh, message, quiet

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    from mailfs.daemon.config import Config
    from tests.sessions.lives import Life

    Operation = Callable[[Life], Awaitable[None]]

A, B, C, D, E = (message(name) for name in "abcde")
LONG = message("long", 3 * SPILL)
X = message("x", 100)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


# The operations. Each begins with A, B, C in alice's mailbox, and A in bob's.


async def append(w: Life) -> None:
    await w.deliver(D)


async def append_in_pieces(w: Life) -> None:
    await w.deliver(D[:1], D[1:30], D[30:], E)


async def append_spilled(w: Life) -> None:
    await w.deliver(LONG[:5000], LONG[5000:], D)


async def append_twice(w: Life) -> None:
    await w.deliver(D)
    await w.deliver(E)


async def rewrite_in_place(w: Life) -> None:
    """Edit a message without changing its length."""
    client = w.client("mutt")
    w.read(client)
    edited = B.replace(b"line", b"LINE")

    async def work() -> None:
        w.write_at(client, len(A), edited)
        await w.close(client)

    await w.doing(lambda mail: (A, edited, *mail[2:]), work)


async def shrink(w: Life) -> None:
    """Delete the last message."""
    client = w.client("pop3")
    w.read(client)

    async def work() -> None:
        w.truncate(client, len(A + B))
        await w.close(client)

    await w.doing(lambda mail: (A, B, *mail[3:]), work)


async def shift(w: Life) -> None:
    """Delete the first message: the rest is moved, and the end cut off, as mutt and mailx do."""
    client = w.client("mailx")
    w.read(client)

    async def work() -> None:
        w.write_at(client, 0, B + C)
        w.truncate(client, len(B + C))
        await w.close(client)

    await w.doing(lambda mail: (B, C, *mail[3:]), work)


async def save(w: Life) -> None:
    client = w.client("vi")
    w.read(client)

    async def work() -> None:
        w.save(client, A + C)
        await w.close(client)

    await w.doing(lambda mail: (A, C, *mail[3:]), work)


async def save_longer(w: Life) -> None:
    client = w.client("vi")
    w.read(client)

    async def work() -> None:
        w.save(client, A + LONG + C + E)
        await w.close(client)

    await w.doing(lambda mail: (A, LONG, C, E, *mail[3:]), work)


async def save_stale(w: Life) -> None:
    """Newer mail is kept behind what is saved."""
    client = w.client("vi")
    w.read(client)
    await w.deliver(D)

    async def work() -> None:
        w.save(client, A + C)
        await w.close(client)

    await w.doing(lambda mail: (A, C, *mail[3:]), work)


async def save_empty(w: Life) -> None:
    client = w.client("sh")
    w.read(client)

    async def work() -> None:
        w.truncate(client, 0)
        await w.close(client)

    await w.doing(lambda mail: mail[3:], work)


async def rename_over(w: Life) -> None:
    client = w.client("sed")
    w.read(client)
    await w.deliver(D)
    await w.doing(lambda mail: (A, C, *mail[3:]), lambda: w.replace(client, A + C))


async def deferred_appends(w: Life) -> None:
    holder = w.client("holder")
    claim = w.mailbox().lock.dotlock(holder)
    await w.deliver(D)
    await w.deliver(LONG)
    w.mailbox().lock.release(claim)
    await trio.sleep(5)


async def deferred_rewrite(w: Life) -> None:
    holder = w.client("holder")
    client = w.client("mutt")
    w.read(client)
    claim = w.mailbox().lock.dotlock(holder)

    async def work() -> None:
        w.save(client, A + C)
        await w.close(client)

    await w.doing(lambda mail: (A, C, *mail[3:]), work)
    await w.deliver(D)
    w.mailbox().lock.release(claim)
    await trio.sleep(5)


async def deferred_and_stale(w: Life) -> None:
    """A rewrite waits while the holder of the lock rewrites the mailbox, which is longer then."""
    holder, client = w.client("holder"), w.client("mutt")
    claim = w.mailbox().lock.dotlock(holder)
    w.read(holder)
    w.read(client)

    async def wait() -> None:
        w.write_at(client, 0, B + C)
        w.truncate(client, len(B + C))
        await w.close(client)

    async def work() -> None:
        w.save(holder, LONG + A + C)
        await w.close(holder)

    await w.doing(lambda mail: (B, C, *mail[3:]), wait)
    await w.doing(lambda mail: (LONG, A, C, *mail[3:]), work)
    await w.deliver(D)
    w.mailbox().lock.release(claim)
    await trio.sleep(5)


async def deferred_everywhere(w: Life) -> None:
    """Several drafts of several mailboxes wait; one of them is merged with the other's."""
    claims = [(name, w.mailbox(name).lock.dotlock(w.client("holder"))) for name in (ALICE, BOB)]
    client = w.client("mutt")
    w.read(client)
    await w.deliver(D)
    await w.deliver(D, name=BOB)

    async def work() -> None:
        w.save(client, C)
        await w.close(client)

    await w.doing(lambda mail: (C, *mail[3:]), work)
    await w.deliver(E)
    await w.deliver(E, name=BOB)
    for name, claim in claims:
        w.mailbox(name).lock.release(claim)
    await trio.sleep(5)


async def handed_over(w: Life) -> None:
    """The drafts of a holder are committed when it unlocks, and the next one follows."""
    one, two = w.client("mutt"), w.client("procmail")
    mailbox = w.mailbox()
    claim = mailbox.lock.dotlock(one)
    w.read(one)

    async def work() -> None:
        w.save(one, A + B)
        w.append(one, D, key="second handle")  # the same draft: a process that rewrites has but one
        await mailbox.commit_own(one, claim)

    await w.deliver(E)
    await w.doing(lambda mail: (A, B, D, *mail[3:]), work)
    mailbox.lock.release(claim)
    second = await w.locked(two)
    w.read(two)
    await w.deliver(X, client=two)
    mailbox.lock.release(second)
    await trio.sleep(5)


async def synced(w: Life) -> None:
    """fsync under a lock: whole messages are delivered whatever happens."""
    client = w.client("deliver")
    mailbox = w.mailbox()
    mailbox.lock.dotlock(client)

    async def work() -> None:
        w.append(client, D[:50], D[50:])
        await mailbox.sync(client.process)

    async def more() -> None:
        w.append(client, E)
        await mailbox.sync(client.process)
        await w.close(client)

    before = w.told.allowed[ALICE]
    if await w.doing(lambda mail: (*mail, D), work, undone=True) and not await w.doing(
        lambda mail: (*mail, E), more
    ):
        w.told.must(ALICE, before | w.told.allowed[ALICE])  # D is in rescue, if that can be had


async def many(w: Life) -> None:
    """One after another, all through the same files of the journal."""
    await append(w)
    await save_stale_after(w)
    await append_spilled_to_bob(w)


async def save_stale_after(w: Life) -> None:
    client = w.client("vi")
    w.read(client)
    await w.deliver(E)

    async def work() -> None:
        w.save(client, B)
        await w.close(client)

    await w.doing(lambda mail: (B, *[m for m in mail if m == E]), work)


async def append_spilled_to_bob(w: Life) -> None:
    await w.deliver(LONG, name=BOB)


OPERATIONS: list[Operation] = [
    append, append_in_pieces, append_spilled, append_twice, rewrite_in_place, shrink, shift, save, save_longer,
    save_stale, save_empty, rename_over, deferred_appends, deferred_rewrite, deferred_and_stale, deferred_everywhere,
    handed_over, synced, many,
]  # fmt: skip
PARTS = (0.01, 0.5, 0.999, 1)


def lives(tmp_path: Path, config: Config = CONFIG) -> Lives:
    return Lives(fresh(tmp_path / "spool"), config, alice=(A, B, C), bob=(A,))


def each_strike(
    tmp_path: Path, operation: Operation, config: Config = CONFIG, first: int = 0
) -> Iterator[tuple[Lives, Strike]]:
    """The worlds in which the daemon died in an operation, one for each place where it can.

    Args:
        tmp_path: where they are.
        operation: what is done.
        config: of the daemon.
        first: the change from which on it dies; 0: the first that is not part of every start.

    """
    world = lives(tmp_path, config)
    assert not world.run(operation)
    world.check("no strike")
    world.check_journal("no strike")
    for at in itertools.count(first or world.started + 1):
        strikes = [Strike(Kind.KILL, at)]
        for strike in strikes:
            world = lives(tmp_path, config)
            if not world.run(operation, strike):
                return
            call = world.disk.log[-1]
            if strike.kind is Kind.KILL and call.name == "pwrite":
                parts = PARTS if call.length > PAGE else PARTS[:-1]
                strikes += [Strike(Kind.TEAR, at, part=part) for part in parts]
            yield world, strike


def each_kill(
    tmp_path: Path, operation: Operation, config: Config = CONFIG, first: int = 0
) -> Iterator[tuple[Lives, str]]:
    """The same, with a text for people."""
    for world, strike in each_strike(tmp_path, operation, config, first):
        yield world, f"{operation.__name__}, {strike}"


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda o: o.__name__)
def test_death(tmp_path: Path, operation: Operation) -> None:
    first = 1 if operation is append else 0
    for world, when in each_kill(tmp_path, operation, first=first):
        world.recovered(when, once=operation in (many, deferred_everywhere))


@pytest.mark.parametrize("operation", [append, save_stale, synced], ids=lambda o: o.__name__)
def test_death_of_a_daemon_that_syncs(tmp_path: Path, operation: Operation) -> None:
    for world, when in each_kill(tmp_path, operation, POWER):
        world.recovered(when)


@pytest.mark.parametrize("operation", OPERATIONS[:-1], ids=lambda o: o.__name__)
def test_death_and_then_mail_from_outside(tmp_path: Path, operation: Operation) -> None:
    for world, when in each_kill(tmp_path, operation):
        world.outside_append(X)
        world.recovered(f"{when}, mail from outside", once=True)


@pytest.mark.parametrize("foreign", [False, True], ids=["", "mail from outside"])
@pytest.mark.parametrize(
    "operation", [append, save_stale, deferred_rewrite, synced], ids=lambda o: o.__name__
)
def test_death_in_recovery(tmp_path: Path, operation: Operation, foreign: bool) -> None:
    """The daemon dies in the middle of a write to the mailbox, and the next one at every change of its recovery."""

    async def nothing(_: Life) -> None:
        pass

    deaths = [
        strike
        for world, strike in each_strike(tmp_path, operation)
        if strike.part == 0.5 and strike.kind is Kind.TEAR
    ]
    for first in deaths:
        for second in itertools.count(1):
            for kind in (Kind.KILL, Kind.TEAR):
                world = lives(tmp_path)
                world.run(operation, first)
                if foreign:
                    world.outside_append(X)
                hit = world.run(nothing, Strike(kind, second))
                writing = world.disk.log[-1].name == "pwrite"
                world.recovered(
                    f"{operation.__name__}, {first}, then {kind.value} {second}", once=True
                )
                if not writing:  # it cannot be torn
                    break
            if not hit:
                break


@pytest.mark.parametrize("length", [5000, 4100, 3000])
def test_a_journal_file_that_was_cut(tmp_path: Path, length: int) -> None:
    """What is damaged is kept as it is, and changes no mailbox."""

    async def defer_and_stop(w: Life) -> None:
        w.mailbox().lock.dotlock(w.client("holder"))
        w.append(writer := w.client(), D)
        await w.close(writer)
        w.disk.dead = True

    async def recover(w: Life) -> None:
        assert [step.what for step in w.steps] == [What.RESCUE]

    world = lives(tmp_path)
    world.run(defer_and_stop)
    (name,) = world.journal()
    path = world.root / ".mailfs/journal" / name
    text = path.read_bytes()[:length]
    if length == 5000:
        text = text[:4100] + b"?" + text[4101:]
    path.write_bytes(text)
    world.run(recover)
    assert world.content() == A + B + C
    assert world.rescued() == [text]
    assert world.recovered("cut") == []
