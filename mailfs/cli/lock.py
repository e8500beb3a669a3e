"""``mailfs lock``: run a command while a mailbox is locked, the dotlock program of old."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING

import click

from mailfs.cli.hold import Deadline, hold, spool_option, timeout_option
from mailfs.cli.mailbox import Mailbox, Place
from mailfs.cli.signals import Signals, Stopped
from mailfs.control.render import printable
from mailfs.daemon.errors import Exit, MountError

if TYPE_CHECKING:
    from mailfs.cli.hold import Hold

TOUCH_EVERY = 15.0
"""Seconds between two touches of a lock; the shortest rule for stale locks in the field is 30."""

GRACE = 5.0
"""Seconds a command has for its end between SIGTERM and SIGKILL."""


@click.command(context_settings={"allow_interspersed_args": False})
@timeout_option
@click.option(
    "--limit",
    type=click.FloatRange(0, min_open=True),
    metavar="SECONDS",
    help=f"End COMMAND after this time: by SIGTERM, {GRACE:g} s later by SIGKILL.",
)
@spool_option
@click.argument("name")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def lock(
    *,
    timeout: float,
    limit: float | None,
    spool: str | None,
    name: str,
    command: tuple[str, ...],
) -> int:
    """Run COMMAND while the mailbox NAME is locked, and exit as it does.

    NAME is a mailbox of the spool, or a path. Write `--` before COMMAND.

    Exits with 128 + N if signal N ended COMMAND, 75 if the lock cannot be had in time or was taken
    away meanwhile, 66 if there is no such mailbox or account, 77 if you may not lock it.
    """
    command = command[1:] if command[:1] == ("--",) else command
    if not command:
        raise click.UsageError("which COMMAND?")
    place = Place.of(name, spool)
    signals = Signals()
    mailbox = Mailbox(place)
    if not mailbox.exists():
        mailbox.owner()
    try:
        held = hold(mailbox, Deadline(mailbox, signals, timeout))
    except Stopped as stopped:
        return 128 + stopped.number
    try:
        code, kept = _Run(command, held, signals, limit).result()
    finally:
        held.release()
    if not kept:
        message = f"{mailbox.shown}: the lock was taken away while {command[0]} ran"
        raise MountError(message, Exit.TEMPFAIL)
    return code


class _Run:
    """One run of a command under a lock.

    The command gets a process group of its own, so that it can be ended with all its children. But
    not where we are in the foreground of a terminal, which it could not read then: there it shares
    ours, gets what is typed (Ctrl-C, Ctrl-Z) from the terminal, and only itself is ended by us.
    """

    def __init__(
        self, command: tuple[str, ...], held: Hold, signals: Signals, limit: float | None
    ) -> None:
        self._name = printable(command[0])
        self._held = held
        self._signals = signals
        self._group = not _in_foreground()
        try:
            self._pid = signals.spawn(command, group=self._group)
        except OSError as error:
            message = f"{self._name}: {error.strerror}"
            raise MountError(message, Exit.UNAVAILABLE) from error
        now = time.monotonic()
        self._touch_at = now + TOUCH_EVERY
        self._terminate_at = now + limit if limit is not None else float("inf")
        self._kill_at = float("inf")
        self._kept = True

    def result(self) -> tuple[int, bool]:
        """Wait for the command's end; give its exit code, and whether the lock was ours all along."""
        while True:
            pid, status = os.waitpid(self._pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                return (128 - code if code < 0 else code), self._touch()
            until = min(self._touch_at, self._terminate_at, self._kill_at)
            info = self._signals.wait(min(until - time.monotonic(), TOUCH_EVERY))
            if info is not None and info.si_signo in self._signals.stops:
                self._pass_on(info)
            self._keep_time()

    def _pass_on(self, info: signal.struct_siginfo) -> None:
        typed = info.si_code > 0  # SI_KERNEL: a terminal sends it to the whole group
        if self._group or not typed:
            self._send(info.si_signo)
        if info.si_signo != signal.SIGINT:  # which many programs take for a key like any other
            self._kill_at = min(self._kill_at, time.monotonic() + GRACE)

    def _keep_time(self) -> None:
        now = time.monotonic()
        if now >= self._touch_at:
            self._touch_at = now + TOUCH_EVERY
            self._touch()
        if now >= self._terminate_at:
            self._terminate_at = float("inf")
            self._kill_at = min(self._kill_at, now + GRACE)
            click.echo(f"mailfs: {self._name}: its time is up", err=True)
            self._send(signal.SIGTERM)
        if now >= self._kill_at:
            self._kill_at = float("inf")
            self._send(signal.SIGKILL)

    def _touch(self) -> bool:
        if self._kept and not self._held.touch():
            self._kept = False
            click.echo("mailfs: the lock was taken away", err=True)
        return self._kept

    def _send(self, number: int) -> None:
        # It is our child and not yet waited for, so the number is its own; a set-uid one may refuse
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self._group:
                os.killpg(self._pid, number)
            else:
                os.kill(self._pid, number)
        if number != signal.SIGKILL:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(self._pid, signal.SIGCONT)  # one that is stopped would not hear it


def _in_foreground() -> bool:
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
