"""A client that waits can always be ended, and the end of the mount is no crash."""

from __future__ import annotations

import errno
import signal
import time
from typing import TYPE_CHECKING

import pytest

from tests.bridge.mounted import Mounted

if TYPE_CHECKING:
    from pathlib import Path

AT_ONCE = 1.0  # seconds within which a signal must end a client that waits
WAITS = {
    "flock": "fcntl.flock(fd, fcntl.LOCK_EX)",
    "setlk": "lock(fd, fcntl.F_SETLKW, fcntl.F_WRLCK)",
    "read": "os.read(fd, 10)",
    "flush": "os.close(fd)",
}


@pytest.mark.parametrize("sig", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("op", ["flock", "setlk", "open", "read", "flush"])
def test_signal_ends_waiting(mounted: Mounted, op: str, sig: signal.Signals) -> None:
    mounted.order("park", ops=[op])
    client = mounted.client(
        "signal.signal(signal.SIGINT, signal.SIG_DFL)\nfd = os.open(box, os.O_RDWR)\n"
        + WAITS.get(op, "")
    )
    request = mounted.expect("lock" if op in ("flock", "setlk") else "parked", name=op)
    mounted.order("park", ops=[])
    time.sleep(0.1)
    client.send_signal(sig)
    began = time.monotonic()
    assert client.wait(AT_ONCE + 5) == -sig
    assert time.monotonic() - began < AT_ONCE
    end = "interrupted" if op in ("flock", "setlk") else "unparked"
    assert mounted.expect(end, unique=request["unique"])["fired"] is True
    mounted.stop()


def test_handled_signal_is_eintr(mounted: Mounted) -> None:
    """An alarm() around F_SETLKW, as Dovecot does it; the same client then asks again."""
    mounted.order("park", ops=["setlk"])
    client = mounted.client("""
        def handler(*_): raise TimeoutError
        signal.signal(signal.SIGALRM, handler)
        fd = os.open(box, os.O_RDWR)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            lock(fd, fcntl.F_SETLKW, fcntl.F_WRLCK)
        except TimeoutError:
            print("timeout", flush=True)
        lock(fd, fcntl.F_SETLKW, fcntl.F_WRLCK)
        print("granted", flush=True)
    """)
    first = mounted.expect("lock")
    mounted.expect("interrupted", unique=first["unique"])
    second = mounted.expect("lock")
    mounted.order("answer", n=second["unique"], error=0)
    assert client.communicate(timeout=5)[0].split() == ["timeout", "granted"]


def test_signal_before_the_request_is_read(mounted: Mounted) -> None:
    """The daemon is busy while the client asks and gets a signal: it reads both, and both count."""
    mounted.order("park", ops=["flock"])
    client = mounted.client("""
        def handler(*_): raise TimeoutError
        signal.signal(signal.SIGALRM, handler)
        fd = os.open(box, os.O_RDWR)
        print("ready", flush=True)
        sys.stdin.readline()
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
        except TimeoutError:
            print("timeout", flush=True)
    """)
    assert client.stdout is not None
    assert client.stdout.readline() == "ready\n"
    assert mounted.process.stdin is not None
    mounted.process.stdin.write('{"do": "hold"}\n')
    mounted.process.stdin.flush()
    time.sleep(0.2)
    output, _ = client.communicate("\n", timeout=5)
    assert output == "timeout\n"
    request = mounted.expect("lock")
    mounted.expect("interrupted", unique=request["unique"])


def test_many_waiters_killed_at_once(mounted: Mounted) -> None:
    count = 500
    mounted.order("park", ops=["flock"])
    client = mounted.client(f"""
        threading.stack_size(65536)
        def wait():
            fcntl.flock(os.open(box, os.O_RDWR), fcntl.LOCK_EX)
        threads = [threading.Thread(target=wait) for _ in range({count})]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """)
    waiting = {mounted.expect("lock")["unique"] for _ in range(count)}
    assert len(waiting) == count
    mounted.run("os.stat(box)")
    client.kill()
    began = time.monotonic()
    assert client.wait(20) == -signal.SIGKILL
    assert time.monotonic() - began < 5
    ended = {mounted.expect("interrupted")["unique"] for _ in range(count)}
    assert ended == waiting
    mounted.stop()


@pytest.mark.parametrize("op", ["flock", "setlk"])
def test_end_of_mount_with_waiters(mounted: Mounted, op: str) -> None:
    """Answers after the session is gone go nowhere, and so do requests that were never answered."""
    mounted.order("park", ops=[op])
    client = mounted.client(f"""
        fd = os.open(box, os.O_RDWR)
        def wait():
            try:
                {WAITS[op]}
            except OSError as lost:
                os.write(1, b"%d\\n" % lost.errno)
        threads = [threading.Thread(target=wait) for _ in range(3)]
        for thread in threads: thread.start()
    """)
    for _ in range(3):
        mounted.expect("lock")
    mounted.stop()
    output, _ = client.communicate(timeout=5)
    assert set(map(int, output.split())) <= {errno.ENOTCONN, errno.ECONNABORTED}


def test_daemon_dies_with_waiters(tmp_path: Path) -> None:
    """The clients of a dead daemon get errors; the dead mount can be detached."""
    server = Mounted(tmp_path)
    try:
        server.order("park", ops=["flock"])
        client = server.client("""
            try:
                fcntl.flock(os.open(box, os.O_RDWR), fcntl.LOCK_EX)
            except OSError as lost:
                print(lost.errno, flush=True)
        """)
        server.expect("lock")
        server.process.kill()
        output, _ = client.communicate(timeout=5)
        assert int(output) in (errno.ENOTCONN, errno.ECONNABORTED)
    finally:
        server.end()
    assert not list(server.mountpoint.iterdir())
