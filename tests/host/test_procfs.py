from __future__ import annotations

import os
import threading
import time

import pytest
import trio

from mailfs.host import procfs
from mailfs.host.procfs import Asker, Stat
from mailfs.host.threads import Call

GONE = 2**22 + 1


def test_gone() -> None:
    assert procfs.read_status(GONE) is None
    assert not procfs.is_thread(GONE, os.getpid())
    assert not procfs.is_thread(os.getpid(), GONE)

    async def main() -> None:
        assert await Asker().stat(GONE, 0) is None
        assert await Asker().executable(GONE, 0) is None

    trio.run(main)


@pytest.mark.parametrize(
    "text", [b"", b"Name:\tx\n", b"Name:\tx\nTgid:\t\nPPid:\tx\nUid:\t1\nGid:\n"]
)
def test_a_status_cut_off(text: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "_read", lambda *_: text)
    assert procfs.read_status(os.getpid()) is None


def test_many_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = range(60000)
    with open("/proc/self/status", "rb") as status:
        lines = [line for line in status if not line.startswith(b"Groups:")]
    text = b"Groups:\t" + b" ".join(b"%d" % group for group in groups) + b" \n" + b"".join(lines)
    monkeypatch.setattr(procfs, "_read", lambda *_: text)
    status_ = procfs.read_status(os.getpid())
    assert status_ is not None
    assert status_.groups == frozenset(groups)


def test_a_long_file_is_read_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "_FIRST_READ", 16)
    status = procfs.read_status(os.getpid())
    assert status is not None
    assert status.tgid == os.getpid()


def test_killed_or_ended_by_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert Stat(b"Z", 0x400, 9).killed
    assert Stat(b"Z", 0x400, 0x80 | 6).killed  # with a core dump
    assert not Stat(b"Z", 0x400, 0x100).killed
    assert not Stat(b"Z", 0x400, 0).killed
    assert not Stat(b"R", 0, 9).killed
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert Stat(b"Z", 0x400, 0).killed  # the code may have been withheld
    assert not Stat(b"Z", 0x400, 0x100).killed


def test_a_question_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def hang(pid: int) -> Stat:
        go_on.wait(30)
        return Stat(b"R", 0, 0)

    monkeypatch.setattr(procfs, "_stat", hang)

    async def main() -> None:
        asker = Asker(patience=0.01, limit=0.05, threads_per_uid=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(asker.stat, 1, 7)
            nursery.start_soon(asker.stat, 1, 7)
        started = time.monotonic()
        assert await asker.stat(1, 7) is None  # no third thread for this user
        assert time.monotonic() - started < 0.04
        monkeypatch.setattr(procfs, "_stat", lambda _: Stat(b"S", 0, 0))
        assert await asker.stat(1, 8) == Stat(b"S", 0, 0)
        go_on.set()
        with trio.fail_after(10):
            while asker._open:  # noqa: ASYNC110 -- nobody tells
                await trio.sleep(0.01)
        assert await asker.stat(1, 7) == Stat(b"S", 0, 0)
        assert not asker._open

    trio.run(main)


def test_a_blocked_thread_is_given_up_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    go_on = threading.Event()

    def hang(pid: int) -> Stat:
        go_on.wait(30)
        return Stat(b"R", 0, 0)

    monkeypatch.setattr(procfs, "_stat", hang)
    monkeypatch.setattr(Call, "blocked", property(lambda _: True))

    async def main() -> None:
        started = time.monotonic()
        assert await Asker(patience=0.01, limit=30).stat(1, 7) is None
        assert time.monotonic() - started < 5
        go_on.set()

    trio.run(main)


def test_a_slow_thread_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(pid: int) -> Stat:
        time.sleep(0.1)
        return Stat(b"R", 0, 0)

    monkeypatch.setattr(procfs, "_stat", slow)

    async def main() -> None:
        assert await Asker(patience=0.01).stat(1, 7) == Stat(b"R", 0, 0)

    trio.run(main)


def test_a_call_outlives_the_loop() -> None:
    go_on, done = threading.Event(), threading.Event()

    def hang() -> None:
        go_on.wait(30)
        done.set()

    async def main() -> Call[None]:
        return Call(hang)

    call = trio.run(main)
    with pytest.raises(trio.WouldBlock):
        call.result()
    go_on.set()
    assert done.wait(10)


def test_a_calls_exception_is_its_result() -> None:
    async def main() -> None:
        call = Call(lambda: 1 // 0)
        await call.wait()
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                call.result()

    trio.run(main)
