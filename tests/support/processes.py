"""The processes of a test: every one has a time limit, a session of its own, and does not outlive
the test.

The test process itself never touches a mount: a call that hangs in the kernel could not be
interrupted. What is to be done on a mount is done by a child, as the user it is to be done as: by a
program, by a shell, by a program on a terminal of its own, or by an :class:`Actor` that does what
it is told step by step.
"""

from __future__ import annotations

import ast
import contextlib
import fcntl
import json
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.support.users import ROOT, User

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_SYSTEM_PYTHON = Path("/usr/bin/python3")
PYTHON = str(_SYSTEM_PYTHON) if _SYSTEM_PYTHON.exists() else sys.executable
_ACTOR = Path(__file__).with_name("actor_main.py")

Arg = str | bytes | os.PathLike[str]


def until(condition: Callable[[], object], limit: float, what: str, step: float = 0.02) -> float:
    """Wait until a condition holds and give the seconds it took; fail after ``limit`` seconds."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > limit:
            raise AssertionError(f"not within {limit} s: {what}")
        time.sleep(step)
    return time.monotonic() - start


def environment(user: User) -> dict[str, str]:
    """The environment of a login of this user, the same whoever runs the tests."""
    return {
        "HOME": str(user.home),
        "USER": user.name,
        "LOGNAME": user.name,
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "TERM": "xterm",
        "LC_ALL": "C.UTF-8",
        "SHELL": "/bin/sh",
    }


class ActorError(Exception):
    """An actor's code raised something that is not an OSError."""


class Actor:
    """A process that runs pieces of Python one at a time (see ``actor_main.py`` for what it has
    at hand).
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self._pending = b""

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid

    def start(self, code: str) -> None:
        """Send code without waiting for its end."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(code).encode() + b"\n")
        self.process.stdin.flush()

    def busy(self, seconds: float = 0.0) -> bool:
        """Whether the code sent is still running after so many seconds."""
        assert self.process.stdout
        if b"\n" in self._pending:
            return False
        ready, _, _ = select.select([self.process.stdout], [], [], seconds)
        return not ready

    def result(self, limit: float = 10.0) -> Any:
        """Give the value of the code sent; raises its OSError, and AssertionError if it takes
        too long.
        """
        assert self.process.stdout
        end = time.monotonic() + limit
        while b"\n" not in self._pending:
            if self.busy(max(0.0, end - time.monotonic())):
                raise AssertionError(f"actor {self.pid} has not answered within {limit} s")
            part = os.read(self.process.stdout.fileno(), 1 << 16)
            if not part:
                raise AssertionError(f"actor {self.pid} ended: {self.process.wait(5)}")
            self._pending += part
        line, _, self._pending = self._pending.partition(b"\n")
        verdict, _, text = line.decode().partition(" ")
        try:
            value = ast.literal_eval(text)
        except ValueError:  # a value that has no literal, such as a stat_result
            value = text
        if verdict == "os":
            raise OSError(*value)
        if verdict == "error":
            raise ActorError(value)
        return value

    def do(self, code: str, limit: float = 10.0) -> Any:
        """Run code and give its value."""
        self.start(code)
        return self.result(limit)

    def errno(self, code: str, limit: float = 10.0) -> int:
        """Run code and give its errno, 0 if it succeeds."""
        try:
            self.do(code, limit)
        except OSError as error:
            return error.errno or -1
        return 0

    def kill(self, number: int = signal.SIGKILL, limit: float = 5.0) -> float:
        """Send a signal and give the seconds until the process was gone."""
        start = time.monotonic()
        self.process.send_signal(number)
        try:
            self.process.wait(limit)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"actor {self.pid} still there {limit} s after {number!r}"
            ) from None
        return time.monotonic() - start


class Shell:
    """A ``/bin/sh`` that stays alive between commands, as a user's login shell does."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def do(self, command: str, limit: float = 20.0) -> int:
        """Run a command and give its exit status."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{command} </dev/null >/dev/null 2>&1; echo $?\n".encode())
        self.process.stdin.flush()
        ready, _, _ = select.select([self.process.stdout], [], [], limit)
        assert ready, f"shell: no answer within {limit} s: {command}"
        return int(os.read(self.process.stdout.fileno(), 64))


class Terminal:
    """A program on a terminal of its own; what it drew is kept as text without control
    sequences.
    """

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self.raw = b""

    @property
    def screen(self) -> str:
        """All it has drawn so far, control sequences removed."""
        text = self.raw.decode("utf-8", "replace")
        return re.sub(r"\x1b(\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>78])", " ", text)

    def _read(self, seconds: float) -> None:
        ready, _, _ = select.select([self._master], [], [], seconds)
        if ready:
            with contextlib.suppress(OSError):  # EIO: the program is gone
                self.raw += os.read(self._master, 1 << 16)

    def wait_for(self, pattern: str, limit: float = 20.0) -> None:
        """Wait until the screen shows a pattern, then forget what was drawn."""
        end = time.monotonic() + limit
        while not re.search(pattern, self.screen):
            left = end - time.monotonic()
            if left < 0 or (self.process.poll() is not None and left < limit - 1):
                raise AssertionError(f"no {pattern!r} on the screen:\n{self.screen[-3000:]}")
            self._read(min(0.1, left))
        self.raw = b""

    def settle(self, quiet: float = 0.4, limit: float = 10.0) -> None:
        """Wait until nothing is drawn for a while; what is drawn must be read, or programs stop."""
        end = time.monotonic() + limit
        before = -1
        while before != len(self.raw) and time.monotonic() < end:
            before = len(self.raw)
            self._read(quiet)

    def send(self, keys: str) -> None:
        """Type."""
        os.write(self._master, keys.encode())

    def finish(self, limit: float = 20.0) -> int:
        """Wait for the program's end, drawing meanwhile, and give its exit status."""
        end = time.monotonic() + limit
        while self.process.poll() is None:
            if time.monotonic() > end:
                raise AssertionError(f"did not end within {limit} s:\n{self.screen[-3000:]}")
            self._read(0.05)
        return self.process.returncode

    def close(self) -> None:
        """Close our end."""
        os.close(self._master)


