"""Queues, places, pollers, leases: everything that takes time, under a clock that jumps."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from trio.testing import Sequencer

from mailfs.errors import Cause, Refused
from mailfs.locking import Ending, LockSettings, Mode
from tests.locking.fakes import FakeProcess, Task, in_trio, req, settle, someone, world

R, A, W = Mode.READ, Mode.APPEND, Mode.WRITE


@in_trio
async def test_first_come_first_served_over_all_protocols() -> None:
    async with world() as w:
        lock, order = w.lock, Sequencer()
        lock.dotlock(holder := someone())

        async def flock(place: int) -> None:
            claim = await lock.flock_wait(someone(), place, W)
            assert claim
            async with order(place):
                lock.drop_handle(place)

        async def fcntl(place: int) -> None:
            await lock.setlk_wait(someone(), place, W, 7, 7)
            async with order(place):
                lock.drop_owner(place)

        async def commit(place: int) -> None:
            claim = await lock.commit(someone(), A, None)
            async with order(place):
                lock.release(claim)

        async with trio.open_nursery() as nursery:
            for place, what in enumerate((flock, fcntl, commit, flock, commit, fcntl)):
                nursery.start_soon(what, place)
                await settle()
            assert w.table.waiting() == 6
            lock.release_dotlock(holder)
        assert w.table.waiting() == 0
        assert w.outside(b"alice").takes == 1, "kept over every hand-over"
        assert w.outside(b"alice").mode is None
        grants = [e.claim.generation for e in w.events if e.what == "granted" and e.claim]
        assert grants == sorted(grants)


@in_trio
async def test_readers_behind_a_waiting_writer_wait_but_trying_ones_do_not() -> None:
    async with world() as w:
        first = someone()
        w.lock.flock(first, 1, R)
        writer = Task(w.nursery, partial(w.lock.flock_wait, someone(), 2, W))
        await settle()
        reader = Task(w.nursery, partial(w.lock.flock_wait, someone(), 3, R))
        await settle()
        assert not reader.done
        assert w.lock.flock(someone(), 4, R), "LOCK_NB is refused by what is held only"
        own = Task(w.nursery, partial(w.lock.setlk_wait, first, "o", R))
        await settle()
        assert own.done, "whoever holds something passes: the writer waits for it"
        for handle in (1, 4):
            w.lock.drop_handle(handle)
        w.lock.drop_owner("o")
        await settle()
        assert writer.done
        assert not reader.done
        w.lock.drop_handle(2)
        await settle()
        assert reader.done


@in_trio
async def test_waiting_delivery_agents_are_let_in_together() -> None:
    async with world() as w:
        w.lock.dotlock(holder := someone("mutt"))
        agents = [
            Task(w.nursery, partial(w.lock.setlk_wait, someone(append_only=True), n, W))
            for n in range(5)
        ]
        await settle()
        w.lock.release_dotlock(holder)
        await settle()
        assert all(agent.done for agent in agents)


@in_trio
async def test_a_dotlock_respects_the_queue() -> None:
    """A stream of deliveries does not keep a mail reader out for ever."""
    async with world() as w:
        w.lock.dotlock(one := someone(append_only=True))
        reader = Task(w.nursery, partial(w.lock.flock_wait, someone("mutt"), 1, W))
        await settle()
        two = someone(append_only=True)
        with pytest.raises(Refused):
            w.lock.dotlock(two)
        assert w.lock.dotlock_seen_by(two) is not None
        w.lock.release_dotlock(one)
        await settle()
        assert reader.done


@in_trio
async def test_cancelled_at_the_moment_of_the_grant() -> None:
    """Whichever comes first counts; a grant is never lost between the two."""
    for cancel_first in (False, True):
        async with world() as w:
            w.lock.dotlock(holder := someone())
            one = Task(w.nursery, partial(w.lock.flock_wait, someone(), 1, W))
            await settle()
            two = Task(w.nursery, partial(w.lock.flock_wait, someone(), 2, W))
            await settle()
            if cancel_first:
                one.scope.cancel()
                w.lock.release_dotlock(holder)
            else:
                w.lock.release_dotlock(holder)
                one.scope.cancel()
            await settle()
            assert one.done is not one.cancelled
            if one.done:
                assert not two.done
                assert one.value.live
                w.lock.release(one.value)
                await settle()
            assert two.done


@in_trio
async def test_leaving_the_head_lets_those_behind_in() -> None:
    async with world() as w:
        w.lock.flock(someone(), 1, R)
        writer = Task(w.nursery, partial(w.lock.flock_wait, someone(), 2, W))
        await settle()
        reader = Task(w.nursery, partial(w.lock.flock_wait, someone(), 3, R))
        await settle()
        writer.scope.cancel()
        await settle()
        assert reader.done


@in_trio
async def test_an_interrupted_waiter_keeps_its_place() -> None:
    async with world() as w:
        w.lock.dotlock(holder := someone())
        dovecot = someone("imap")
        first = Task(w.nursery, partial(w.lock.setlk_wait, dovecot, "d", W))
        await settle()
        second = Task(w.nursery, partial(w.lock.setlk_wait, someone(), "s", W))
        await settle()
        for _ in range(3):
            await trio.sleep(5)
            first.scope.cancel()
            await trio.sleep(0.01)
            first = Task(w.nursery, partial(w.lock.setlk_wait, dovecot, "d", W))
            await settle()
        w.lock.release_dotlock(holder)
        await settle()
        assert first.done
        assert not second.done


@in_trio
async def test_a_place_is_kept_for_a_while_only() -> None:
    async with world() as w:
        w.lock.dotlock(holder := someone())
        dovecot = someone("imap")
        first = Task(w.nursery, partial(w.lock.setlk_wait, dovecot, "d", W))
        await settle()
        second = Task(w.nursery, partial(w.lock.setlk_wait, someone(), "s", W))
        first.scope.cancel()
        await trio.sleep(10.5)
        first = Task(w.nursery, partial(w.lock.setlk_wait, dovecot, "d", W))
        await settle()
        w.lock.release_dotlock(holder)
        await settle()
        assert second.done
        assert not first.done


async def poll(w_lock: object, ask: object, times: int, every: float) -> None:
    for _ in range(times):
        with pytest.raises(Refused):
            ask()  # type: ignore[operator]
        await trio.sleep(every)


@in_trio
async def test_a_patient_poller_gets_the_next_free_moment() -> None:
    async with world() as w:
        lock, poller = w.lock, someone("dotlocker")
        lock.dotlock(holder := someone())
        await poll(lock, lambda: lock.dotlock(poller), 12, 1.0)
        later = Task(w.nursery, partial(lock.flock_wait, someone(), 1, W))
        await settle()
        lock.release_dotlock(holder)
        await settle()
        assert not later.done
        assert [row.state for row in w.table.rows()] == ["reserved", "waiting"]
        with pytest.raises(Refused):
            lock.flock(someone(), 2, R)
        assert lock.dotlock_seen_by(someone()) is not None
        assert lock.dotlock_seen_by(poller) is None
        lock.dotlock(poller)
        assert not later.done
        lock.release_dotlock(poller)
        await settle()
        assert later.done


@in_trio
async def test_an_unused_moment_is_lost_after_two_seconds() -> None:
    async with world() as w:
        lock, poller = w.lock, someone()
        lock.dotlock(holder := someone())
        await poll(lock, lambda: lock.dotlock(poller), 12, 1.0)
        later = Task(w.nursery, partial(lock.flock_wait, someone(), 1, W))
        await settle()
        now = trio.current_time()
        lock.release_dotlock(holder)
        await later.over.wait()
        assert later.at is not None
        assert later.at - now == pytest.approx(2.0, abs=0.11)


@in_trio
async def test_no_moment_is_kept_for_the_impatient_the_slow_or_the_late() -> None:
    async with world() as w:
        lock, impatient, late = w.lock, someone(), someone()
        waiting_longer = someone()
        lock.dotlock(holder := someone())
        first = Task(w.nursery, partial(lock.flock_wait, waiting_longer, 1, W))
        await settle()
        await poll(lock, lambda: lock.dotlock(late), 3, 8.0)
        await poll(lock, lambda: lock.dotlock(impatient), 3, 1.0)
        lock.release_dotlock(holder)
        await settle()
        assert first.done, "who parked before the poller first asked comes first"
        lock.drop_handle(1)
        assert lock.dotlock(someone()), "the slow poller is not expected within two seconds"


@in_trio
async def test_lease_ends_only_when_others_wait_and_the_holder_is_idle() -> None:
    async with world() as w:
        lock, me = w.lock, someone()
        claim = lock.dotlock(me)
        await trio.sleep(1000)
        assert claim.live, "nobody waits"
        lock.touch(me)
        waiter = Task(w.nursery, partial(lock.flock_wait, someone(), 1, W))
        for _ in range(5):
            await trio.sleep(50)
            lock.touch(req(me.process.child()))  # type: ignore[union-attr]
        assert claim.live, "at work"
        touched = trio.current_time()
        await waiter.over.wait()
        assert waiter.at == pytest.approx(touched + 60)
        assert claim.fenced
        assert lock.fenced(me)
        event = next(e for e in w.events if e.what == "revoked")
        assert event.claim is claim
        lock.flock(me, "nothing", None)


@in_trio
async def test_a_poller_counts_as_waiting() -> None:
    async with world() as w:
        lock = w.lock
        claim = lock.dotlock(someone())
        await trio.sleep(300)
        for asker in (someone(), req(None)):
            if not claim.live:
                claim = lock.dotlock(someone())
                await trio.sleep(100)
            with pytest.raises(Refused):
                lock.dotlock(asker)
            await settle()
            assert claim.fenced
            await trio.sleep(30)


@in_trio
async def test_ones_own_attempts_do_not_end_ones_lease() -> None:
    async with world() as w:
        me = someone()
        claim = w.lock.dotlock(me)
        await trio.sleep(100)
        with pytest.raises(Refused):
            w.lock.dotlock(me)
        await trio.sleep(100)
        assert claim.live


@in_trio
async def test_a_waiter_behind_an_unlocked_writer() -> None:
    async with world() as w:
        start = trio.current_time()
        claim = w.lock.writer(someone(), "s", W)
        assert claim
        waiter = Task(w.nursery, partial(w.lock.flock_wait, someone(), 1, W))
        await waiter.over.wait()
        assert waiter.at == pytest.approx(start + 3)
        assert claim.revoked
        assert not claim.fenced


@in_trio
async def test_commit_waits_for_young_readers_and_new_readers_for_it() -> None:
    async with world() as w:
        lock, start = w.lock, trio.current_time()
        young = lock.reader(someone("cat"), "r1", 2.0)
        assert young
        assert lock.try_commit(someone(), A) is None
        commit = Task(w.nursery, partial(lock.commit, someone(), A))
        await settle()
        assert lock.reader(someone("grep"), "r2", 2.0) is None, "new opens park"
        grep = Task(w.nursery, partial(lock.reader_wait, someone("grep"), "r2", 2.0))
        await settle()
        await commit.over.wait()
        assert commit.at == pytest.approx(start + 2)
        assert not grep.done
        lock.release(commit.value)
        await settle()
        assert grep.done


@in_trio
async def test_commit_has_a_limit() -> None:
    async with world() as w:
        w.lock.dotlock(holder := someone())
        commit = Task(w.nursery, partial(w.lock.commit, someone(), W, 2.0))
        await trio.sleep(3)
        assert commit.refused is Cause.WAIT_LIMIT
        assert commit.at == pytest.approx(2.0)
        child = req(holder.process.child())  # type: ignore[union-attr]
        mine = w.lock.try_commit(child, W)
        assert mine, "no obstacle to oneself"
        assert w.lock.try_commit(holder, W) is None, "but one commit at a time"
        w.lock.release(mine)


@in_trio
async def test_limits() -> None:
    settings = LockSettings(max_waiters=6, max_waiters_per_uid=2)
    async with world(settings) as w:
        w.lock.dotlock(someone())
        tasks = []
        for uid in (5, 5, 5, 0, 0, 0, 6, 7):
            tasks.append(Task(w.nursery, partial(w.lock.flock_wait, someone(uid=uid), object(), W)))
            await settle()
        full = Cause.TOO_MANY_WAITERS
        assert [t.refused for t in tasks] == [None, None, full, None, None, None, None, full]
        assert w.table.waiting() == 6
        assert w.table.waiting(5) == 2
        tasks[0].scope.cancel()
        await settle()
        assert w.table.waiting(5) == 1


@in_trio
async def test_deadlock_between_two_mailboxes() -> None:
    async with world() as w:
        one, two = FakeProcess("one"), FakeProcess("two")
        a, b = w.table.lock(b"a"), w.table.lock(b"b")
        a.setlk(req(one), "one", W)
        b.dotlock(req(two.child("helper")))
        waits = Task(w.nursery, partial(b.setlk_wait, req(one), "one", W))
        await settle()
        two.die(Ending.NORMAL)  # says nothing about its helper
        with pytest.raises(Refused) as refused:
            await a.setlk_wait(req(b.claims[0].agent.home), "two", W)  # type: ignore[arg-type]
        assert refused.value.cause is Cause.DEADLOCK
        assert not waits.done
        assert "deadlock" in w.seen()


@in_trio
async def test_upgrade_deadlock_and_no_false_alarm() -> None:
    async with world() as w:
        one, two = someone(), someone()
        w.lock.setlk(one, "one", R)
        w.lock.setlk(two, "two", R)
        upgrade = Task(w.nursery, partial(w.lock.setlk_wait, one, "one", W))
        await settle()
        with pytest.raises(Refused) as refused:
            await w.lock.setlk_wait(two, "two", W)
        assert refused.value.cause is Cause.DEADLOCK
        assert w.lock.claims[0].mode is R, "the old lock was kept"
        w.lock.setlk(two, "two", None)
        await settle()
        assert upgrade.done
        third = Task(w.nursery, partial(w.lock.setlk_wait, two, "two", W))
        await settle()
        assert third.refused is None


@in_trio
async def test_parent_and_child_wait_for_each_others_ranges() -> None:
    """One agent, but two owners: waiting is no deadlock until it is one."""
    async with world() as w:
        parent = FakeProcess()
        child = parent.child()
        w.lock.setlk(req(parent), "p", W, 0, 0)
        w.lock.setlk(req(child), "c", W, 1, 1)
        waits = Task(w.nursery, partial(w.lock.setlk_wait, req(parent), "p", W, 1, 1))
        await settle()
        assert not waits.done
        with pytest.raises(Refused) as refused:
            await w.lock.setlk_wait(req(child), "c", W, 0, 0)
        assert refused.value.cause is Cause.DEADLOCK
        w.lock.drop_owner("c")
        await settle()
        assert waits.done


@in_trio
async def test_a_flock_cycle_is_ended_by_the_lease() -> None:
    async with world() as w:
        one, two = someone(), someone()
        a, b = w.table.lock(b"a"), w.table.lock(b"b")
        a.flock(one, 1, W)
        b.flock(two, 2, W)
        tasks = [
            Task(w.nursery, partial(b.flock_wait, one, 3, W)),
            Task(w.nursery, partial(a.flock_wait, two, 4, W)),
        ]
        await trio.sleep(59)
        assert not any(t.done for t in tasks)
        await trio.sleep(2)
        assert any(t.done for t in tasks)
