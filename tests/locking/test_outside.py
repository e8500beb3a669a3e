"""The lock on the real file: when it is taken, kept, weakened, released, waited for."""

from __future__ import annotations

import errno
from functools import partial

import pytest
import trio

from mailfs.errors import Cause, Refused
from mailfs.locking import Mode
from tests.locking.fakes import Task, in_trio, settle, someone, world

R, A, W = Mode.READ, Mode.APPEND, Mode.WRITE


@in_trio
async def test_as_strong_as_what_is_held() -> None:
    async with world() as w:
        outside, one, two = w.outside(b"alice"), someone(), someone()
        w.lock.flock(one, 1, R)
        assert outside.mode is R
        w.lock.flock(two, 2, R)
        assert outside.takes == 1
        w.lock.drop_handle(2)
        w.lock.flock(one, 1, W)
        assert outside.mode is W
        w.lock.flock(one, 1, R)
        assert outside.mode is R
        w.lock.drop_handle(1)
        assert outside.mode is None


@in_trio
async def test_unlocked_readers_leave_it_alone() -> None:
    async with world() as w:
        assert w.lock.flock(someone(may_write=False), 3, R)
        assert w.lock.reader(someone(), 2, 1.0)
        assert w.outside(b"alice").mode is None


@in_trio
async def test_an_unlocked_writer_holds_it_while_it_holds_the_mailbox() -> None:
    async with world() as w:
        claim = w.lock.writer(someone(), 1, A)
        assert claim is not None
        assert w.outside(b"alice").mode is W
        w.lock.release(claim)
        assert w.outside(b"alice").mode is None
        w.outside(b"alice").set_foreign(True)
        assert w.lock.writer(someone(), 1, A) is None


@in_trio
async def test_held_by_a_program_outside() -> None:
    async with world() as w:
        outside = w.outside(b"alice")
        outside.set_foreign(True)
        with pytest.raises(Refused) as refused:
            w.lock.dotlock(someone())
        assert refused.value.cause is Cause.LOCK_HELD
        assert "otherhost" in refused.value.detail
        tasks = [Task(w.nursery, partial(w.lock.flock_wait, someone(), n, R)) for n in range(3)]
        await settle()
        assert outside.acquiring == 1, "one task waits, however many wait for it"
        await trio.sleep(100)
        outside.set_foreign(False)
        await settle()
        assert all(task.done for task in tasks)
        for n in range(3):
            w.lock.drop_handle(n)
        assert outside.mode is None


@in_trio
async def test_nobody_waits_any_more() -> None:
    async with world() as w:
        outside = w.outside(b"alice")
        outside.set_foreign(True)
        task = Task(w.nursery, partial(w.lock.flock_wait, someone(), 1, W))
        await settle()
        task.scope.cancel()
        await settle()
        assert outside.acquiring == 0
        again = Task(w.nursery, partial(w.lock.flock_wait, someone(), 1, W))
        await settle()
        outside.set_foreign(False)
        again.scope.cancel()
        await settle()
        assert outside.mode is None, "had at the moment the last one left: given back"
        assert w.table.rows() == []
        assert not w.table.busy


@pytest.mark.parametrize(
    ("number", "cause"),
    [
        (errno.ENOSPC, Cause.NO_SPACE),
        (errno.EDQUOT, Cause.QUOTA),
        (errno.EACCES, Cause.IO),
        (errno.EROFS, Cause.IO),
        (errno.EIO, Cause.IO),
    ],
)
def test_errors(number: int, cause: Cause) -> None:
    @in_trio
    async def check() -> None:
        async with world() as w:
            outside = w.outside(b"alice")
            outside.error = OSError(number, "no")
            with pytest.raises(Refused) as refused:
                w.lock.dotlock(someone())
            assert refused.value.cause is cause
            with pytest.raises(Refused) as refused:
                w.lock.try_commit(someone(), A)
            assert refused.value.cause is cause
            with pytest.raises(Refused):
                await w.lock.flock_wait(someone(), 1, W)
            outside.error = None
            outside.set_foreign(True)
            task = Task(w.nursery, partial(w.lock.flock_wait, someone(), 1, W))
            await settle()
            outside.fail(OSError(number, "no"))
            await settle()
            assert task.refused is cause
            assert w.table.waiting() == 0
            outside.error = None
            outside.set_foreign(False)
            assert w.lock.dotlock(someone())

    check()


@in_trio
async def test_strengthening_waits_for_foreign_readers() -> None:
    async with world() as w:
        outside, me = w.outside(b"alice"), someone()
        w.lock.setlk(me, "o", R)
        outside.set_foreign(True)
        upgrade = Task(w.nursery, partial(w.lock.setlk_wait, me, "o", W))
        await settle()
        assert w.lock.flock(someone(), 1, R), "what is held is enough for this"
        w.lock.drop_handle(1)
        assert not upgrade.done
        outside.set_foreign(False)
        await settle()
        assert upgrade.done
        assert outside.mode is W
