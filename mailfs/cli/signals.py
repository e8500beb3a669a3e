"""Signals as events that are taken when we are ready for them.

A command that holds a mailbox must not be interrupted between two steps that belong together. So
from some point on SIGTERM, SIGINT, SIGHUP and SIGCHLD are blocked, and waited for (sigtimedwait(2))
where the command waits anyway. They stay blocked until the process ends: whoever appended a message
and is told to stop the moment after should report what he did.
"""

from __future__ import annotations

import os
import signal
import time

WAKE = signal.SIGUSR1
"""Sent by a thread of ours to end a wait."""


class Stopped(Exception):  # noqa: N818 -- what happened, not an error
    """Somebody wants us to end."""

    def __init__(self, info: signal.struct_siginfo) -> None:
        super().__init__(signal.Signals(info.si_signo).name)
        self.number = info.si_signo


class Signals:
    """Blocks what might interrupt us, in this thread and those it starts."""

    def __init__(self) -> None:
        # A blocked signal is queued even if it is ignored (nohup); sig_ignored() in kernel/signal.c
        self.stops = frozenset(
            number
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if signal.getsignal(number) != signal.SIG_IGN
        )
        self._waited = {*self.stops, signal.SIGCHLD, WAKE}
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, self._waited)

    def wait(self, seconds: float) -> signal.struct_siginfo | None:
        """Give the next signal, or None after so many seconds."""
        return signal.sigtimedwait(self._waited, max(0.0, seconds))

    def pause(self, seconds: float) -> None:
        """Wait until a thread of ours is done, or so many seconds.

        Raises:
            Stopped: we are asked to end.

        """
        end = time.monotonic() + seconds
        while True:
            info = self.wait(end - time.monotonic())
            if info is None or info.si_signo == WAKE:
                return
            if info.si_signo in self.stops:
                raise Stopped(info)

    def check(self) -> None:
        """Raise `Stopped` if we are asked to end."""
        self.pause(0)

    def spawn(self, command: tuple[str, ...], *, group: bool) -> int:
        """Start a program that has signals as we had them; with ``group`` in a group of its own.

        Raises:
            OSError: it cannot be run.

        """
        defaults = [signal.SIGPIPE, signal.SIGXFSZ]  # which Python ignores
        if group:
            return os.posix_spawnp(
                command[0], command, os.environ,
                setpgroup=0, setsigmask=self._before, setsigdef=defaults,
            )  # fmt: skip
        return os.posix_spawnp(
            command[0], command, os.environ, setsigmask=self._before, setsigdef=defaults
        )
