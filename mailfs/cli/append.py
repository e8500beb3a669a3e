"""``mailfs append``: a message to the end of a mailbox, whole or not at all.

All of it is read before the mailbox is locked, as input may stall. Through a mount it is written
under a flock; the commit at close makes it one piece, and being killed before leaves nothing.
Without a mount `spool.deliver` sees to that, as far as it can be done there.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import socket
import sys
import tempfile
import time
from typing import TYPE_CHECKING

import click

from mailfs.cli.hold import Deadline, hold_real, spool_option, timeout_option, wait_for_flock
from mailfs.cli.mailbox import Mailbox, Place, failed
from mailfs.cli.signals import Signals, Stopped
from mailfs.daemon.errors import Exit, MountError
from mailfs.sessions.message import is_sender, mbox_text
from mailfs.spool import deliver

if TYPE_CHECKING:
    from typing import IO

IN_MEMORY = 1 << 20
"""Bytes of a message that are kept in memory; a longer one goes to a temporary file."""

NULL_SENDER = b"MAILER-DAEMON"
"""What stands for the empty sender of a bounce in a separator."""

_WRITE = 1 << 17  # bytes at once through a mount, which the kernel cuts into requests of this size


@click.command()
@click.option(
    "--from", "sender", metavar="ADDRESS", help="The sender in the `From ` line, if not you."
)
@timeout_option
@spool_option
@click.argument("name")
def append(*, sender: str | None, timeout: float, spool: str | None, name: str) -> None:
    """Append the message on standard input to the mailbox NAME.

    NAME is a mailbox of the spool, or a path. It is made if it is the name of an account.

    Exits with 0 when the message is on the disk. Otherwise nothing of it is in the mailbox, and it
    is worth trying again if the code is 75: locked, full, or interrupted.
    """
    place = Place.of(name, spool)
    address = None if sender is None else os.fsencode(sender) or NULL_SENDER
    if address is not None and not is_sender(address):
        raise click.UsageError("--from: an address is one word")
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as message:
        try:
            for piece in mbox_text(
                sys.stdin.buffer, sender=address, otherwise=_user(), now=time.time()
            ):
                message.write(piece)
            size = message.tell()
        except OSError as error:
            raise failed(error, "reading the message") from error
        if size == 0:
            raise MountError("there is no message on standard input", Exit.DATAERR)
        signals = Signals()
        mailbox = Mailbox(place)
        deadline = Deadline(mailbox, signals, timeout)
        try:
            if mailbox.mounted:
                _through_mount(mailbox, message, deadline)
            else:
                _to_real_file(mailbox, message, deadline, signals)
        except Stopped as stopped:
            text = f"{mailbox.shown}: nothing appended: stopped by {stopped}"
            raise MountError(text, Exit.TEMPFAIL) from stopped
        except OSError as error:
            raise mailbox.failed(error) from error


def _user() -> bytes:
    try:
        return os.fsencode(pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:
        return b"%d" % os.getuid()


def _make(mailbox: Mailbox) -> None:
    deliver.make_mailbox(mailbox.door, mailbox.name, mailbox.owner(), socket.gethostname())


def _to_real_file(
    mailbox: Mailbox, message: IO[bytes], deadline: Deadline, signals: Signals
) -> None:
    if not mailbox.exists():
        mailbox.owner()
    while True:
        held = hold_real(mailbox, deadline)
        try:
            if not mailbox.exists():
                _make(mailbox)
            if held.lock.refresh():
                deliver.append(mailbox.door, mailbox.path, message, signals.check)
                return
        finally:
            held.release()
        deadline.pause(0.1)  # somebody was quick to lock the new file


def _through_mount(mailbox: Mailbox, message: IO[bytes], deadline: Deadline) -> None:
    if not mailbox.exists():
        _make(mailbox)
    fd = mailbox.door.open(mailbox.path, os.O_WRONLY | os.O_APPEND)
    try:
        wait_for_flock(fd, deadline)
        base = os.fstat(fd).st_size
        message.seek(0)
        try:
            while chunk := message.read(_WRITE):
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
            os.fsync(fd)  # under a lock this asks for a commit that is synced
        except OSError:
            _discard(fd, base)
            raise
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(fd)
        raise
    os.close(fd)  # the commit, and its errors


def _discard(fd: int, base: int) -> None:
    """Take back what is staged, as closing would commit a part of the message."""
    try:
        os.ftruncate(fd, base)
    except OSError:
        os.kill(os.getpid(), signal.SIGKILL)  # what a killed process has staged is dropped
