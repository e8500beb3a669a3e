"""Random histories against what must hold whatever happens.

Hypothesis draws the steps while the real table runs under a mock clock; after every step the
invariants are checked by a plain reading of the rules, not by the engine's own functions: who
conflicts is worked out from process trees and tables written down here once more.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mailfs.errors import Refused
from mailfs.locking import Claim, Ending, Kind, LockSettings, Mode, Requester
from tests.locking.fakes import FakeOutside, FakeProcess, Task, World, in_trio, settle, world

R, A, W = Mode.READ, Mode.APPEND, Mode.WRITE
KEYS = [b"a", b"b"]
STEPS = [
    *("dotlock", "flock", "fcntl", "wait_flock", "wait_fcntl", "commit", "writer", "reader"),
    *("session", "wait_reader"),
    *("release", "unlock", "cancel", "fork", "die", "time", "touch", "look", "foreign", "revoke"),
    *("release", "unlock", "time"),
]


class Machine:
    """The world and the steps that may be taken in it."""

    def __init__(self, data: st.DataObject, w: World) -> None:
        self.data = data
        self.w = w
        self.processes: list[FakeProcess] = [FakeProcess(f"p{n}", uid=1000 + n) for n in range(3)]
        self.tasks: list[tuple[Task, bytes]] = []
        self.implicit: list[tuple[bytes, Claim]] = []

    def pick(self, strategy: st.SearchStrategy[Any]) -> Any:
        return self.data.draw(strategy)

    def requester(self) -> Requester:
        process = self.pick(st.sampled_from([*[p for p in self.processes if p.alive], None]))
        flags = self.pick(st.sampled_from(["", "", "", "append", "reader"]))
        return Requester(
            process,
            process.uid if process else 1000,
            process.pid if process else 0,
            may_write=flags != "reader",
            append_only=flags == "append",
        )

    async def step(self) -> None:
        step = self.pick(st.sampled_from(STEPS))
        key = self.pick(st.sampled_from(KEYS))
        lock = self.w.table.lock(key)
        req = self.requester()
        mode = self.pick(st.sampled_from([R, W]))
        start = self.pick(st.integers(0, 3))
        end = start + self.pick(st.integers(0, 2))
        # A record lock owner is a process; strangers have owners of their own.
        owner: Any = req.process or "stranger"
        handle = (owner, self.pick(st.integers(0, 1)))
        try:
            match step:
                case "dotlock":
                    seen = lock.dotlock_seen_by(req)
                    outside_free = not self.w.outside(key).foreign
                    try:
                        lock.dotlock(req)
                        assert seen is None
                    except Refused:
                        assert seen is not None or not outside_free
                case "flock":
                    lock.flock(req, handle, mode)
                case "fcntl":
                    lock.setlk(req, owner, mode, start, end)
                case "wait_flock":
                    self.start(key, partial(lock.flock_wait, req, handle, mode))
                case "wait_fcntl":
                    self.start(key, partial(lock.setlk_wait, req, owner, mode, start, end))
                case "commit":
                    self.start(key, partial(lock.commit, req, self.pick(st.sampled_from([A, W]))))
                case "writer":
                    lock.writer(req, handle, self.pick(st.sampled_from([A, W])))
                case "reader":
                    lock.reader(req, handle, 2.0)
                case "wait_reader":
                    self.start(key, partial(lock.reader_wait, req, (handle, "wait"), 2.0))
                case "session":
                    self.start(key, partial(lock.session, req))
                case "release":
                    lock.release_dotlock(req)
                case "unlock":
                    if lock.claims:
                        claim = self.pick(st.sampled_from(lock.claims))
                        if claim.kind is Kind.FCNTL and not claim.reserved:
                            lock.setlk(claim.requester, claim.owner, None, start, end)
                        else:
                            lock.release(claim)
                case "cancel":
                    if self.tasks:
                        self.pick(st.sampled_from(self.tasks))[0].scope.cancel()
                case "fork":
                    alive = [p for p in self.processes if p.alive]
                    if alive and len(alive) < 6:
                        parent = self.pick(st.sampled_from(alive))
                        self.processes.append(parent.child(f"{parent.name}x"))
                case "die":
                    alive = [p for p in self.processes if p.alive]
                    if alive:
                        self.die(self.pick(st.sampled_from(alive)))
                case "time":
                    await trio.sleep(self.pick(st.sampled_from([0.5, 1.5, 4.0, 11.0, 61.0])))
                case "touch":
                    lock.touch(req)
                case "look":
                    lock.dotlock_seen_by(req)
                    lock.getlk(req, owner, mode, start, end)
                case "foreign":
                    outside = self.w.outside(key)
                    if outside.foreign:
                        outside.set_foreign(False)
                    elif outside.mode is None:
                        outside.set_foreign(True)
                case "revoke":
                    if lock.claims:
                        lock.revoke(self.pick(st.sampled_from(lock.claims)), "test")
        except Refused:
            pass
        await settle()

    def start(self, key: bytes, call: Any) -> None:
        self.tasks.append((Task(self.w.nursery, call), key))

    def die(self, process: FakeProcess) -> None:
        """As the kernel and the FUSE side do it: handles are closed, requests interrupted."""
        process.die(self.pick(st.sampled_from(list(Ending))))
        for key in KEYS:
            lock = self.w.table.lock(key)
            for waiter in lock.waiters:
                if waiter.request.requester.process is process:
                    for task, _ in self.tasks:
                        if not task.done:
                            task.scope.cancel()
            for claim in lock.claims:
                if claim.requester.process is process and claim.kind is not Kind.DOTLOCK:
                    lock.release(claim)

    def check(self) -> None:
        waiting = 0
        for key in KEYS:
            lock = self.w.table.lock(key)
            outside = self.w.outside(key)
            claims = [c for c in lock.claims if not c.reserved]
            waiting += len(lock.waiters)
            for n, one in enumerate(claims):
                assert one.live
                assert not one.revoked
                for two in claims[n + 1 :]:
                    assert compatible(one, two), (one, two)
            needed = [c.mode for c in claims if c.requester.may_write and c.kind is not Kind.READER]
            assert outside.held == bool(needed)
            if needed:
                assert outside.mode is (R if max(needed) is R else W)
            if lock.waiters:
                self.check_head(key, outside)
        assert self.w.table.waiting() == waiting

    def check_head(self, key: bytes, outside: FakeOutside) -> None:
        """No lost wake-up: the first in line waits for somebody."""
        lock = self.w.table.lock(key)
        head = lock.waiters[0].request
        now = trio.current_time()
        if outside.foreign and head.needs_outside:
            return
        assert any(claim.firm_until > now for claim in lock.blockers(head)), lock

    async def finish(self) -> None:
        """Everybody dies: nothing is left."""
        for key in KEYS:
            if self.w.outside(key).foreign:
                self.w.outside(key).set_foreign(False)
        for task, _ in self.tasks:
            task.scope.cancel()
        for process in self.processes:
            if process.alive:
                process.die(Ending.SIGNAL)
        await settle()
        for key in KEYS:
            lock = self.w.table.lock(key)
            for claim in lock.claims:
                if claim.kind is not Kind.DOTLOCK or claim.agent.leased:
                    lock.release(claim)
        await trio.sleep(100)
        for key in KEYS:
            assert self.w.table.lock(key).claims == ()
            assert not self.w.outside(key).held
            assert self.w.outside(key).acquiring == 0
        assert self.w.table.waiting() == 0
        assert self.w.table.rows() == []
        assert len(self.w.nursery.child_tasks) == 0, "no timer and no watch is left"


def related(one: Claim, two: Claim) -> bool:
    def tree(claim: Claim) -> set[Any]:
        found = set()
        for process in (claim.requester.process, claim.agent.home, claim.agent.user):
            while process is not None:
                found.add(process)
                process = process.parent
        return found

    def points(claim: Claim) -> set[Any]:
        return {claim.requester.process, claim.agent.home, claim.agent.user} - {None}

    if one.agent.leased or two.agent.leased:
        return True  # checked by the tables of test_agents
    return bool(points(one) & tree(two) or points(two) & tree(one))


def compatible(one: Claim, two: Claim) -> bool:
    if one.requester.may_write != two.requester.may_write:
        return True
    kinds = {one.kind, two.kind}
    if kinds == {Kind.COMMIT}:
        return False
    if one.kind is two.kind is Kind.FLOCK:
        return one.owner != two.owner and {one.mode, two.mode} in ({R}, {A})
    if one.kind is two.kind is Kind.FCNTL:
        return one.owner != two.owner and not any(
            p.start <= q.end and q.start <= p.end and {p.mode, q.mode} not in ({R}, {A})
            for p in one.ranges
            for q in two.ranges
        )
    if one.kind is two.kind is Kind.DOTLOCK:
        return one.mode is two.mode is A
    if Kind.READER in kinds and Kind.COMMIT not in kinds:
        return True
    if {one.mode, two.mode} in ({R}, {A}):
        return True
    now = trio.current_time()
    return related(one, two) or one.firm_until <= now or two.firm_until <= now


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(st.data())
def test_histories(data: st.DataObject) -> None:
    @in_trio
    async def run() -> None:
        async with world(LockSettings(max_waiters=20)) as w:
            machine = Machine(data, w)
            for _ in range(data.draw(st.integers(5, 40))):
                await machine.step()
                machine.check()
            await machine.finish()

    run()
