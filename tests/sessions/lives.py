"""Daemons one after another on one spool of real files, what their clients were told, and what must then be there."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import os
import shutil
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, TypeVar

import msgspec
import trio
import trio.testing

from mailfs.daemon.config import Backing, Config, Sessions
from mailfs.daemon.core import Core
from mailfs.daemon.recovery import recover
from mailfs.errors import Refused
from mailfs.locking.model import Requester
from mailfs.sessions.merge import split_messages
from mailfs.spool import fileio
from mailfs.spool.door import Door
from mailfs.spool.private import PrivateDirectory
from tests.locking.fakes import FakeProcess
from tests.sessions.disk import Disk, Strike

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from mailfs.daemon.recovery import Step
    from mailfs.locking.rules import Claim
    from mailfs.sessions.mailbox import Mailbox

ALICE, BOB = b"alice", b"bob"
SPILL = 4096
CONFIG = msgspec.structs.replace(
    Config(), backing=Backing(dotlock=False, ofd=False, flock=False), sessions=Sessions(spill=SPILL)
)
POWER = msgspec.structs.replace(CONFIG, sessions=Sessions(spill=SPILL, durability="power"))
Mail = tuple[bytes, ...]
T = TypeVar("T")


def message(name: str, size: int = 40) -> bytes:
    """A message that is not part of another, ends with its name, and has ``size`` bytes of body or more."""
    body = "".join(f"{name} line {n}\n" for n in range(max(1, size // (len(name) + 8))))
    return f"From {name}@test Thu Jan  1 00:00:00 2026\nMessage-ID: <{name}>\n\n{body}end {name}\n\n".encode()


class Told:
    """What clients were told, as the mails that each mailbox may hold."""

    def __init__(self, **mailboxes: Mail) -> None:
        self.allowed: dict[bytes, set[Mail]] = {
            name.encode(): {mail} for name, mail in mailboxes.items()
        }

    def try_(self, name: bytes, change: Callable[[Mail], Mail]) -> set[Mail]:
        """Begin a change; returns what is to be allowed when it has succeeded."""
        before = self.allowed[name]
        after = {change(mail) for mail in before}
        self.allowed[name] = before | after
        return after

    def must(self, name: bytes, mails: set[Mail]) -> None:
        """From now on it is one of these."""
        self.allowed[name] = mails


class Life:
    """One daemon, and its clients."""

    def __init__(
        self, core: Core, told: Told, disk: Disk, nursery: trio.Nursery, steps: list[Step]
    ) -> None:
        self.core = core
        self.disk = disk
        self.told = told
        self.nursery = nursery
        self.steps = steps

    def mailbox(self, name: bytes = ALICE) -> Mailbox:
        return self.core.mailbox(name)

    def client(self, name: str = "prog") -> Requester:
        process = FakeProcess(name)
        return Requester(process=process, uid=os.getuid(), pid=process.pid)

    def read(self, client: Requester, name: bytes = ALICE) -> bytes:
        mailbox = self.mailbox(name)
        assert client.process is not None
        mailbox.saw(client.process)
        return mailbox.store.read(0, mailbox.size)

    def append(
        self, client: Requester, *texts: bytes, name: bytes = ALICE, key: object = None
    ) -> None:
        """Write at the end; may raise what write(2) would."""
        mailbox = self.mailbox(name)
        key = key or client.process
        for text in texts:
            session = mailbox.draft(key, client)
            mailbox.write(session, session.size, text)
            mailbox.claim_for(session, key)

    def write_at(self, client: Requester, offset: int, text: bytes, name: bytes = ALICE) -> None:
        mailbox = self.mailbox(name)
        session = mailbox.draft(client.process, client)
        mailbox.write(session, offset, text)
        mailbox.claim_for(session, client.process)

    def truncate(self, client: Requester, size: int, name: bytes = ALICE) -> None:
        mailbox = self.mailbox(name)
        session = mailbox.draft(client.process, client)
        mailbox.check_stale(session)
        session.truncate(size)

    def save(self, client: Requester, text: bytes, name: bytes = ALICE) -> None:
        """Truncate and write, as an editor does."""
        self.truncate(client, 0, name)
        self.write_at(client, 0, text, name)

    async def replace(self, client: Requester, text: bytes, name: bytes = ALICE) -> None:
        """Rename a new file over the mailbox (`mailfs.fuse.replace`)."""
        door, private = self.core.door, self.core.private
        path = (*private.scratch(client.uid), b"new")
        old = door.stat((name,))
        fd = door.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            fileio.write_all(fd, text, 0)
        finally:
            self.disk.close(fd)

        async def swap(kept: bytes, ends_line: bool) -> None:
            fd = door.open(path, os.O_WRONLY)
            try:
                if kept:
                    fileio.write_all(fd, kept if ends_line else b"\n" + kept, len(text))
                door.chown(path, old.st_uid, old.st_gid)
                door.rename(path, (name,))
            finally:
                self.disk.close(fd)
            self.core.backing.lock_for((name,)).refresh()

        await self.mailbox(name).replace(client, lambda: text, swap)

    async def close(
        self, client: Requester, name: bytes = ALICE, *, patience: float = 2, key: object = None
    ) -> None:
        await self.mailbox(name).commit(key or client.process, patience=patience)

    async def locked(self, client: Requester, name: bytes = ALICE) -> Claim:
        """The lock, as soon as it is to be had."""
        while True:
            try:
                return self.mailbox(name).lock.dotlock(client)
            except Refused:
                await trio.sleep(0.1)

    async def drained(self) -> None:
        """Until nothing waits; the test fails if something waits for ever."""
        mailboxes = list(self.core.mailboxes.values())
        for _ in range(600):
            for mailbox in mailboxes:
                await mailbox.retry_stuck()
            await trio.testing.wait_all_tasks_blocked()
            if not any(m.deferred or m.stuck for m in mailboxes):
                return
            await trio.sleep(1)
        raise AssertionError(f"these wait for ever: {mailboxes}")

    async def doing(
        self, change: Callable[[Mail], Mail], work: Callable[[], Awaitable[None]], name: bytes = ALICE,
        *, undone: bool = False, who: Requester | None = None,
    ) -> bool:  # fmt: skip
        """Do what changes a mailbox, and note what its client is told. Returns whether that is success.

        Args:
            change: what it changes.
            work: does it.
            name: the mailbox.
            who: its client; None: all the clients that there are.
            undone: if its client hears of an error, nothing of it may land later.

        """
        before = self.told.allowed[name]
        after = self.told.try_(name, change)
        try:
            await work()
        except (OSError, Refused):
            for key, session in list(self.mailbox(name).sessions.items()):
                if who is None or session.requester is who:
                    self.mailbox(name).discard(key, "its client gave up")
            if undone:
                self.told.must(name, before)
            return False
        self.told.must(name, after)
        return True

    async def deliver(
        self, *texts: bytes, name: bytes = ALICE, client: Requester | None = None
    ) -> bool:
        """One message in some writes: a whole delivery."""
        client = client or self.client("deliver")

        async def work() -> None:
            try:
                self.append(client, *texts, name=name)
            except OSError:
                self.mailbox(name).discard(client.process, "an error")
                raise
            await self.close(client, name)

        return await self.doing(
            lambda mail: (*mail, *split_messages(b"".join(texts))),
            work,
            name,
            undone=True,
            who=client,
        )


class Lives:
    """A spool and the daemons that serve it, one after another.

    Args:
        root: where the spool is made.
        config: of all daemons.
        mailboxes: what is in them at first.

    """

    def __init__(self, root: Path, config: Config = CONFIG, **mailboxes: Mail) -> None:
        self.root = root
        self.config = config
        self.told = Told(**mailboxes)
        self.disk = Disk()
        self.started = self.calls = 0  # changes and calls until the last daemon was ready
        self.mtimes = itertools.count(2_000_000_000_000_000_000, 1_000_000)
        self._template = {name.encode(): b"".join(mail) for name, mail in mailboxes.items()}
        for name, text in self._template.items():
            (root / name.decode()).write_bytes(text)

    def run(self, script: Callable[[Life], Awaitable[None]], strike: Strike | None = None) -> bool:
        """One daemon; returns whether the strike hit it."""
        disk = self.disk
        disk.begin(strike)
        with disk.installed():
            try:
                trio.run(self._main, script, clock=trio.testing.MockClock(autojump_threshold=0))
            except BaseException:
                if not disk.dead:
                    raise
        return disk.struck

    async def _main(self, script: Callable[[Life], Awaitable[None]]) -> None:
        async with self.life() as life:
            self.started, self.calls = self.disk.changes, self.disk.calls
            await script(life)
            self.disk.heal()
            await life.drained()

    @asynccontextmanager
    async def life(self) -> AsyncIterator[Life]:
        with Door(self.disk.opened(os.open(self.root, os.O_RDONLY | os.O_DIRECTORY))) as door:
            private = PrivateDirectory(door)
            async with trio.open_nursery() as nursery:
                core = Core(self.config, door, private, nursery)
                core.surroundings = dataclasses.replace(core.surroundings, offload=_offload)
                steps = await recover(core)
                yield Life(core, self.told, self.disk, nursery, steps)
                await core.settle()
                nursery.cancel_scope.cancel()
            core.close()
            private.close()

    # Programs that do not go through the mount

    def outside_append(self, text: bytes, name: bytes = ALICE) -> None:
        """Another program appends to the real file."""
        path = self.root / name.decode()
        last = path.read_bytes()[-1:]
        with path.open("ab") as file:
            file.write((b"\n" if last not in (b"", b"\n") else b"") + text)
        self.told.must(name, {(*mail, text) for mail in self.told.allowed[name]})
        self._touch(path)

    def _touch(self, path: Path) -> None:
        stamp = next(self.mtimes)
        os.utime(path, ns=(stamp, stamp))

    # What must hold

    def content(self, name: bytes = ALICE) -> bytes:
        return (self.root / name.decode()).read_bytes()

    def rescued(self) -> list[bytes]:
        return [path.read_bytes() for path in sorted((self.root / ".mailfs/rescue").iterdir())]

    def check(self, when: str) -> None:
        """Each mailbox holds what its clients were told."""
        for name, allowed in self.told.allowed.items():
            content = self.content(name)
            mails = tuple(mail.rstrip(b"\n") + b"\n\n" for mail in split_messages(content))
            good = {tuple(sorted(mail)) for mail in allowed}
            if tuple(sorted(mails)) not in good:
                calls = "\n".join(map(str, self.disk.log))
                raise AssertionError(
                    f"{when}: {name!r} holds {_short(mails)}, not one of {[_short(m) for m in allowed]}\n{calls}"
                )

    def journal(self) -> list[str]:
        """The files of the journal."""
        return os.listdir(self.root / ".mailfs/journal")

    def check_journal(self, when: str) -> None:
        """Nothing is left in it, not even free files."""
        left = self.journal()
        assert left == [], f"{when}: {left}"

    def recovered(self, when: str, *, once: bool = False) -> list[Step]:
        """The next daemon recovers, and, if not only ``once``, the one after it finds nothing to do."""
        steps: list[Step] = []

        async def look(life: Life) -> None:
            steps.extend(life.steps)

        self.run(look)
        self.check(f"{when}, recovered")
        self.check_journal(f"{when}, recovered")
        if once:
            return steps
        before = {name: self.content(name) for name in self.told.allowed}
        rescued = self.rescued()
        again = list(steps)
        steps.clear()
        self.run(look)
        assert steps == [], f"{when}: a second recovery found {steps}"
        assert before == {name: self.content(name) for name in self.told.allowed}
        assert rescued == self.rescued()
        return again


async def _offload(function: Callable[[], T]) -> T:
    await trio.lowlevel.checkpoint()
    return function()


def _short(mails: Mail) -> str:
    return " ".join(_name(mail) for mail in mails)


def _name(mail: bytes) -> str:
    """For people: the name of a whole message of `message`, else what it is."""
    name = mail[5 : mail.find(b"@")].decode(errors="replace")
    if mail.endswith(f"\nend {name}\n\n".encode()) and mail.count(b"From ") == 1:
        return name if b"LINE" not in mail else name.upper()
    return repr(mail if len(mail) < 300 else mail[:150] + b" ... " + mail[-150:])


def fresh(root: Path) -> Path:
    """An empty directory of that name."""
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    return root


@contextmanager
def quiet() -> Iterator[None]:
    """Errors of the disk are what these tests are about."""
    logger = logging.getLogger("mailfs")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)
