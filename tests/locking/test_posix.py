"""Locks of files that are not mailboxes: as on a local filesystem."""

from __future__ import annotations

from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from mailfs.errors import Cause, Refused
from mailfs.locking import Conflict, FileLocks, Mode
from tests.locking.fakes import Task, in_trio, settle

R, W = Mode.READ, Mode.WRITE


@in_trio
async def test_the_protocols_know_nothing_of_each_other() -> None:
    files = FileLocks()
    files.flock("f", 1, W)
    files.setlk("f", "o", W)
    with pytest.raises(Refused):
        files.flock("f", 2, R)
    with pytest.raises(Refused):
        files.setlk("f", "p", R, 5, 5)
    files.flock("g", 2, W)
    files.drop_handle("f", 1)
    files.drop_owner("f", "o")
    files.drop_handle("g", 2)
    assert repr(files) == "<FileLocks 0 files; 0 waiting>"


@in_trio
async def test_ranges_and_getlk() -> None:
    files = FileLocks()
    files.setlk("f", "a", W, 0, 9, pid=11)
    files.setlk("f", "b", R, 10, 19, pid=12)
    files.setlk("f", "c", R, 10, 29, pid=13)
    files.setlk("f", "a", None, 4, 5)
    assert files.getlk("f", "b", R, 3, 100) == Conflict(W, 0, 3, 11)
    assert files.getlk("f", "b", R, 4, 5) is None
    assert files.getlk("f", "a", W, 15, 15) == Conflict(R, 10, 19, 12)
    assert files.getlk("nothing", "a", W) is None
    with pytest.raises(Refused):
        files.setlk("f", "b", W, 10, 19)
    files.setlk("f", "c", None)
    files.setlk("f", "b", W, 10, 19)


@in_trio
async def test_waiting_upgrade_downgrade() -> None:
    async with trio.open_nursery() as nursery:
        files = FileLocks()
        files.setlk("f", "a", W)
        tasks = [Task(nursery, partial(files.setlk_wait, "f", n, R, uid=5)) for n in range(3)]
        writer = Task(nursery, partial(files.setlk_wait, "f", "w", W))
        await settle()
        assert files.waiting() == 4
        assert files.waiting(5) == 3
        files.setlk("f", "a", R)
        await settle()
        assert all(task.done for task in tasks)
        assert not writer.done
        for owner in (0, 1, 2, "a"):
            files.drop_owner("f", owner)
        await settle()
        assert writer.done
        files.drop_owner("f", "w")
        assert repr(files) == "<FileLocks 0 files; 0 waiting>"


@in_trio
async def test_flock_conversion() -> None:
    async with trio.open_nursery() as nursery:
        files = FileLocks()
        files.flock("f", 1, R)
        files.flock("f", 1, R)
        files.flock("f", 2, R)
        with pytest.raises(Refused):
            files.flock("f", 1, W)
        files.flock("f", 2, W)
        task = Task(nursery, partial(files.flock_wait, "f", 1, R))
        await settle()
        files.flock("f", 2, R)
        await settle()
        assert task.done
        await files.flock_wait("f", 1, None)
        upgrade = Task(nursery, partial(files.flock_wait, "f", 2, W))
        await settle()
        assert upgrade.done


@in_trio
async def test_deadlock_over_two_files() -> None:
    async with trio.open_nursery() as nursery:
        files = FileLocks()
        files.setlk("f", "a", W)
        files.setlk("g", "b", W)
        files.setlk("h", "c", W)
        Task(nursery, partial(files.setlk_wait, "g", "a", W))
        Task(nursery, partial(files.setlk_wait, "h", "b", W))
        await settle()
        with pytest.raises(Refused) as refused:
            await files.setlk_wait("f", "c", R, 7, 7)
        assert refused.value.cause is Cause.DEADLOCK
        files.drop_owner("h", "c")
        await settle()
        files.drop_owner("h", "b")
        files.drop_owner("g", "b")
        await settle()
        assert files.waiting() == 0


@in_trio
async def test_cancelled_and_limited() -> None:
    async with trio.open_nursery() as nursery:
        files = FileLocks(max_waiters=2, max_waiters_per_uid=1)
        files.setlk("f", "a", W)
        one = Task(nursery, partial(files.setlk_wait, "f", "b", W, uid=1))
        await settle()
        two = Task(nursery, partial(files.setlk_wait, "f", "c", W, uid=1))
        await settle()
        assert two.refused is Cause.TOO_MANY_WAITERS
        files.drop_owner("f", "a")
        one.scope.cancel()
        await settle()
        assert one.done, "granted before it was cancelled"
        three = Task(nursery, partial(files.setlk_wait, "f", "d", W, uid=1))
        await settle()
        three.scope.cancel()
        await settle()
        assert files.waiting() == 0
        files.drop_owner("f", "b")
        assert repr(files) == "<FileLocks 0 files; 0 waiting>"


steps = st.lists(
    st.tuples(
        st.sampled_from("fg"),
        st.sampled_from("abcd"),
        st.sampled_from([None, R, W]),
        st.integers(0, 5),
        st.integers(0, 3),
        st.sampled_from(["try", "wait", "cancel", "drop"]),
    ),
    max_size=40,
)


@given(steps)
def test_like_bytes_held_by_owners(
    steps: list[tuple[str, str, Mode | None, int, int, str]],
) -> None:
    """Nobody is granted what another holds, nobody waits without cause, nothing is left."""

    @in_trio
    async def run() -> None:
        files = FileLocks()
        tasks: list[Task] = []
        async with trio.open_nursery() as nursery:
            for key, owner, mode, start, length, how in steps:
                end = start + length
                if how == "try":
                    stands = files.getlk(key, owner, mode, start, end) if mode else None
                    try:
                        files.setlk(key, owner, mode, start, end)
                        assert stands is None
                    except Refused:
                        assert stands is not None
                elif how == "wait":
                    call = partial(files.setlk_wait, key, owner, mode, start, end)
                    tasks.append(Task(nursery, call))
                elif how == "drop":
                    files.drop_owner(key, owner)
                elif tasks:
                    tasks.pop(0).scope.cancel()
                await settle()
                for file in files._files.values():
                    for wait in file.waiters:
                        assert files.getlk(file.key, wait.owner, wait.mode, wait.start, wait.end)
                    held = [(o, r) for o, ranges in file.records.items() for r in ranges]
                    for one, p in held:
                        for two, q in held:
                            apart = p.end < q.start or q.end < p.start
                            assert one == two or apart or p.mode is q.mode is R
            for task in tasks:
                task.scope.cancel()
        for key in "fg":
            for owner in "abcd":
                files.drop_owner(key, owner)
        assert repr(files) == "<FileLocks 0 files; 0 waiting>"

    run()
