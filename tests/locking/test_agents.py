"""Who belongs together, as a table; and where a dotlock goes when a process ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from mailfs.errors import Cause, Refused
from mailfs.locking import Ending, Kind, Mode
from mailfs.locking.agents import MAX_DEPTH, Agent, find_user, lineage
from mailfs.locking.rules import Request, same_agent
from tests.locking.fakes import FakeProcess, in_trio, req, settle, someone, world

if TYPE_CHECKING:
    from mailfs.locking import Process, Requester


def family() -> dict[str, FakeProcess]:
    shell = FakeProcess("sh")
    mutt = shell.child("mutt")
    helper = mutt.child("mutt_dotlock")
    setgid = mutt.child("setgid", uid=8)
    sister = shell.child("sister")
    other = FakeProcess("other")
    deep = helper.child("a").child("b").child("c")
    return {
        "shell": shell,
        "mutt": mutt,
        "helper": helper,
        "setgid": setgid,
        "sister": sister,
        "other": other,
        "deep": deep,
    }


#: home of the claim, its user, who asks, same agent?
RELATIONS = [
    ("mutt", None, "mutt", True),
    ("mutt", None, "helper", True),
    ("mutt", None, "setgid", True),
    ("mutt", None, "deep", True),
    ("mutt", None, "shell", True),
    ("mutt", None, "sister", False),
    ("mutt", None, "other", False),
    ("helper", None, "mutt", True),
    ("helper", None, "setgid", False),
    ("helper", "mutt", "setgid", True),
    ("helper", "mutt", "sister", False),
    ("helper", "mutt", "shell", True),
    ("deep", None, "shell", True),
    ("sister", None, "helper", False),
    ("mutt", None, None, False),
    (None, None, "mutt", False),
    (None, None, None, False),
]


@pytest.mark.parametrize(("home", "user", "asks", "same"), RELATIONS)
def test_relation(home: str | None, user: str | None, asks: str | None, *, same: bool) -> None:
    people = family()

    def ask(name: str | None) -> Requester:
        return req(people[name] if name else None)

    agent = Agent(ask(home), user=people[user] if user else None)
    assert agent.same_as(ask(asks)) is same
    if user is None:
        assert Agent(ask(asks)).same_as(ask(home)) is same, "symmetric"


@in_trio
async def test_cached_relation_agrees() -> None:
    people = family()
    async with world() as w:
        for home, user, asks, same in RELATIONS:
            if user is not None:
                continue
            claim = w.lock.writer(req(people[home] if home else None), object())
            assert claim is not None
            request = Request(Kind.FLOCK, Mode.WRITE, req(people[asks] if asks else None))
            assert same_agent(claim, request) is same
            w.lock.release(claim)


def test_circular_and_endless_parents() -> None:
    one, two = FakeProcess("one"), FakeProcess("two")
    one.up, two.up = two, one
    assert lineage(one) == (one, two)
    process = FakeProcess()
    for _ in range(500):
        process = process.child()
    assert len(lineage(process)) == MAX_DEPTH + 1


def test_user_is_the_nearest_of_three_levels() -> None:
    people = family()
    opened = {people["mutt"], people["shell"]}

    def has_open(process: Process) -> bool:
        return process in opened

    def nobody(_process: Process) -> bool:
        return False

    assert find_user(req(people["helper"], has_open=has_open), nobody) is people["mutt"]
    assert find_user(req(people["deep"], has_open=has_open), nobody) is None, "four levels up"
    assert find_user(req(people["helper"]), lambda p: p is people["shell"]) is people["shell"]
    people["mutt"].die()
    assert find_user(req(people["helper"], has_open=has_open), nobody) is people["shell"]
    assert find_user(req(None, has_open=has_open), nobody) is None


def test_normal_ends_move_at_most_three_times() -> None:
    top = FakeProcess("top")
    chain = [top]
    for _ in range(4):
        chain.append(chain[-1].child())
    agent = Agent(req(chain[-1]), outlives=True)
    for heir in (chain[3], chain[2], chain[1]):
        assert agent.bequeath(Ending.NORMAL)
        assert agent.home is heir
    assert not agent.bequeath(Ending.NORMAL)


def test_no_parent_means_leased_by_uid() -> None:
    agent = Agent(req(FakeProcess(uid=7)), outlives=True)
    assert agent.bequeath(Ending.UNKNOWN)
    assert agent.leased
    stranger, mate = req(FakeProcess(uid=8)), req(FakeProcess(uid=7))
    assert agent.same_as(mate)
    assert agent.may_release(mate)
    assert not agent.may_release(stranger)
    assert not agent.prolongs(mate), "nothing tells the owner from the user's other programs"


def test_pid_zero_is_leased_by_uid_from_the_start() -> None:
    agent = Agent(req(None, uid=7), outlives=True)
    assert agent.may_release(req(None, uid=7))
    assert agent.may_release(req(FakeProcess(uid=7)))
    assert not agent.may_release(req(None, uid=8))
    assert not agent.same_as(req(None, uid=7))
    assert not agent.same_as(req(FakeProcess(uid=7)))
    assert agent.prolongs(req(None, uid=7))


@in_trio
async def test_mutt_and_its_helpers() -> None:
    """``sh -c mutt_dotlock`` ends with the lock in place; another one unlocks."""
    async with world() as w:
        mutt = FakeProcess("mutt")
        sh = mutt.child("sh")
        helper = sh.child("mutt_dotlock")
        claim = w.lock.dotlock(req(helper))
        helper.die()
        sh.die()
        await settle()
        assert claim.live
        assert claim.agent.home is mutt
        with pytest.raises(Refused) as refused:
            w.lock.release_dotlock(someone())
        assert refused.value.cause is Cause.NOT_OWNER
        w.lock.release_dotlock(req(mutt.child("sh").child("mutt_dotlock"), uid=8))
        assert not claim.live


@in_trio
async def test_a_killed_holder_frees_and_the_next_is_served() -> None:
    async with world() as w:
        holder, waiter = FakeProcess("maildrop"), someone("mutt")
        w.lock.dotlock(req(holder))
        w.nursery.start_soon(w.lock.setlk_wait, waiter, "o", Mode.WRITE)
        await settle()
        holder.die(Ending.SIGNAL)
        await settle()
        assert [c.requester for c in w.lock.claims] == [waiter]
        assert "freed" in w.seen()


@in_trio
async def test_helper_that_lives_while_its_user_works() -> None:
    """alpine and mlock: one agent; any end of alpine frees, mlock's normal end leaves it."""
    for ending in (Ending.NORMAL, Ending.SIGNAL):
        async with world() as w:
            alpine = FakeProcess("alpine")
            mlock = alpine.child("mlock", uid=8)
            claim = w.lock.dotlock(req(mlock, has_open=lambda p, a=alpine: p is a))
            assert claim.agent.user is alpine
            w.lock.flock(req(alpine), "h", Mode.WRITE)
            mlock.die()
            await settle()
            assert claim.live
            assert claim.agent.home is alpine
            alpine.die(ending)
            await settle()
            assert not claim.live
    async with world() as w:
        alpine = FakeProcess("alpine")
        mlock = alpine.child("mlock")
        claim = w.lock.dotlock(req(mlock, has_open=lambda p: p is alpine))
        mlock.die(Ending.SIGNAL)
        await settle()
        assert not claim.live, "nobody would remove it"
    async with world() as w:
        alpine = FakeProcess("alpine")
        claim = w.lock.dotlock(req(alpine.child("mlock"), has_open=lambda p: p is alpine))
        alpine.die()
        await settle()
        assert not claim.live


