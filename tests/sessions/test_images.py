"""Programs that change a mailbox by themselves: what they leave is kept or undone as a whole."""

from __future__ import annotations

import errno

import pytest

from mailfs.errors import Cause, Refused
from mailfs.locking import Mode
from mailfs.sessions.record import State
from tests.locking.fakes import in_trio
from tests.sessions.fakes import World, world
from tests.sessions.test_merge import message

A, B, C = message("a"), message("b"), message("c")


async def change(w: World, text: bytes) -> None:
    """What a mapping does: sizes through us, bytes around us."""
    w.mailbox.truncate_through(len(text))
    w.store.write(0, text)


@in_trio
async def test_what_was_changed_is_kept_at_unlock() -> None:
    async with world(A + B) as w:
        one = w.client("mda")
        claim = w.mailbox.lock.dotlock(one)
        await w.mailbox.write_through(one)
        assert [record.state for record in w.journal.records] == [State.IMAGE]
        await change(w, B)
        assert w.mailbox.written_through_by(one.process)
        await w.mailbox.commit_own(one)
        w.mailbox.lock.release(claim)
        assert w.store.content == B
        assert w.journal.records == []
        assert w.mailbox.rewrites == 1


@in_trio
async def test_growing_is_an_append() -> None:
    async with world(A) as w:
        reader, one = w.client("vi"), w.client("mda")
        w.read(reader)
        claim = w.mailbox.lock.dotlock(one)
        await w.mailbox.write_through(one)
        await change(w, A + B)
        await w.mailbox.commit_own(one)
        w.mailbox.lock.release(claim)
        w.save(reader, C)
        await w.close(reader)
        assert w.store.content == C + B


@in_trio
async def test_who_is_killed_leaves_what_was_there() -> None:
    async with world(A + B) as w:
        one = w.client("mda")
        w.mailbox.lock.dotlock(one)
        await w.mailbox.write_through(one)
        await change(w, B[:7])
        await w.mailbox.undo_changes(one.process, "killed")
        assert w.store.content == A + B
        assert w.journal.records == []


@in_trio
async def test_others_commit_when_it_is_done() -> None:
    async with world(A) as w:
        one, two = w.client("mda"), w.client("procmail")
        claim = w.mailbox.lock.dotlock(one)
        await w.mailbox.write_through(one)
        w.append(two, C)
        await w.close(two)
        w.mailbox.lock.release(claim)  # whatever becomes of its lock, it is not done
        await change(w, A + B)
        assert w.store.content == A + B
        await w.mailbox.keep_changes(one.process)
        await w.settled()
        assert w.store.content == A + B + C


@in_trio
async def test_without_the_mailbox_for_itself_it_is_refused() -> None:
    async with world(A) as w:
        one, two = w.client("mda"), w.client("procmail")
        claim = w.mailbox.lock.try_commit(two, Mode.WRITE)
        assert claim is not None
        with pytest.raises(Refused) as refused:
            await w.mailbox.write_through(one)
        assert refused.value.cause is Cause.LOCK_HELD


@in_trio
async def test_an_unmount_undoes_it() -> None:
    async with world(A + B) as w:
        one = w.client("mda")
        w.mailbox.lock.dotlock(one)
        await w.mailbox.write_through(one)
        await change(w, B[:7])
        await w.mailbox.settle()
        assert w.store.content == A + B


@in_trio
async def test_a_disk_that_fails_while_it_is_undone() -> None:
    async with world(A + B) as w:
        one = w.client("mda")
        await w.mailbox.write_through(one)
        await change(w, B[:7])
        w.store.failing = OSError(errno.EIO, "broken")
        await w.mailbox.undo_changes(one.process, "killed")
        assert w.mailbox.stuck is not None
        w.store.failing = None
        await w.mailbox.retry_stuck()
        assert w.store.content == A + B
        assert w.journal.records == []