class Crew:
    """Starts processes for one test and ends them all with it."""

    def __init__(self, log: IO[str] | None = None) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._terminals: list[Terminal] = []
        self._log = log

    def start(
        self,
        argv: Sequence[Arg],
        *,
        user: User = ROOT,
        cwd: Arg | None = None,
        env: Mapping[str, str] | None = None,
        stdin: int | IO[bytes] = subprocess.DEVNULL,
        stdout: int | IO[bytes] = subprocess.DEVNULL,
        stderr: int | IO[bytes] = subprocess.DEVNULL,
        new_session: bool = True,
    ) -> subprocess.Popen[bytes]:
        """Start a program as a user, in a session of its own."""
        process = subprocess.Popen(
            argv,
            cwd=cwd or (user.home if user is not ROOT else "/"),
            env=environment(user) | dict(env or {}),
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=new_session,
            umask=0o022,
            **({} if user is ROOT else _identity(user)),
        )
        self._processes.append(process)
        return process

    def run(
        self,
        argv: Sequence[Arg],
        *,
        user: User = ROOT,
        timeout: float = 20.0,
        content: bytes = b"",
        cwd: Arg | None = None,
        env: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[bytes]:
        """Run a program to its end with ``content`` on its stdin (a pipe); stderr is joined to
        stdout.
        """
        process = self.start(
            argv,
            user=user,
            cwd=cwd,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        try:
            output, _ = process.communicate(content, timeout)
        except subprocess.TimeoutExpired:
            kill_group(process)
            raise AssertionError(f"{_text(argv)}: not done within {timeout} s") from None
        return subprocess.CompletedProcess(argv, process.returncode, output)

    def ok(self, argv: Sequence[Arg], **how: Any) -> bytes:
        """Run a program that must succeed and give its output."""
        done = self.run(argv, **how)
        output = bytes(done.stdout)
        assert done.returncode == 0, (
            f"{_text(argv)}: exit {done.returncode}: {output.decode(errors='replace')}"
        )
        return output

    def actor(self, user: User = ROOT, cwd: Arg | None = None) -> Actor:
        """Start an actor."""
        source = _ACTOR.read_text()
        return Actor(
            self.start(
                [PYTHON, "-I", "-c", source],
                user=user,
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )

    def shell(self, user: User = ROOT, cwd: Arg | None = None) -> Shell:
        """Start a shell that takes commands."""
        pipe = subprocess.PIPE
        return Shell(self.start(["/bin/sh"], user=user, cwd=cwd, stdin=pipe, stdout=pipe))

    def python(self, source: str, *arguments: Arg, user: User = ROOT) -> subprocess.Popen[bytes]:
        """Start a Python program; its stdout and stderr are one pipe, to be read by
        :meth:`finish`.
        """
        return self.start(
            [PYTHON, "-I", "-c", source, *arguments],
            user=user,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def finish(self, processes: Sequence[subprocess.Popen[bytes]], limit: float) -> list[bytes]:
        """Wait for programs that must all succeed within a common limit, and give their outputs."""
        end = time.monotonic() + limit
        outputs = []
        for process in processes:
            try:
                output, _ = process.communicate(timeout=max(0.01, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                raise AssertionError(f"not done within {limit} s: {_text(process.args)}") from None
            text = (output or b"").decode(errors="replace")
            assert process.returncode == 0, (
                f"exit {process.returncode}: {_text(process.args)}: {text}"
            )
            outputs.append(output)
        return outputs

    def terminal(self, argv: Sequence[Arg], *, user: User, cwd: Arg | None = None) -> Terminal:
        """Start a program on a new controlling terminal of 24 by 80."""
        master, slave = os.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.fchown(slave, user.uid, -1)
        try:
            # setsid(1) is no group leader here, so it does not fork: its pid is the program's.
            process = self.start(
                ["setsid", "--ctty", *argv],
                user=user,
                cwd=cwd,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                new_session=False,
            )
        finally:
            os.close(slave)
        terminal = Terminal(process, master)
        self._terminals.append(terminal)
        return terminal

    def close(self) -> list[str]:
        """Kill whatever is left, children included; gives the processes that could not be
        killed.
        """
        for process in self._processes:
            kill_group(process)
        stuck = []
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                if stream:
                    with contextlib.suppress(OSError):
                        stream.close()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                stuck.append(f"{process.pid} ({_text(process.args)})")
        for terminal in self._terminals:
            terminal.close()
        return stuck


def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its session's children; every one was started as the leader of a group
    of its own.
    """
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if process.poll() is None and os.getpgid(process.pid) != process.pid:
            process.kill()  # not yet a leader (setsid(1) has not run)
        else:
            os.killpg(process.pid, signal.SIGKILL)


def _identity(user: User) -> dict[str, Any]:
    return {"user": user.uid, "group": user.gid, "extra_groups": list(user.groups)}


def _text(argv: Any) -> str:
    words = [argv] if isinstance(argv, str | bytes) else list(argv)
    return " ".join(os.fsdecode(word)[:60].replace("\n", " ") for word in words)
