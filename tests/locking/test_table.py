"""What all locks share: being forgotten, rows, events."""

from __future__ import annotations

import gc
import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from mailfs.locking import Kind, LockEvent, LockSettings, LockTable, Mode
from tests.locking.fakes import FakeOutside, Task, in_trio, req, settle, someone, world

if TYPE_CHECKING:
    import pytest

R, A, W = Mode.READ, Mode.APPEND, Mode.WRITE


@in_trio
async def test_quiet_mailboxes_cost_nothing() -> None:
    async with world() as w:
        gc.collect()
        gc.disable()  # nothing may depend on the collector of cycles
        try:
            me = someone()
            for number in range(1000):
                lock = w.table.lock(b"%d" % number)
                lock.dotlock(me)
                lock.flock(me, 1, W)
                lock.drop_handle(1)
                lock.release_dotlock(me)
                writer = lock.writer(me, 1, W)
                assert writer
                lock.release(writer)
            await settle()
            del lock
            assert len(w.table._locks) == 0
            assert not w.table.busy
        finally:
            gc.enable()


@in_trio
async def test_one_lock_for_one_mailbox() -> None:
    async with world() as w:
        lock = w.table.lock(b"x")
        assert w.table.lock(b"x") is lock
        claim = lock.flock(someone(), 1, W)
        assert claim
        number = id(lock)
        del lock
        gc.collect()
        assert id(w.table.lock(b"x")) == number, "something is held: it stays"


@in_trio
async def test_a_fence_outlives_the_lock() -> None:
    async with world() as w:
        me = someone()
        claim = w.lock.dotlock(me)
        w.lock.revoke(claim, "test")
        gc.collect()
        assert w.lock.fenced(me)
        assert w.table.rows() == []
        me.process.die()  # type: ignore[union-attr]
        assert w.table.rows() == []
        assert not w.table.busy


@in_trio
async def test_rows() -> None:
    async with world() as w:
        hostile = b"x\n\xff/../" + b"y" * 249
        lock = w.table.lock(hostile)
        lock.flock(one := someone("procmail", append_only=True), 1, W)
        lock.reader(someone("cat"), 2, 1.0)
        await trio.sleep(5)
        lock.touch(one)
        waiter = Task(w.nursery, partial(lock.setlk_wait, req(None, uid=9), "o", R))
        await trio.sleep(1)
        rows = w.table.rows()
        assert {row.mailbox for row in rows} == {hostile}
        held, reader, waiting = rows
        assert (held.state, held.mode, held.kind, held.program) == (
            "held",
            A,
            Kind.FLOCK,
            "procmail",
        )
        assert held.generation > 0
        assert held.idle == 1.0
        assert held.lease_until == 65.0
        assert reader.lease_until is None
        assert (waiting.state, waiting.uid, waiting.program, waiting.since) == (
            "waiting",
            9,
            "?",
            5.0,
        )
        waiter.scope.cancel()


@in_trio
async def test_listener_that_fails(caplog: pytest.LogCaptureFixture) -> None:
    def listener(_event: LockEvent) -> None:
        raise ValueError("bug")

    async with trio.open_nursery() as nursery:
        table = LockTable(nursery, LockSettings(), lambda _key: FakeOutside(), listener)
        with caplog.at_level(logging.CRITICAL):
            assert table.lock(b"x").dotlock(someone()).live
        nursery.cancel_scope.cancel()


@in_trio
async def test_listener_that_asks_back() -> None:
    """A listener may give locks back in the middle of a walk."""
    async with world() as w:
        table: LockTable

        def listener(event: LockEvent) -> None:
            if (
                event.what == "granted"
                and event.claim is not None
                and event.claim.kind is Kind.FLOCK
            ):
                table.lock(event.key).release(event.claim)

        table = LockTable(w.nursery, w.settings, w.outside, listener)
        lock = table.lock(b"x")
        claim = lock.dotlock(holder := someone())
        tasks = [Task(w.nursery, partial(lock.flock_wait, someone(), n, W)) for n in range(5)]
        await settle()
        assert claim.live
        lock.release_dotlock(holder)
        await settle()
        assert all(task.done for task in tasks)
        assert lock.claims == ()


@in_trio
async def test_after_the_nursery_is_gone() -> None:
    async with trio.open_nursery() as nursery:
        table = LockTable(nursery, LockSettings(), lambda _key: FakeOutside())
    lock = table.lock(b"x")
    lock.dotlock(me := someone())
    with trio.move_on_after(1):
        await lock.flock_wait(someone(), 1, W)
    lock.release_dotlock(me)
    assert lock.claims == ()