@in_trio
async def test_lockfile_in_a_shell_script() -> None:
    async with world() as w:
        script = FakeProcess("sh")
        lockfile = script.child("lockfile")
        claim = w.lock.dotlock(req(lockfile))
        lockfile.die()
        await settle()
        assert w.lock.flock(req(script.child("cat")), "h", Mode.WRITE), "the script's own children"
        w.lock.drop_handle("h")
        script.die(Ending.SIGNAL)
        await settle()
        assert not claim.live


@in_trio
async def test_flock_on_a_shells_descriptor() -> None:
    """``exec 9>>mbox; flock 9; cat >&9``: flock(1) is gone while the lock is used."""
    async with world() as w:
        script = FakeProcess("sh")
        flock = script.child("flock")
        w.lock.flock(req(flock, has_open=lambda p: p is script), "9", Mode.WRITE)
        flock.die()
        cat = script.child("cat")
        assert w.lock.try_commit(req(cat), Mode.APPEND)
        assert w.lock.try_commit(someone(), Mode.APPEND) is None


@in_trio
async def test_host_that_fails_is_no_reason_to_take_a_lock() -> None:
    class Broken(FakeProcess):
        async def ended(self) -> Ending:
            raise OSError("no such process")

    async with world() as w:
        claim = w.lock.dotlock(req(Broken(uid=7)))
        await settle()
        assert claim.live
        assert claim.agent.leased
