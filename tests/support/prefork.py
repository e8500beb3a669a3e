"""Daemons by the hundred: forked from a process that has loaded mailfs already (``prefork_main.py``).

Loading Python and libraries is most of what starting a daemon costs. Everything else is as ``mailfs mount
--foreground`` does it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_REPOSITORY = Path(__file__).parents[2]


class Prefork:
    """The process that daemons are forked from.

    Args:
        environment: theirs, besides ours.

    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "tests.support.prefork_main"],
            cwd=_REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
            | dict(environment),
        )
        self._pending = b""
        self._started: list[int] = []
        self._ended: dict[int, int] = {}
        self._ready = False
        while not self._ready:
            self._listen(30)

    def start(self, arguments: Sequence[str], log: Path) -> Forked:
        """Start a daemon with these arguments of ``mailfs``; its output goes to ``log``."""
        assert self._process.stdin
        request = {"arguments": list(arguments), "log": str(log)}
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        while not self._started:
            self._listen(10)
        return Forked(self, self._started.pop())

    def ended(self, pid: int, limit: float) -> int | None:
        """How a daemon ended, waiting so many seconds for it."""
        end = time.monotonic() + limit
        self._listen(0)
        while pid not in self._ended and time.monotonic() < end:
            self._listen(end - time.monotonic())
        return self._ended.get(pid)

    def _listen(self, seconds: float) -> None:
        assert self._process.stdout
        ready, _, _ = select.select([self._process.stdout], [], [], max(0, seconds))
        if not ready:
            return
        part = os.read(self._process.stdout.fileno(), 1 << 16)
        assert part, f"what forks daemons has ended: {self._process.wait(5)}"
        *lines, self._pending = (self._pending + part).split(b"\n")
        for line in lines:
            match line.split():
                case [b"ready"]:
                    self._ready = True
                case [b"started", pid]:
                    self._started.append(int(pid))
                case [b"ended", pid, code]:
                    self._ended[int(pid)] = int(code)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait(5)
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()


class Forked:
    """A daemon; has of `subprocess.Popen` what a mount needs."""

    def __init__(self, prefork: Prefork, pid: int) -> None:
        self._prefork = prefork
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        self.returncode = self._prefork.ended(self.pid, 0)
        return self.returncode

    def wait(self, timeout: float) -> int:
        """Its exit code. Raises subprocess.TimeoutExpired."""
        self.returncode = self._prefork.ended(self.pid, timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired("mailfs", timeout)
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)
