from __future__ import annotations

import errno
import gc
import os
import signal
import subprocess
import sys
import threading
from shutil import which
from typing import TYPE_CHECKING

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mailfs.host import procfs
from mailfs.host.pidfd import Pidfd
from mailfs.host.processes import HostProcess, ProcessTable
from mailfs.locking.model import Ending
from tests.host.children import READY, child, descriptors, is_zombie, let_go, until, waiting

if TYPE_CHECKING:
    from mailfs.locking.model import Process

PYTHON, SHELL, SLEEP = map(os.path.realpath, (sys.executable, "/bin/sh", which("sleep") or ""))
GONE = 2**22 + 1  # beyond PID_MAX_LIMIT

# How a child ends, and what that is called.
ENDINGS = {
    "exit": ("", "os._exit(0)", Ending.NORMAL),
    "failure": ("", "os._exit(3)", Ending.NORMAL),
    "kill": ("", "os.kill(os.getpid(), 9)", Ending.SIGNAL),
    "abort": ("import resource; resource.setrlimit(resource.RLIMIT_CORE, (0, 0))", "os.abort()",
              Ending.SIGNAL),
    # The first thread is then ended by the kernel's SIGKILL, which is not a death by signal.
    "exit by a thread": (
        "import threading, time",
        "threading.Thread(target=os._exit, args=(0,)).start(); time.sleep(60)",
        Ending.NORMAL,
    ),
    "failure by a thread": (
        "import threading, time",
        "threading.Thread(target=os._exit, args=(3,)).start(); time.sleep(60)",
        Ending.NORMAL,
    ),
}  # fmt: skip


def running(command: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.PIPE)


def found(table: ProcessTable, pid: int) -> HostProcess:
    process = table.find(pid)
    assert process is not None
    return process


def test_is_a_process_of_the_model() -> None:
    process: Process = found(ProcessTable(), os.getpid())
    assert process.pid == os.getpid()
    assert process.uid == os.getuid()
    assert process.alive
    assert process.name


def test_status_is_what_the_system_says() -> None:
    process = found(ProcessTable(), os.getpid())
    assert process.gid == os.getgid()
    assert process.groups == frozenset(os.getgroups())
    assert process.groups_for(os.geteuid(), os.getegid()) == frozenset(os.getgroups())
    assert process.groups_for(os.geteuid() + 1, os.getegid()) == frozenset()
    assert str(os.getpid()) in repr(process)


@pytest.mark.parametrize("tid", [0, -1, GONE, 2**31, 2**63, 2**70])
def test_no_such_process(tid: int) -> None:
    assert ProcessTable().find(tid) is None


def test_one_object_a_process() -> None:
    table = ProcessTable()
    process = found(table, os.getpid())
    assert table.find(os.getpid()) is process
    with child(waiting()) as one:
        assert found(table, one.pid).parent is process


def test_threads_belong_to_their_process() -> None:
    table, tids, stop = ProcessTable(), [0], threading.Event()

    def work() -> None:
        tids[0] = threading.get_native_id()
        stop.wait()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        until(lambda: tids[0] != 0)
        process = found(table, tids[0])
        assert process.pid == os.getpid()
        assert table.find(tids[0]) is process
    finally:
        stop.set()
        thread.join()
    until(lambda: not procfs.is_thread(tids[0], os.getpid()))
    assert table.find(tids[0]) is None


def test_a_recycled_thread_id_is_looked_up_again() -> None:
    table = ProcessTable()
    with child(waiting()) as one, child(waiting()) as two:
        found(table, one.pid)
        table._threads[two.pid] = one.pid  # as if it had been a thread of the other
        assert found(table, two.pid).pid == two.pid


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.parametrize("reaped", [True, False], ids=["reaped", "zombie"])
def test_ending(how: str, reaped: bool) -> None:
    before, after, ending = ENDINGS[how]

    async def main() -> None:
        with child(waiting(before, after)) as one:
            process = found(ProcessTable(), one.pid)
            assert process.alive
            let_go(one)
            if reaped:
                one.wait()
            until(lambda: not process.alive)
            assert await process.ended() is ending
            assert await process.being_killed() is (ending is Ending.SIGNAL)
            assert await process.ended() is ending

    trio.run(main)


