"""Which mount a command means, and reading its control files."""

from __future__ import annotations

import errno
import os

from mailfs.control.render import printable
from mailfs.daemon import mountinfo
from mailfs.daemon.errors import Exit, MountError

DEFAULT = "/var/mail"


def find_mount(argument: str | None) -> str:
    """Find the mountpoint that *argument* means: itself, else the only mount, else /var/mail.

    Raises:
        MountError: there is no mailfs mount, or several and none at /var/mail.

    """
    try:
        found = sorted(
            {mount.mountpoint for mount in mountinfo.mounts() if mount.fstype == mountinfo.FSTYPE}
        )
    except OSError as error:
        raise MountError(f"/proc/self/mountinfo: {error.strerror}", Exit.OSFILE) from error
    if argument is not None:
        path = mountinfo.resolve(argument)
        if path not in found:
            raise MountError(f"{printable(path)}: no mailfs is mounted here", Exit.NOINPUT)
        return path
    if len(found) == 1:
        return found[0]
    default = mountinfo.resolve(DEFAULT)
    if default in found:
        return default
    if found:
        names = " ".join(printable(path) for path in found)
        raise MountError(f"there are several mailfs mounts: name one of {names}", Exit.USAGE)
    raise MountError("no mailfs is mounted; `mailfs mount SPOOL` mounts one", Exit.NOINPUT)


def read_control(mountpoint: str, name: str) -> bytes:
    """Read a control file of a mount, whole.

    Raises:
        MountError: it cannot be read.

    """
    path = os.path.join(mountpoint, ".mailfs", name)
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        shown = printable(mountpoint)
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            message = f"{shown}: its daemon is dead; `mailfs mount` clears this and mounts again"
            raise MountError(message, Exit.UNAVAILABLE) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.ENOENT):
            message = f"{printable(path)}: {error.strerror}: only root sees the whole table"
            raise MountError(message, Exit.NOPERM) from error
        raise MountError(f"{printable(path)}: {error.strerror}", Exit.IOERR) from error
