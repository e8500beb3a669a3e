"""Starts daemons that need not be loaded first: the program of `tests.support.prefork.Prefork`.

A request is a line of JSON on stdin, ``{"arguments": […], "log": FILE}``. The child that comes of it runs mailfs with
these arguments. Answers are lines too: ``started PID``, and for each child ``ended PID CODE`` (negative: the signal).
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
from typing import NoReturn

import mailfs.daemon.mount  # noqa: F401 -- what takes the time
from mailfs.cli.main import main


def start(arguments: list[str], log: str) -> int:
    """Fork a daemon; returns its pid."""
    child = os.fork()
    if child == 0:
        serve(arguments, log)
    return child


def serve(arguments: list[str], log: str) -> NoReturn:
    """Be the daemon."""
    code = 70
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (fd, 1), (fd, 2)):
            os.dup2(source, target)
        os.closerange(3, 64)
        code = main(arguments)
        sys.stderr.flush()
    finally:
        os._exit(code)


def reap() -> None:
    """Tell of children that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        print("ended", pid, os.waitstatus_to_exitcode(status), flush=True)


def run() -> None:
    """Until stdin ends."""
    reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writer)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    print("ready", flush=True)
    pending = b""
    while True:
        ready, _, _ = select.select([0, reader], [], [])
        if reader in ready:
            os.read(reader, 4096)
        reap()
        if 0 in ready:
            part = os.read(0, 1 << 16)
            if not part:
                return
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                print("started", start(**json.loads(line)), flush=True)


if __name__ == "__main__":
    run()