@pytest.mark.parametrize("how", ENDINGS)
def test_dying_is_told_from_the_flags(how: str) -> None:
    """A zombie shows what a process shows while it closes its files."""
    before, after, ending = ENDINGS[how]

    async def main() -> None:
        with child(waiting(before, after)) as one:
            process = found(ProcessTable(), one.pid)
            assert not await process.being_killed()
            let_go(one)
            until(lambda: is_zombie(one.pid) and not process.alive)
            assert await process.being_killed() is (ending is Ending.SIGNAL)

    trio.run(main)


def test_ending_without_the_kernels_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on kernels before 6.15: a zombie tells, nothing else does."""
    monkeypatch.setattr(Pidfd, "exit_status", lambda _: None)

    async def main() -> None:
        table = ProcessTable()
        for kill, ending in ((True, Ending.SIGNAL), (False, Ending.NORMAL)):
            with child(waiting()) as one:
                process = found(table, one.pid)
                one.kill() if kill else let_go(one)
                until(lambda: is_zombie(one.pid))
                assert await process.ended() is ending
        with child(waiting()) as one:
            process = found(table, one.pid)
            one.kill()
            one.wait()
            assert await process.ended() is Ending.UNKNOWN
            assert not await process.being_killed()

    trio.run(main)


def test_several_wait_for_one_end() -> None:
    async def main() -> None:
        endings: list[Ending] = []
        with child(waiting()) as one:
            process = found(ProcessTable(), one.pid)

            async def watch(scope: trio.CancelScope) -> None:
                with scope:
                    endings.append(await process.ended())

            async with trio.open_nursery() as nursery:
                scopes = [trio.CancelScope() for _ in range(5)]
                for scope in scopes:
                    nursery.start_soon(watch, scope)
                    await wait_all_tasks_blocked()
                scopes[0].cancel()  # the one that watches the descriptor
                scopes[3].cancel()
                await wait_all_tasks_blocked()
                assert "3 waiting" in repr(process)
                one.kill()
        assert endings == [Ending.SIGNAL] * 3

    trio.run(main)


def test_ended_unblocks_when_it_happens() -> None:
    async def main() -> None:
        with child(waiting()) as one:
            process = found(ProcessTable(), one.pid)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(process.ended)
                await wait_all_tasks_blocked()
                let_go(one)
            assert not process.alive

    trio.run(main)


def test_a_dead_process_is_not_found_but_stays_what_it_was() -> None:
    table = ProcessTable()
    with child(waiting()) as one:
        process = found(table, one.pid)
        name = process.name
        one.kill()
        until(lambda: is_zombie(one.pid))
        assert table.find(one.pid) is None
    assert table.find(one.pid) is None
    assert (process.pid, process.name, process.alive) == (one.pid, name, False)


def test_the_next_owner_of_a_pid_is_another_object() -> None:
    table = ProcessTable()
    with child(waiting()) as one, child(waiting()) as two:
        old = found(table, one.pid)
        one.kill()
        one.wait()
        table._recent[two.pid] = table._held[two.pid] = old  # as if the pid had been recycled
        new = found(table, two.pid)
        assert new is not old
        assert new.alive


def test_a_parent_is_kept_after_its_death() -> None:
    """A daemon's double fork: the lock of a program that has gone must find whom it belongs to."""
    fork = (
        "r, w = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork() == 0:\n"
        "        print(os.getpid(), file=sys.stderr, flush=True)\n"
        "        os.write(w, b'x')\n"
        "        sys.stdin.close(); import time; time.sleep(60)\n"
        "    os.wait()\n"
        "os.read(r, 1)\n"
    )
    command = [sys.executable, "-I", "-S", "-c", waiting(fork)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as one:
        assert one.stderr is not None
        assert one.stdout is not None
        grandchild = int(one.stderr.readline())
        try:
            assert one.stdout.readline() == READY
            table = ProcessTable()
            process = found(table, grandchild)
            parent = process.parent
            assert parent is not None
            assert parent.parent is table.find(one.pid)
            os.kill(parent.pid, signal.SIGKILL)
            until(lambda: not parent.alive)
            assert process.parent is parent
            # Who sees it for the first time now sees an orphan: nobody's, or that of a subreaper.
            late = found(ProcessTable(), grandchild).parent
            assert late is None or late.pid != parent.pid
        finally:
            os.kill(grandchild, signal.SIGKILL)
            one.kill()


def test_nobody_inherits_from_adopters() -> None:
    me = found(ProcessTable(), os.getpid())
    with child(waiting()) as one:
        assert found(ProcessTable(), one.pid).parent is not None
        assert found(ProcessTable(adopters=[me.name]), one.pid).parent is None
    first = ProcessTable().find(1)
    assert first is None or first.parent is None


@pytest.mark.skipif(os.geteuid() != 0, reason="making a pid namespace needs root")
def test_the_first_process_of_a_container_is_nobodys_parent() -> None:
    code = waiting("import subprocess; p = subprocess.Popen(['sleep', '60'])")
    command = ["unshare", "--pid", "--fork", "--kill-child", sys.executable, "-I", "-S", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as one:
        try:
            assert one.stdout is not None
            assert one.stdout.readline() == READY
            (init,) = children_of(one.pid)
            (sleep,) = children_of(init)
            table = ProcessTable()
            assert found(table, sleep).parent is None
            assert found(table, init).parent is found(table, one.pid)
        finally:
            one.kill()


def children_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as children:
        return [int(word) for word in children.read().split()]


def test_a_long_line_of_ancestors_ends() -> None:
    nest = (
        "while int(sys.argv[1]) > depth and os.fork() == 0: depth += 1\n"
        "if depth < int(sys.argv[1]): os.wait(); os._exit(0)\n"
        "sys.stderr.write(f'{os.getpid()}\\n'); sys.stderr.flush()\n"
    )
    command = [sys.executable, "-I", "-S", "-c", waiting("depth = 0\n" + nest), "40"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as one:
        assert one.stderr is not None
        try:
            process: HostProcess | None = found(ProcessTable(), int(one.stderr.readline()))
            line = 0
            while process is not None:
                process, line = process.parent, line + 1
            assert line == 33
        finally:
            assert one.stdin is not None
            one.stdin.close()  # the innermost ends, and so do the others


def test_descriptors_of_a_thousand_short_lives_are_given_back() -> None:
    gc.collect()
    table = ProcessTable(limit=100)
    found(table, os.getpid())
    own = len(table)  # ourselves and our ancestors, of which there may be any number
    before, most = descriptors(), 0
    for _ in range(1000):
        pid = os.posix_spawn("/bin/true", ["true"], {})
        process = table.find(pid)
        assert process is None or process.pid == pid
        os.waitpid(pid, 0)
        most = max(most, len(table))
    del process
    table.sweep()
    assert descriptors() == before
    assert most - own < 3


def test_the_table_is_bounded_but_keeps_what_others_hold() -> None:
    gc.collect()
    table = ProcessTable(limit=3)
    before = descriptors()
    spawned = [os.posix_spawn("/bin/sleep", ["sleep", "60"], {}) for _ in range(8)]
    try:
        held = found(table, spawned[0])
        for pid in spawned:
            found(table, pid)
        assert table.find(spawned[0]) is held
        family, ancestor = 0, held.parent
        while ancestor is not None:
            family, ancestor = family + 1, ancestor.parent
        assert family >= 1
        assert len(table) <= 3 + 1 + family
        assert descriptors() <= before + 3 + 1 + family
    finally:
        for pid in spawned:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def test_without_descriptors_the_table_is_emptied(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ProcessTable()
    real, failures = os.pidfd_open, [errno.EMFILE]

    def pidfd_open(pid: int, flags: int = 0) -> int:
        if failures:
            raise OSError(failures.pop(), "no descriptors")
        return real(pid, flags)

    with child(waiting()) as one, child(waiting()) as two:
        found(table, one.pid)
        monkeypatch.setattr(os, "pidfd_open", pidfd_open)
        assert found(table, two.pid).pid == two.pid
        assert one.pid not in table._recent
        failures += [errno.ENFILE] * 100
        assert table.find(one.pid) is None


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_process_that_dies_while_it_is_looked_at(
    at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed and reaped just before its status is read for the first, second, third time."""
    real, reads = procfs.read_status, [0]
    with child(waiting()) as one:

        def read_status(tid: int) -> procfs.Status | None:
            if tid == one.pid:
                reads[0] += 1
                if reads[0] == at:
                    one.kill()
                    one.wait()
            return real(tid)

        monkeypatch.setattr(procfs, "read_status", read_status)
        table = ProcessTable()
        process = table.find(one.pid)
        if at == 1:
            assert process is None
        elif process is not None and not process.alive:
            assert process.parent is None
            assert table.find(one.pid) is None


def test_a_parent_that_dies_while_it_is_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's PPid is read twice: a parent's pid that is recycled in between is noticed."""
    real, lie = procfs.read_status, [1, 0]
    with child(waiting()) as one:

        def read_status(tid: int) -> procfs.Status | None:
            status = real(tid)
            if tid != one.pid or status is None or not lie.pop():
                return status
            fields = {name: getattr(status, name) for name in procfs.Status.__slots__}
            return procfs.Status(**{**fields, "ppid": other.pid})

        with child(waiting()) as other:
            monkeypatch.setattr(procfs, "read_status", read_status)
            lie = [0, 1]
            assert found(ProcessTable(), one.pid).parent is None


def test_execve_in_a_loop() -> None:
    """The process stays the same, whatever it runs, and asking never raises or waits long."""
    script = 'echo "$1"; [ "$1" -gt 0 ] || exec sleep 60; exec sh -c "$0" "$0" $(($1 - 1))'

    async def main() -> None:
        table = ProcessTable()
        with running(["/bin/sh", "-c", script, script, "100"]) as one:
            try:
                process, paths = found(table, one.pid), set()
                with trio.fail_after(20):
                    while process.name != "sleep" or (await process.executable()) is None:
                        assert table.find(one.pid) is process
                        paths.add(await process.executable())
                        assert not await process.being_killed()
                        await trio.lowlevel.checkpoint()
                        process._read_at = 0  # rather than wait a second for the name
                assert await process.executable() == SLEEP
                assert paths & {SHELL, None}
            finally:
                one.kill()
            assert await process.ended() is Ending.SIGNAL

    trio.run(main)


def test_executable_is_asked_once_per_execve() -> None:
    async def main() -> None:
        asked: list[int] = []

        class Asker(procfs.Asker):
            async def executable(self, pid: int, uid: int) -> str | None:
                asked.append(pid)
                return await super().executable(pid, uid)

        with child(waiting(after="os.execvp('sleep', ['sleep', '60'])")) as one:
            process = found(ProcessTable(asker=Asker()), one.pid)
            for _ in range(3):
                assert await process.executable() == PYTHON
            assert len(asked) == 1
            let_go(one)
            until(lambda: procfs.read_status(one.pid).name == "sleep")  # type: ignore[union-attr]
            path = await process.executable()
            assert path == SLEEP
            one.kill()
            until(lambda: is_zombie(one.pid))
            assert await process.executable() == path  # what it was
            one.wait()
            assert await process.executable() == path
            assert len(asked) == 2

    trio.run(main)


@pytest.mark.parametrize("comm", [b"a\nTgid:\t1\nPPid:", b"\xff\x1b[31m x", b") R 1 1", b""])
def test_hostile_names(comm: bytes) -> None:
    async def main() -> None:
        write = f"open('/proc/self/comm', 'wb').write({comm!r})"
        with child(waiting(write)) as one:
            process = found(ProcessTable(), one.pid)
            assert process.pid == one.pid
            assert process.parent is not None
            assert process.name
            assert process.name.isprintable()
            assert " " not in process.name
            one.kill()
            until(lambda: not process.alive)
            assert await process.being_killed()

    trio.run(main)


@pytest.mark.skipif(os.geteuid() != 0, reason="changing identity needs root")
def test_a_change_of_identity_is_noticed() -> None:
    change = "os.setgroups([11, 12]); os.setegid(13); os.seteuid(14); print('done', flush=True)"
    with child(waiting(after=change + "; import time; time.sleep(60)")) as one:
        process = found(ProcessTable(), one.pid)
        mine = process.groups
        let_go(one)
        assert one.stdout is not None
        one.stdout.readline()
        assert process.groups_for(os.getuid(), 13) == frozenset()
        assert process.groups_for(14, 13) == {11, 12}
        assert process.groups == {11, 12}
        assert (process.uid, mine) == (os.getuid(), frozenset(os.getgroups()))
