"""Where the daemon's log goes, and that one message is one line there.

Messages hold names chosen by strangers. Whatever a message contains, it is written as one line of
visible ASCII (see `mailfs.control.render.printable`); a traceback follows on lines of its own, each
indented, so that it cannot be taken for a message.
"""

from __future__ import annotations

import logging
import logging.handlers
import os
import sys

from mailfs.control.render import printable
from mailfs.daemon.errors import Exit, MountError

SYSLOG_SOCKET = "/dev/log"

_PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3}
"""Priorities of syslog(3), by which journald reads ``<N>`` at the start of a line of stderr."""


class Lines(logging.Formatter):
    """Formats a record as one line, and its traceback indented below.

    Args:
        prefix: what stands before the message, in the style of logging's ``{``.
        priority: write ``<N>`` before every line.

    """

    def __init__(self, prefix: str, *, priority: bool = False) -> None:
        super().__init__(prefix + "{message}", "%Y-%m-%d %H:%M:%S", style="{")
        self._priority = priority

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 -- logging's name
        """Write the first line."""
        return printable(super().formatMessage(record), spaces=True)

    def format(self, record: logging.LogRecord) -> str:
        """Write all lines."""
        first, *more = super().format(record).split("\n")
        lines = [first, *("    " + printable(line, spaces=True) for line in more)]
        if self._priority:
            number = _PRIORITIES.get(record.levelno, 2)
            lines = [f"<{number}>{line}" for line in lines]
        return "\n".join(lines)


def set_up(level: str, destination: str | None, *, foreground: bool) -> None:
    """Send the log to a file, else (in the foreground) to stderr, else to syslog if there is one.

    Args:
        level: the least important level that is written.
        destination: a file, ``syslog``, or None.
        foreground: whether stderr belongs to somebody who reads it.

    Raises:
        MountError: the file or the syslog socket cannot be opened.

    """
    handler = _handler(destination, foreground=foreground)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.raiseExceptions = (
        False  # a log that cannot be written must not print to a closed stderr
    )


def _handler(destination: str | None, *, foreground: bool) -> logging.Handler:
    handler: logging.Handler
    if destination == "syslog" or (
        destination is None and not foreground and os.path.exists(SYSLOG_SOCKET)
    ):
        try:
            handler = logging.handlers.SysLogHandler(
                SYSLOG_SOCKET, logging.handlers.SysLogHandler.LOG_MAIL
            )
        except OSError as error:
            message = f"{SYSLOG_SOCKET}: {error.strerror}: no syslog is running; use --log FILE"
            raise MountError(message, Exit.UNAVAILABLE) from error
        handler.setFormatter(Lines(f"mailfs[{os.getpid()}]: "))
    elif destination is not None:
        try:
            descriptor = os.open(
                destination, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640
            )
        except OSError as error:
            message = f"{printable(destination)}: the log cannot be written: {error.strerror}"
            raise MountError(message, Exit.CANTCREAT) from error
        handler = logging.StreamHandler(os.fdopen(descriptor, "a", encoding="ascii"))
        handler.setFormatter(Lines("{asctime} mailfs[{process}] {levelname} {name}: "))
    elif foreground:
        handler = logging.StreamHandler(sys.stderr)
        journal = _stderr_is_journal()
        prefix = "" if journal else "mailfs: {levelname}: "
        handler.setFormatter(Lines(prefix, priority=journal))
    else:
        handler = logging.NullHandler()
    return handler


def _stderr_is_journal() -> bool:
    """Whether JOURNAL_STREAM names our stderr, systemd.exec(5); the variable alone is inherited."""
    try:
        status = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
