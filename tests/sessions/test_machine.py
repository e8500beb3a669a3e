"""Random histories: clients deliver, read, save what they read some time ago, lock, die; the daemon dies and recovers.

The model is the list of messages. What a client was told is in the mailbox, whole and once; what a save leaves out is
gone only if its writer had read it.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailfs.errors import Refused
from mailfs.sessions.merge import split_messages
from tests.sessions.disk import Kind, Strike
from tests.sessions.lives import ALICE, CONFIG, POWER, SPILL, Lives, fresh, message, quiet

if TYPE_CHECKING:
    from pathlib import Path

    from mailfs.locking.model import Requester
    from mailfs.locking.rules import Claim
    from tests.sessions.lives import Life, Mail

STEPS = [
    *(
        "deliver",
        "deliver",
        "read",
        "read",
        "save",
        "save",
        "lock",
        "unlock",
        "open",
        "write",
        "close",
    ),
    *("sync", "die", "revoke", "outside", "time"),
]
EXAMPLES = int(os.environ.get("MAILFS_TEST_HISTORIES", "80"))


Pick = Callable[[Sequence[Any]], Any]
"""Chooses one of some."""


class Client:
    """A process, and what it knows."""

    def __init__(self, who: Requester) -> None:
        self.who = who
        self.text: Mail | None = None  # what it read
        self.claim: Claim | None = None
        self.writes: list[bytes] = []  # messages of a draft that it has not closed


class History:
    """One history, over several daemons."""

    def __init__(self, pick: Pick, root: Path) -> None:
        self.pick = pick
        self.number = 0
        config = POWER if self.pick(range(5)) == 0 else CONFIG
        self.lives = Lives(root, config, alice=(self.mail(), self.mail(), self.mail()))
        self.clients: list[Client] = []

    def mail(self) -> bytes:
        self.number += 1
        return message(f"m{self.number}", self.pick([30, 300, 3 * SPILL]))

    def run(self) -> None:
        for _ in range(self.pick(range(1, 5))):
            strike = None
            if self.pick([False, True]):
                kind = self.pick([Kind.KILL, Kind.TEAR])
                part = self.pick([0.01, 0.4, 0.99, 1, 2])
                strike = Strike(kind, self.pick(range(1, 81)), part=part)
            died = self.lives.run(self.life, strike)
            if not died:
                self.check("at the end of a life")
            elif self.pick(range(4)) == 0:
                self.lives.outside_append(self.mail())
        self.lives.recovered("at the end")
        self.check("at the end")

    def check(self, when: str) -> None:
        self.lives.check(when)
        text = tuple(split_messages(self.lives.content()))
        self.lives.told.must(ALICE, {text})

    async def life(self, w: Life) -> None:
        await w.drained()
        self.check("after recovery")
        self.clients = [Client(w.client(f"client{n}")) for n in range(3)]
        for _ in range(self.pick(range(1, 13))):
            await self.step(w)
            await trio.sleep(0.01)  # no two things happen at the same time
            self.whole()
        for client in self.clients:
            await self.close(w, client)
            await self.unlock(w, client)

    def whole(self) -> None:
        """At any time: no message is torn, none is there twice."""
        mails = split_messages(self.lives.content())
        for mail in mails:
            name = mail[5 : mail.find(b"@")]
            assert mail.rstrip().endswith(b"\nend " + name), mail
        twice = [n for n, times in Counter(m[:30] for m in mails).items() if times > 1]
        assert not twice, twice

    async def step(self, w: Life) -> None:
        client = self.pick(self.clients)
        step = self.pick(STEPS)
        match step:
            case "deliver":
                texts = [self.mail() for _ in range(self.pick(range(1, 3)))]
                await w.deliver(*texts)
            case "read":
                client.text = tuple(split_messages(w.read(client.who)))
            case "save":
                await self.save(w, client)
            case "lock":
                if client.claim is None:
                    try:
                        client.claim = w.mailbox().lock.dotlock(client.who)
                    except Refused:
                        return
            case "unlock":
                await self.unlock(w, client)
            case "open" | "write":
                text = self.mail()
                try:
                    w.append(client.who, text)
                except Refused:
                    await self.close(w, client)
                    return
                client.writes.append(text)
                client.text = None
            case "close":
                await self.close(w, client)
            case "sync":
                await self.sync(w, client)
            case "die":
                self.die(w, client)
                self.clients[self.clients.index(client)] = Client(w.client("another"))
            case "revoke":
                if client.claim is not None and client.claim.live:
                    w.mailbox().lock.revoke(client.claim, "test")
            case "outside" if not w.mailbox().lock.claims:  # it keeps to the locks
                self.lives.outside_append(self.mail())
            case "time":
                await trio.sleep(self.pick([0.5, 3.0, 70.0]))

    async def save(self, w: Life, client: Client) -> None:
        """Leave out a message, change another; the rest of what was read stays."""
        read = client.text
        if read is None or client.writes:
            return
        new = list(read)
        if new and self.pick([False, True]):
            new.pop(self.pick(range(len(new))))
        if new and self.pick([False, True]):
            at = self.pick(range(len(new)))
            if b"Status: RO" not in new[at]:
                new[at] = new[at].replace(b"\n\n", b"\nStatus: RO\n\n", 1)
        text = b"".join(new)
        how = self.pick(["truncate", "in place", "rename"])

        async def work() -> None:
            if how == "rename":
                await w.replace(client.who, text)
                return
            if how == "truncate":
                w.save(client.who, text)
            else:
                same = len(b"".join(a for a, _ in takewhile(_alike, zip(new, read, strict=False))))
                if same < len(text):
                    w.write_at(client.who, same, text[same:])
                w.truncate(client.who, len(text))
            await w.close(client.who)

        before = w.told.allowed[ALICE]
        saved = await w.doing(
            lambda mail: (*new, *[m for m in mail if m not in read and m not in new]),
            work,
            who=client.who,
        )
        if not saved:
            w.told.must(ALICE, before)
        elif any(s.rewriting for s in w.mailbox().deferred):
            w.told.must(ALICE, before | w.told.allowed[ALICE])  # it may yet become stale
        client.text = tuple(new) if saved else None

    async def close(self, w: Life, client: Client) -> None:
        if not client.writes:
            return
        mails, client.writes, client.text = client.writes, [], None
        await w.doing(
            lambda mail: (*mail, *mails), lambda: w.close(client.who), undone=True, who=client.who
        )

    async def unlock(self, w: Life, client: Client) -> None:
        await self.close(w, client)
        claim, client.claim = client.claim, None
        if claim is not None and claim.live:
            w.mailbox().lock.release(claim)

    async def sync(self, w: Life, client: Client) -> None:
        """What was written is told to be on the disk: the next daemon delivers it, if this one dies."""
        if not client.writes or client.claim is None or not client.claim.live:
            return
        before = w.told.allowed[ALICE]
        mails = tuple(client.writes)
        w.told.must(ALICE, before | {(*mail, *mails) for mail in before})
        await w.mailbox().sync(client.who.process)

    def die(self, w: Life, client: Client) -> None:
        w.mailbox().discard(client.who.process, "died")
        if client.claim is not None and client.claim.live:
            w.mailbox().lock.release(client.claim)


def _alike(two: tuple[bytes, bytes]) -> bool:
    return two[0] == two[1]


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with quiet():
        yield


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
@given(st.data())
def test_histories(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    root = fresh(tmp_path_factory.getbasetemp() / "histories")
    History(lambda some: data.draw(st.sampled_from(some)), root).run()
