"""Readers without locks (4.7) and holds for a session (4.6): who waits for whom, and nobody for ever."""

from __future__ import annotations

from functools import partial

import pytest
import trio

from mailfs.errors import Cause, Refused
from mailfs.locking import Ending, Kind, LockSettings, MailboxLock, Mode, Requester
from tests.locking.fakes import FakeProcess, Task, World, in_trio, req, settle, someone, world

R, A, W = Mode.READ, Mode.APPEND, Mode.WRITE
YOUNG = 2.0


async def read(lock: MailboxLock, who: Requester, key: object, takes: float) -> float:
    """Open as the mount does, read for a while, close; gives the seconds the open waited."""
    before = trio.current_time()
    claim = lock.reader(who, key, YOUNG) or await lock.reader_wait(who, key, YOUNG)
    waited = trio.current_time() - before
    await trio.sleep(takes)
    lock.release(claim)
    return waited


async def commit(lock: MailboxLock, who: Requester, takes: float = 0.0) -> float:
    """Commit; gives the seconds it waited."""
    before = trio.current_time()
    claim = lock.try_commit(who, A) or await lock.commit(who, A)
    waited = trio.current_time() - before
    await trio.sleep(takes)
    lock.release(claim)
    return waited


def readers(w: World) -> int:
    return sum(claim.kind is Kind.READER for claim in w.lock.claims)


@in_trio
async def test_readers_that_loop_and_commits_that_loop_do_not_starve_each_other() -> None:
    async with world() as w:
        waits: dict[str, list[float]] = {"read": [], "commit": []}

        async def reader(number: int) -> None:
            who = someone("cat")
            for turn in range(200):
                waits["read"].append(await read(w.lock, who, (number, turn), 0.05))

        async def writer() -> None:
            who = someone("local")
            for _ in range(100):
                waits["commit"].append(await commit(w.lock, who, 0.01))

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(reader, number)
                nursery.start_soon(writer)
                nursery.start_soon(writer)
        assert max(waits["commit"]) <= 0.2, "what is already reading, and the other writer"
        assert max(waits["read"]) <= 0.2
        assert len(waits["read"]) == 600


@in_trio
async def test_a_commit_waits_for_what_is_reading_and_for_nothing_else() -> None:
    async with world() as w:
        cat = w.lock.reader(someone("cat"), 1, YOUNG)
        assert cat
        waiting = Task(w.nursery, partial(commit, w.lock, someone(), 0.0))
        await settle()
        late = Task(w.nursery, partial(read, w.lock, someone("grep"), 2, 0.0))
        await trio.sleep(0.3)
        assert not waiting.done
        assert not late.done
        w.lock.release(cat)
        await settle()
        assert waiting.value == pytest.approx(0.3)
        assert late.done


@in_trio
async def test_an_old_handle_holds_up_nothing() -> None:
    async with world() as w:
        assert w.lock.reader(someone("tail"), 1, YOUNG)
        await trio.sleep(YOUNG + 0.1)
        assert await commit(w.lock, someone()) == 0
        assert readers(w) == 0


@in_trio
async def test_readers_are_let_in_while_a_commit_waits_for_a_lock() -> None:
    """Otherwise a mail reader that keeps its lock would keep everybody from looking."""
    async with world() as w:
        holder = someone("mutt")
        w.lock.dotlock(holder)
        waiting = Task(w.nursery, partial(commit, w.lock, someone()))
        await settle()
        cat = w.lock.reader(someone("cat"), 1, YOUNG)
        assert cat, "no wait"
        w.lock.release_dotlock(holder)
        await settle()
        assert not waiting.done, "now it waits for the reader only"
        assert w.lock.reader(someone("grep"), 2, YOUNG) is None
        w.lock.release(cat)
        await settle()
        assert waiting.done


@in_trio
async def test_readers_that_wait_are_let_in_when_the_commit_must_wait_for_a_lock_after_all() -> (
    None
):
    async with world() as w:
        cat = w.lock.reader(someone("cat"), 1, YOUNG)
        assert cat
        waiting = Task(w.nursery, partial(commit, w.lock, someone()))
        await settle()
        grep = Task(w.nursery, partial(read, w.lock, someone("grep"), 2, 0.0))
        await settle()
        assert not grep.done
        w.lock.setlk(someone("mutt"), "mutt", W)  # F_SETLK is refused only by what is held
        await settle()
        assert grep.done
        assert not waiting.done


