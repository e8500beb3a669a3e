"""How a mount fails, and with which exit code: the one table of codes that programs may rely on."""

from __future__ import annotations

import enum


class Exit(enum.IntEnum):
    """Exit codes, named and numbered as in sysexits.h; a number never changes its meaning."""

    OK = 0
    USAGE = 64  # the command line or a -o option is wrong
    DATAERR = 65  # a control file is not what it should be; no message to append; damage found
    NOINPUT = 66  # the spool or the mountpoint is not a directory; no such mount or mailbox
    UNAVAILABLE = 69  # a helper or a command is missing, another mailfs in the way
    SOFTWARE = 70  # a bug of ours
    OSERR = 71  # the system refused a fork, a mount or the like
    OSFILE = 72  # /dev/fuse is missing
    CANTCREAT = 73  # a log file cannot be written; a spool is mounted read-only
    IOERR = 74  # reading a control file or the message, or writing the mailbox failed
    TEMPFAIL = 75  # busy, late, locked or full: trying again may help
    NOPERM = 77  # you may not do that
    CONFIG = 78  # the configuration file is wrong


class MountError(Exception):
    """A mount that cannot be made (or unmade), in words for the administrator.

    Args:
        message: what happened, and what to do about it.
        exit_code: the exit code of the command.

    """

    def __init__(self, message: str, exit_code: int = Exit.UNAVAILABLE) -> None:
        super().__init__(message)
        self.message = message
        self.exit_code = int(exit_code)
