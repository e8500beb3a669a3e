"""What excludes what, as tables; and what each protocol answers at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from mailfs.errors import Cause, Refused
from mailfs.locking import Conflict, Kind, Mode
from mailfs.locking.ranges import OFFSET_MAX
from mailfs.locking.rules import Request
from tests.locking.fakes import FakeProcess, in_trio, req, settle, someone, world

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.locking import Claim, MailboxLock, Requester

R, A, W = Mode.READ, Mode.APPEND, Mode.WRITE
D, FL, FC, CO, WR, RD = (
    Kind.DOTLOCK,
    Kind.FLOCK,
    Kind.FCNTL,
    Kind.COMMIT,
    Kind.WRITER,
    Kind.READER,
)
S = Kind.SESSION

#: what one holds, what another agent asks for: refused?
FOREIGN = [
    (D, W, D, W, True),
    (D, A, D, A, False),
    (D, A, D, W, True),
    (D, W, FL, R, True),
    (D, W, FC, R, True),
    (D, W, CO, A, True),
    (D, A, CO, A, False),
    (D, A, CO, W, True),
    (FL, R, FL, R, False),
    (FL, R, FL, W, True),
    (FL, R, FC, R, False),
    (FL, R, D, W, True),
    (FL, W, FC, W, True),
    (FL, W, WR, A, True),
    (FC, R, FL, R, False),
    (FC, R, FL, W, True),
    (FC, W, FC, R, True),
    (FC, A, FL, A, False),
    (FC, R, CO, A, True),
    (WR, A, WR, A, False),
    (WR, A, WR, W, True),
    (WR, A, FL, R, True),
    (WR, A, D, W, True),
    (WR, A, D, A, False),
    (CO, A, CO, A, True),
    (CO, A, FL, W, True),
    (CO, A, WR, A, False),
    (RD, R, FL, W, False),
    (RD, R, D, W, False),
    (RD, R, WR, W, False),
    (RD, R, CO, A, True),
    (FL, W, RD, R, False),
    (D, W, RD, R, False),
    (CO, A, RD, R, True),
    (S, W, S, W, True),
    (S, W, D, W, True),
    (S, W, FL, R, True),
    (S, W, CO, A, True),
    (S, W, WR, A, True),
    (S, W, RD, R, False),
    (RD, R, S, W, False),
    (FC, R, S, W, True),
]


def take(lock: MailboxLock, kind: Kind, mode: Mode, who: Requester, owner: object) -> Claim:
    return lock.attempt(Request(kind, mode, who, owner, hold=3.0 if kind in (WR, RD) else 1e9))


@pytest.mark.parametrize(("held", "mode", "asked", "want", "refused"), FOREIGN)
def test_different_agents(
    held: Kind, mode: Mode, asked: Kind, want: Mode, *, refused: bool
) -> None:
    @in_trio
    async def check() -> None:
        async with world() as w:
            take(w.lock, held, mode, someone(), "one")
            if refused:
                with pytest.raises(Refused) as answer:
                    take(w.lock, asked, want, someone(), "two")
                assert answer.value.cause is Cause.LOCK_HELD
                assert "prog" in answer.value.detail
            else:
                take(w.lock, asked, want, someone(), "two")

    check()


@pytest.mark.parametrize(("held", "mode", "asked", "want", "refused"), FOREIGN)
def test_one_agent(held: Kind, mode: Mode, asked: Kind, want: Mode, *, refused: bool) -> None:
    """Within a protocol its owner decides even inside one agent; across protocols nothing does."""
    same = held is asked
    refused = refused and same and held in (D, FL, FC, CO)
    refused = refused or (held is asked is D)

    @in_trio
    async def check() -> None:
        async with world() as w:
            process = FakeProcess()
            take(w.lock, held, mode, req(process), "one")
            if refused:
                with pytest.raises(Refused):
                    take(w.lock, asked, want, req(process.child()), "two")
            else:
                take(w.lock, asked, want, req(process.child()), "two")

    check()


@pytest.mark.parametrize(("held", "mode", "asked", "want", "refused"), FOREIGN)
def test_who_may_not_write(
    held: Kind, mode: Mode, asked: Kind, want: Mode, *, refused: bool
) -> None:
    """Such a lock never stands against a writer, is denied by one, and counts among its like.

    Only a young reader's moment counts for writers too.
    """

    @in_trio
    async def check() -> None:
        for holder_writes, asker_writes in ((False, True), (True, False), (False, False)):
            async with world() as w:
                take(w.lock, held, mode, someone(may_write=holder_writes), "one")
                assert (w.outside(b"alice").mode is None) or holder_writes
                counts = holder_writes or not asker_writes or held is RD
                if refused and counts:
                    with pytest.raises(Refused):
                        take(w.lock, asked, want, someone(may_write=asker_writes), "two")
                else:
                    take(w.lock, asked, want, someone(may_write=asker_writes), "two")

    check()


@in_trio
async def test_release_of_a_dotlock() -> None:
    async with world() as w:
        lock, me, other = w.lock, someone(), someone()
        for who, cause in ((me, Cause.NO_SUCH_NAME), (other, Cause.NO_SUCH_NAME)):
            with pytest.raises(Refused) as refused:
                lock.release_dotlock(who)
            assert refused.value.cause is cause
        claim = lock.dotlock(me, "4711")
        assert claim.content == "4711"
        for who in (other, someone(uid=0), req(None)):
            with pytest.raises(Refused) as refused:
                lock.release_dotlock(who)
            assert refused.value.cause is Cause.NOT_OWNER
        lock.revoke(claim, "broken by an administrator")
        assert claim.revoked
        assert claim.fenced
        assert lock.fenced(me)
        assert not lock.fenced(other)
        theirs = lock.dotlock(other)
        with pytest.raises(Refused) as refused:
            lock.release_dotlock(me)
        assert refused.value.cause is Cause.NO_SUCH_LOCK
        assert theirs.live
        lock.release_dotlock(other)
        lock.dotlock(me)
        assert not lock.fenced(me), "a new lock ends the fence"


@in_trio
async def test_who_sees_the_lock_file() -> None:
    async with world() as w:
        lock, me, other = w.lock, someone(), someone()
        reader, agent = someone(may_write=False), someone("procmail", append_only=True)
        assert lock.dotlock_seen_by(me) is None

        claim = lock.flock(me, "h", W)
        assert lock.dotlock_seen_by(me) is None, (
            "a lock of another protocol is no file of one's own"
        )
        assert lock.dotlock_seen_by(other) is claim
        lock.flock(me, "h", None)

        lock.flock(reader, "r", W)
        assert lock.dotlock_seen_by(other) is None
        lock.drop_handle("r")

        dotlock = lock.dotlock(agent)
        assert dotlock.mode is A
        assert lock.dotlock_seen_by(agent) is dotlock
        assert lock.dotlock_seen_by(other) is dotlock
        fellow = someone("maildrop", append_only=True)
        assert lock.dotlock_seen_by(fellow) is None, "each its own and not its fellows'"
        theirs = lock.dotlock(fellow)
        assert lock.dotlock_seen_by(fellow) is theirs
        lock.release_dotlock(fellow)
        assert dotlock.live
        assert not theirs.live


@in_trio
async def test_seen_exactly_if_denied() -> None:
    for kind, mode, _, _, _ in FOREIGN:
        for agent in (False, True):
            async with world() as w:
                take(w.lock, kind, mode, someone(), "one")
                asker = someone(append_only=agent)
                seen = w.lock.dotlock_seen_by(asker)
                try:
                    w.lock.dotlock(asker)
                except Refused:
                    assert seen is not None
                else:
                    assert seen is None


@in_trio
async def test_two_flock_handles_of_one_process() -> None:
    async with world() as w:
        me = someone()
        w.lock.flock(me, 1, W)
        with pytest.raises(Refused):
            w.lock.flock(me, 2, R)
        assert w.lock.setlk(me, "o", W), "another protocol of the same agent"
        assert w.lock.dotlock(me)
        assert w.outside(b"alice").takes == 1


@in_trio
async def test_flock_conversion_is_not_atomic() -> None:
    async with world() as w:
        one, two = someone(), someone()
        first = w.lock.flock(one, 1, R)
        assert w.lock.flock(one, 1, R) is first, "nothing to do"
        w.lock.flock(two, 2, R)
        with pytest.raises(Refused):
            w.lock.flock(one, 1, W)
        assert [c.owner for c in w.lock.claims] == [2], "the old lock is lost"
        claim = w.lock.flock(two, 2, W)
        assert claim is not None
        before = claim.generation
        assert w.lock.flock(two, 2, R) is claim
        assert claim.generation > before
        assert w.outside(b"alice").mode is R
        w.lock.flock(one, 1, R)


@in_trio
async def test_fcntl_ranges_within_the_protocol() -> None:
    async with world() as w:
        parent, other = FakeProcess(), someone()
        child = req(parent.child())
        me = req(parent)
        w.lock.setlk(me, "p", W, 0, 9)
        w.lock.setlk(other, "x", W, 10, 19)
        w.lock.setlk(child, "c", W, 20, 29)
        with pytest.raises(Refused):
            w.lock.setlk(child, "c", R, 5, 5)
        assert w.lock.getlk(child, "c", R, 0, 100) == Conflict(W, 0, 9, me.pid)
        assert w.lock.getlk(child, "c", R, 10, 100) == Conflict(W, 10, 19, other.pid)
        assert w.lock.getlk(child, "c", R, 20, 100) is None
        w.lock.setlk(me, "p", None, 3, 5)
        w.lock.setlk(child, "c", R, 4, 4)
        claim = w.lock.setlk(me, "p", R, 0, 2)
        assert claim is not None
        assert [tuple(r) for r in claim.ranges] == [(0, 2, R), (6, 9, W)]
        assert claim.mode is W
        w.lock.drop_owner("p")
        w.lock.drop_owner("c")
        assert [c.owner for c in w.lock.claims] == ["x"]
        with pytest.raises(Refused):
            w.lock.flock(me, "h", R)
        assert w.lock.getlk(me, "p", R, 500, 600) is None, "within fcntl the range decides"
        w.lock.setlk(other, "x", None)
        assert w.lock.setlk(other, "x", None) is None
        w.lock.flock(other, "h", W)
        assert w.lock.getlk(me, "p", R, 500, 600) == Conflict(W, 0, OFFSET_MAX, other.pid)
        assert (
            repr(w.lock)
            == f"<MailboxLock b'alice' flock write: prog (pid {other.pid}, uid 1000); 0 waiting>"
        )


@in_trio
async def test_freeze_excludes_everybody() -> None:
    async with world() as w:
        admin = someone(uid=0)
        held = w.lock.dotlock(someone())
        w.nursery.start_soon(w.lock.freeze, admin)
        await settle()
        assert w.lock.frozen is None
        w.lock.release(held)
        await settle()
        frozen = w.lock.frozen
        assert frozen is not None
        assert await w.lock.freeze(admin) is frozen
        with pytest.raises(Refused):
            w.lock.flock(admin, 1, R)
        assert w.lock.try_commit(admin, A) is None
        assert w.lock.thaw()
        assert not w.lock.thaw()
        w.lock.flock(admin, 1, R)


@in_trio
async def test_pid_zero_is_a_stranger_to_itself() -> None:
    async with world() as w:
        container = req(None, uid=7)
        claim = w.lock.dotlock(container)
        with pytest.raises(Refused):
            w.lock.flock(container, 1, W)
        assert w.lock.dotlock_seen_by(container) is claim
        with pytest.raises(Refused) as refused:
            w.lock.release_dotlock(req(None, uid=8))
        assert refused.value.cause is Cause.NOT_OWNER
        w.lock.release_dotlock(container)
        assert w.table.rows() == []


ANSWERS: list[Callable[[MailboxLock, Requester], object]] = [
    lambda lock, who: lock.dotlock(who),
    lambda lock, who: lock.flock(who, "h", W),
    lambda lock, who: lock.setlk(who, "o", W, 5, 6),
]


@pytest.mark.parametrize("ask", ANSWERS)
def test_unlocked_writer(ask: Callable[[MailboxLock, Requester], object]) -> None:
    """As good as a lock for three seconds, then gone at the first who wants the mailbox."""

    @in_trio
    async def check() -> None:
        async with world() as w:
            writer, other = someone(), someone()
            claim = w.lock.writer(writer, "s", W)
            assert claim is not None
            assert w.lock.writer(writer, "s", A) is claim
            assert w.lock.writer(other, "t", A) is None
            await trio.sleep(2.9)
            with pytest.raises(Refused):
                ask(w.lock, other)
            await trio.sleep(0.2)
            assert claim.live, "nobody wants it"
            assert ask(w.lock, other)
            assert claim.revoked
            assert not claim.fenced
            assert not w.lock.fenced(writer)
            assert "lapsed" in w.seen()
            w.lock.release(claim)

    check()


@in_trio
async def test_a_look_ends_an_old_implicit_claim() -> None:
    async with world() as w:
        writer = someone()
        claim = w.lock.writer(writer, "s", W)
        assert claim is not None
        assert w.lock.dotlock_seen_by(someone()) is claim
        await trio.sleep(3.1)
        assert w.lock.dotlock_seen_by(writer) is None
        assert claim.live
        assert w.lock.dotlock_seen_by(someone()) is None
        assert not claim.live
        stronger = w.lock.writer(writer, "s", A)
        assert w.lock.writer(writer, "s", W) is stronger


@in_trio
async def test_rights_that_change_while_something_is_held() -> None:
    """A claim counts for what it counted for when it was made."""
    async with world() as w:
        process = FakeProcess()
        w.lock.setlk(req(process), "o", R, 0, 0)
        w.lock.setlk(req(process, may_write=False), "o", W, 0, 0)
        assert w.outside(b"alice").mode is W
        w.lock.drop_owner("o")
        w.lock.setlk(req(process, may_write=False), "o", R, 0, 0)
        w.lock.setlk(someone(), "p", W, 0, 0)
        claim = w.lock.setlk(req(process), "o", R, 5, 5)
        assert claim is not None
        assert not claim.needs_outside
        w.lock.drop_owner("p")
        w.lock.dotlock(req(process, may_write=False))
        assert w.lock.dotlock_seen_by(req(process)) is not w.lock.claims[-1]


@in_trio
async def test_reading_and_appending_are_different_not_stronger() -> None:
    async with world() as w:
        agent, other = someone(append_only=True), someone(append_only=True)
        w.lock.flock(agent, 1, W)
        w.lock.flock(other, 2, W)
        with pytest.raises(Refused):
            w.lock.flock(agent, 1, R)
        w.lock.drop_handle(2)
        w.lock.setlk(agent, "o", W, 0, 0)
        claim = w.lock.setlk(agent, "o", R, 1, 1)
        assert claim is not None
        assert claim.mode is W
        with pytest.raises(Refused):
            w.lock.flock(other, 2, W)