@in_trio
async def test_readers_are_let_in_while_somebody_outside_has_the_mailbox() -> None:
    async with world() as w:
        outside = w.outside(b"alice")
        outside.set_foreign(True)
        waiting = Task(w.nursery, partial(commit, w.lock, someone()))
        await settle()
        with trio.fail_after(0.1):
            await read(w.lock, someone("cat"), 1, 0.0)
        outside.set_foreign(False)
        await settle()
        assert waiting.done


@in_trio
async def test_ones_own_reading_is_no_obstacle() -> None:
    async with world() as w:
        shell = FakeProcess("sh")
        assert w.lock.reader(req(shell), 1, YOUNG)
        assert await commit(w.lock, req(shell)) == 0
        assert await commit(w.lock, req(shell.child())) == 0, "exec 3<mbox; cat x >>mbox"
        assert w.lock.try_commit(someone(), A) is None


@in_trio
async def test_a_childs_reading_is_respected_by_its_parent() -> None:
    async with world() as w:
        shell = FakeProcess("sh")
        assert w.lock.reader(req(shell.child("cat")), 1, YOUNG)
        assert w.lock.try_commit(req(shell), W) is None
        assert w.lock.try_commit(req(shell.child("cp")), W) is None


@in_trio
async def test_who_reads_already_may_open_again_but_gains_no_time() -> None:
    async with world() as w:
        start, cat = trio.current_time(), someone("cat")
        assert w.lock.reader(cat, 0, YOUNG)
        waiting = Task(w.nursery, partial(commit, w.lock, someone()))
        for turn in range(1, 100):
            await trio.sleep(0.1)
            w.lock.reader(cat, turn, YOUNG)
        assert waiting.at is not None, "a reader that never closes keeps commits away for ever"
        assert waiting.at - start == pytest.approx(YOUNG)


@in_trio
@pytest.mark.parametrize("wait", [False, True])
async def test_a_program_that_locks_is_no_young_reader(wait: bool) -> None:
    async with world() as w:
        mutt, lock = someone("mutt"), w.lock
        assert lock.reader(mutt, 1, YOUNG)
        if wait:
            w.lock.dotlock(holder := someone())
            task = Task(w.nursery, partial(w.lock.setlk_wait, mutt, "m", R))
            await settle()
            assert readers(w) == 0, "nobody waits for a reader that waits itself"
            w.lock.release_dotlock(holder)
            await settle()
            assert task.done
        else:
            w.lock.setlk(mutt, "m", R)
        assert readers(w) == 0
        assert lock.locked_by(mutt)
        assert not lock.locked_by(someone())
        lock.drop_owner("m")
        assert not lock.locked_by(mutt)


@in_trio
async def test_a_helpers_lock_is_its_users() -> None:
    async with world() as w:
        mutt = FakeProcess("mutt")
        assert w.lock.reader(req(mutt), 1, YOUNG)
        w.lock.dotlock(req(mutt.child("mutt_dotlock")))
        assert readers(w) == 0
        assert w.lock.locked_by(req(mutt))


@in_trio
async def test_a_reader_passes_no_queue_for_locks() -> None:
    """Dovecot opens the mailbox and then waits for its lock: it is not the first for having opened it."""
    async with world() as w:
        w.lock.dotlock(holder := someone())
        first = Task(w.nursery, partial(w.lock.flock_wait, someone(), 1, W))
        await settle()
        dovecot = someone("imap")
        assert w.lock.reader(dovecot, 2, YOUNG)
        second = Task(w.nursery, partial(w.lock.setlk_wait, dovecot, "d", W))
        await settle()
        w.lock.release_dotlock(holder)
        await settle()
        assert first.done
        assert not second.done


@in_trio
async def test_a_young_reader_closes_no_cycle() -> None:
    async with world() as w:
        one, two = someone("one"), someone("two")
        w.table.lock(b"bob").setlk(two, "two", W)
        assert w.lock.reader(one, 1, YOUNG)
        waiting = Task(w.nursery, partial(commit, w.lock, two))
        await settle()
        lock = w.table.lock(b"bob").setlk_wait
        task = Task(w.nursery, partial(lock, one, "one", W))
        await waiting.over.wait()
        assert task.refused is None


