"""Real processes for the tests of the host."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

READY = b"ready\n"


@contextmanager
def child(code: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python process that has printed "ready"; it is killed and reaped in the end."""
    command = [sys.executable, "-I", "-S", "-c", code, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == READY
            yield process
        finally:
            process.kill()


def waiting(before: str = "", after: str = "") -> str:
    """Code of a child that does something, reports, and waits for its input to be closed."""
    return f"import os, sys\n{before}\nprint('ready', flush=True)\nsys.stdin.read()\n{after}\n"


def let_go(process: subprocess.Popen[bytes]) -> None:
    """Have a `waiting` child go on."""
    assert process.stdin is not None
    process.stdin.close()


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something that happens by itself, asking often."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.002)


def is_zombie(pid: int) -> bool:
    """Whether it has ended and nobody has reaped it."""
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return stat.read().rpartition(b")")[2].split()[0] == b"Z"


def descriptors() -> int:
    """How many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))
