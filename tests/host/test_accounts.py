from __future__ import annotations

import os
import pwd
import threading
import time
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mailfs.host.accounts import Account, Accounts
from tests.host.children import until

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio.abc import Clock


class Database:
    """A user database that can be counted, changed, stopped and broken."""

    def __init__(self, **accounts: int) -> None:
        self.accounts = accounts
        self.asked: list[str] = []
        self.answers = threading.Event()
        self.answers.set()
        self.broken: Exception | None = None

    def by_name(self, name: str) -> pwd.struct_passwd:
        self.asked.append(name)
        self.answers.wait(30)
        if self.broken:
            raise self.broken
        uid = self.accounts[name]
        return pwd.struct_passwd((name, "x", uid, uid + 1, "", "/", "/bin/sh"))


class Hand(trio.abc.Clock):
    """A clock moved by hand: real threads answer, and time limits are those of the test."""

    def __init__(self) -> None:
        self.now = 0.0

    def start_clock(self) -> None: ...

    def current_time(self) -> float:
        return self.now

    def deadline_to_sleep_time(self, deadline: float) -> float:
        return max(0.0, min(deadline - self.now, 0.01))


def run(main: Callable[[], Awaitable[None]], clock: Clock | None = None) -> None:
    async def limited() -> None:
        await main()

    trio.run(limited, clock=clock)


def test_the_real_database() -> None:
    me = pwd.getpwuid(os.getuid())

    async def main() -> None:
        accounts = Accounts()
        name = os.fsencode(me.pw_name)
        account = await accounts.lookup(name)
        assert account is not None
        assert await accounts.name_of(account.uid) == os.fsencode(pwd.getpwuid(account.uid).pw_name)
        assert accounts.cached(name) == account
        assert await accounts.lookup(b"no-such-account-here") is None
        assert await accounts.name_of(2**32 - 2) in (None, b"nobody")
        assert await accounts.name_of(2**70) is None
        assert await accounts.name_of(-(2**70)) is None

    run(main)


@pytest.mark.parametrize(
    "name", [b"", b".", b"..", b"a/b", b"a\0b", b"\xff\xfe", b"x" * 256, b"../passwd"]
)
def test_names_that_are_not_asked_about(name: bytes) -> None:
    async def main() -> None:
        database = Database()
        accounts = Accounts(by_name=database.by_name)
        assert await accounts.lookup(name) is None
        assert accounts.knows(name)
        assert accounts.cached(name) is None
        assert database.asked == []

    run(main)


@pytest.mark.parametrize("name", [b"a\nb", b"-", b"x" * 255, "jürgen".encode(), b" ", b":"])
def test_odd_names_are_asked_about(name: bytes) -> None:
    async def main() -> None:
        assert await Accounts().lookup(name) is None

    run(main)


def test_answers_are_believed_for_a_while() -> None:
    clock, database = Hand(), Database(alice=1001)

    async def main() -> None:
        accounts = Accounts(by_name=database.by_name, believed=5)
        assert not accounts.knows(b"alice")
        assert accounts.cached(b"alice") is None
        for _ in range(2):
            assert await accounts.lookup(b"alice") == Account(1001, 1002)
            assert await accounts.lookup(b"bob") is None
        assert database.asked == ["alice", "bob"]
        assert accounts.knows(b"bob")
        database.accounts["bob"] = 1002
        clock.now = 5.1
        assert accounts.cached(b"alice") == Account(1001, 1002)
        assert await accounts.lookup(b"bob") == Account(1002, 1003)
        del database.accounts["alice"]
        assert await accounts.lookup(b"alice") is None
        assert accounts.cached(b"alice") is None

    run(main, clock)


def test_one_call_for_all_who_ask() -> None:
    database = Database(alice=1001)
    database.answers.clear()
    answers: list[Account | None] = []

    async def main() -> None:
        accounts = Accounts(by_name=database.by_name)

        async def ask() -> None:
            answers.append(await accounts.lookup(b"alice"))

        scope = trio.CancelScope()

        async def leave() -> None:
            with scope:
                await accounts.lookup(b"alice")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(leave)  # the first to ask goes away again
            await wait_all_tasks_blocked()
            for _ in range(10):
                nursery.start_soon(ask)
            await wait_all_tasks_blocked()
            scope.cancel()
            await wait_all_tasks_blocked()
            database.answers.set()

    run(main)
    assert answers == [Account(1001, 1002)] * 10
    assert database.asked == ["alice"]


def test_a_database_that_hangs() -> None:
    database = Database(alice=1001)

    async def main() -> None:
        accounts = Accounts(by_name=database.by_name, believed=0, patience=0.05, threads=2)
        assert await accounts.lookup(b"alice") == Account(1001, 1002)
        database.answers.clear()
        database.accounts["alice"] = 2001
        started = time.monotonic()
        assert await accounts.lookup(b"alice") == Account(1001, 1002)  # the last known
        assert await accounts.lookup(b"bob") is None
        assert await accounts.lookup(b"carol") is None  # no thread left
        assert await accounts.lookup(b"alice") == Account(1001, 1002)
        assert 0.15 < time.monotonic() - started < 10
        assert database.asked == ["alice", "alice", "bob"]
        database.answers.set()
        with trio.fail_after(10):
            for call in list(accounts._asked.values()):
                await call.wait()
        assert accounts.cached(b"alice") == Account(2001, 2002)
        assert await accounts.lookup(b"carol") is None
        assert database.asked[3:] == ["carol"]

    run(main)


@pytest.mark.parametrize("error", [OSError("down"), ValueError("odd"), RuntimeError("worse")])
def test_a_database_that_fails(error: Exception) -> None:
    database = Database(alice=1001)

    async def main() -> None:
        accounts = Accounts(by_name=database.by_name, believed=0)
        await accounts.lookup(b"alice")
        database.broken = error
        assert await accounts.lookup(b"alice") == Account(1001, 1002)
        assert await accounts.lookup(b"bob") is None
        assert not accounts.knows(b"bob")

    run(main)


def test_the_number_of_answers_is_bounded() -> None:
    database = Database(alice=1001)

    async def main() -> None:
        accounts = Accounts(by_name=database.by_name, remembered=10)
        for number in range(50):
            await accounts.lookup(b"stranger%d" % number)
            await accounts.lookup(b"alice")
        assert len(accounts._known) == 10
        assert accounts.cached(b"alice") == Account(1001, 1002)
        assert database.asked.count("alice") == 1

    run(main)


def test_a_call_that_outlives_the_loop() -> None:
    database = Database(alice=1001)
    database.answers.clear()

    async def main() -> None:
        await Accounts(by_name=database.by_name, patience=0.01).lookup(b"alice")

    run(main)
    threads = threading.active_count()
    database.answers.set()
    until(lambda: threading.active_count() <= threads)