@in_trio
async def test_somebody_who_may_not_write_reads_for_his_moment() -> None:
    async with world() as w:
        stranger = someone("cat", may_write=False)
        assert w.lock.reader(stranger, 1, 0.2)
        assert await commit(w.lock, someone()) == pytest.approx(0.2)


@in_trio
async def test_a_new_file_takes_the_mailboxs_place_beside_its_readers() -> None:
    async with world() as w:
        assert w.lock.reader(someone("cat"), 1, YOUNG)
        claim = w.lock.try_commit(someone("sed"), W, beside_readers=True)
        assert claim
        w.lock.end_readers()
        w.lock.release(claim)
        assert await commit(w.lock, someone()) == 0


@in_trio
async def test_handles_that_stay_open_leave_nothing_behind() -> None:
    async with world() as w:
        for number in range(1000):
            assert w.lock.reader(someone(), number, YOUNG)
        await trio.sleep(YOUNG + 1)
        assert w.lock.reader(someone(), "new", YOUNG)
        assert readers(w) == 1
        assert await commit(w.lock, someone()) == pytest.approx(YOUNG)
        assert readers(w) == 0


# Holds for a session


@in_trio
async def test_a_session_is_exclusive_and_ends_with_its_release() -> None:
    async with world() as w:
        pop = someone("pop3")
        claim = await w.lock.session(pop)
        assert await w.lock.session(pop) is claim
        assert w.outside(b"alice").mode is W
        assert w.lock.dotlock_seen_by(pop) is None
        assert w.lock.dotlock_seen_by(someone()) is claim
        waiting = Task(w.nursery, partial(commit, w.lock, someone("local")))
        with trio.fail_after(0.1):
            await read(w.lock, someone("cat"), 1, 0.0)
        w.lock.dotlock(pop)
        w.lock.release_dotlock(pop)
        await settle()
        assert not waiting.done
        assert w.lock.session_of(pop.process) is claim
        w.lock.release(claim)
        await settle()
        assert waiting.done


@in_trio
@pytest.mark.parametrize("ending", list(Ending))
async def test_a_session_dies_with_its_process(ending: Ending) -> None:
    async with world() as w:
        login = FakeProcess("login")
        pop = login.child("pop3")
        await w.lock.session(req(pop))
        pop.die(ending)
        await settle()
        assert w.lock.claims == ()
        assert "freed" in w.seen()


@in_trio
async def test_a_session_waits_its_turn_and_readers_of_its_own_do_not_matter() -> None:
    async with world() as w:
        holder = someone()
        w.lock.dotlock(holder)
        pop = someone("pop3")
        task = Task(w.nursery, partial(w.lock.session, pop))
        await settle()
        assert not task.done
        with pytest.raises(Refused) as refused:
            w.lock.try_session(someone("pop3"))
        assert refused.value.cause is Cause.LOCK_HELD
        w.lock.release_dotlock(holder)
        await settle()
        assert task.value is w.lock.session_of(pop.process)


@in_trio
async def test_an_idle_session_is_ended_for_those_who_wait() -> None:
    async with world(LockSettings(lease=60)) as w:
        pop = someone("pop3")
        claim = await w.lock.session(pop)
        await trio.sleep(100)
        assert claim.live, "nobody waits"
        w.lock.touch(pop)
        waiting = Task(w.nursery, partial(commit, w.lock, someone("local")))
        await waiting.over.wait()
        assert waiting.value == pytest.approx(60)
        assert claim.fenced
        assert w.lock.fenced(pop)


@in_trio
async def test_two_that_read_and_save_do_not_wait_for_each_other() -> None:
    """Both have the mailbox open for reading and writing, and are in close()."""
    async with world() as w:
        programs = [someone("one"), someone("two")]
        for who in programs:
            assert w.lock.reader(who, who, YOUNG)
        saves = []
        for who in programs:
            w.lock.end_reading(who.process)
            saves.append(Task(w.nursery, partial(commit, w.lock, who)))
        with trio.fail_after(0.1):
            for save in saves:
                await save.over.wait()
