"""The one door to pyfuse3 and to the bridge beside it.

The bridge works by being found before libfuse when pyfuse3 looks for ``fuse_session_new``. That is
decided by the order of loading, so it is done here and nowhere else: whoever needs pyfuse3 takes it
from this module.
"""

from __future__ import annotations

import os
import sys
from typing import Protocol

__all__ = [
    "BridgeError",
    "Caller",
    "Interrupt",
    "LockHandler",
    "LockRequest",
    "caller",
    "close_backing",
    "interposed",
    "open_backing",
    "pass_through",
    "passthrough_agreed",
    "pyfuse3",
    "set_lock_handler",
    "want_passthrough",
    "watch_interrupt",
]


class BridgeError(ImportError):
    """The bridge cannot get between pyfuse3 and libfuse, so locks of clients would not reach us."""


if "pyfuse3" in sys.modules:
    raise BridgeError(
        "pyfuse3 was imported before mailfs.fuse.bridge, so mailfs would not see file locks; "
        "import pyfuse3 from mailfs.fuse.bridge instead"
    )

_flags = sys.getdlopenflags()
sys.setdlopenflags(_flags | os.RTLD_GLOBAL)  # dlopen(3): its symbols serve what is loaded later
try:
    from mailfs.fuse._bridge import (
        Caller,
        Interrupt,
        LockRequest,
        caller,
        close_backing,
        interposed,
        open_backing,
        pass_through,
        passthrough_agreed,
        set_lock_handler,
        want_passthrough,
        watch_interrupt,
    )
finally:
    sys.setdlopenflags(_flags)

import pyfuse3  # noqa: E402 -- the order is the point


class LockHandler(Protocol):
    """Who decides about locks.

    Called in trio's thread while libfuse processes the request: answer at once, or keep the request
    and answer later, from any task. An exception is logged and answered EIO.
    """

    def getlk(self, request: LockRequest) -> None:
        """Which lock would be in the way? Answered by ``request.reply_lock``."""

    def setlk(self, request: LockRequest) -> None:
        """Take or drop a record lock (POSIX or OFD). Answered by ``request.reply``."""

    def flock(self, request: LockRequest) -> None:
        """Take or drop a lock on the whole file. Answered by ``request.reply``."""


def _check_libfuse() -> None:
    """Raise BridgeError if the bridge and pyfuse3 are linked with different copies of libfuse.

    A session made in one and served by the other would corrupt memory. It happens when one of the
    two brings a libfuse of its own along (a wheel made elsewhere).
    """
    with open("/proc/self/maps", "rb") as maps:
        paths = {line.split(maxsplit=5)[5].strip() for line in maps if b"/libfuse3" in line}
    if len(paths) > 1:
        names = ", ".join(os.fsdecode(path) for path in sorted(paths))
        raise BridgeError(
            f"pyfuse3 and mailfs use different copies of libfuse ({names}); "
            "reinstall both from source (pip install --force-reinstall --no-binary :all:)"
        )


_check_libfuse()
