"""Passthrough: readers of a mailbox read the real file in the kernel, and no read reaches us.

The real file *is* what is committed (design 3), so such reads need no invalidation, and see at once what somebody
outside the mount has changed. For each open file there are three ways to read and write:

* ``PASSED``: read by the kernel; of handles that only read, unless their process has a draft to be shown;
* ``MAPPED``: reads and writes come to us, a mapping goes to the real file; of handles that may write;
* ``DIRECT``: reads and writes come to us, MAP_SHARED is refused; of all handles where there is no passthrough.

While a node has a handle of the first two, the kernel refuses (EIO) a third one, and another backing file
(``fuse_file_io_open``, ``fuse_inode_uncached_io_start`` in fs/fuse/iomode.c). So a node keeps one backing id, or none,
from its first open to its last release. The kernel ends an open before it sends us RELEASE (``fuse_file_release`` in
fs/fuse/file.c), so what we know of never ends too early.

Passthrough needs root and Linux 6.9, and a spool that is not on a stacked file system (overlayfs).
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from mailfs.fuse.bridge import close_backing, open_backing, passthrough_agreed

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.fuse.handles import MailboxHandle
    from mailfs.fuse.nodes import Node

log = logging.getLogger(__name__)


class Way(Enum):
    """How reads and writes of an open mailbox go."""

    PASSED = "passed"
    MAPPED = "mapped"
    DIRECT = "direct"


@dataclass(eq=False, slots=True)
class _Opened:
    """A node that is open.

    Attributes:
        backing: the kernel's id of its real file; None: no passthrough.
        handles: how many open files it has.

    """

    backing: int | None
    handles: int = 0


class Passthrough:
    """The backing ids of the mailboxes that are open.

    Args:
        sample: opens some file of the spool, to try passthrough on; may raise OSError.
        refused: why it is not even to be tried; None: it is.

    """

    def __init__(self, sample: Callable[[], int], refused: str | None = None) -> None:
        self._sample = sample
        self._opened: dict[Node, _Opened] = {}
        self._tried = refused is not None
        self._refused = refused

    def __len__(self) -> int:
        return sum(opened.backing is not None for opened in self._opened.values())

    @property
    def wanted(self) -> bool:
        """Whether to ask the kernel for it when mounting."""
        return self._refused is None

    @property
    def refused(self) -> str | None:
        """Why there is no passthrough; None if there is. Not to be asked before the first request is being handled."""
        if not self._tried:
            self._tried = True
            self._refused = self._try()
            if self._refused is None:
                log.info("readers are passed through to the real files")
            else:
                log.info("no passthrough for readers: %s", self._refused)
        return self._refused

    def _try(self) -> str | None:
        if not passthrough_agreed():
            return "this kernel (before Linux 6.9) or libfuse (before 3.12) has none"
        try:
            fd = self._sample()
            try:
                close_backing(open_backing(fd))
            finally:
                os.close(fd)
        except OSError as error:
            return f"the kernel refuses it: {error.strerror}"
        return None

    def __str__(self) -> str:
        return "passthrough" if self.refused is None else f"direct I/O ({self.refused})"

    def opened(self, handle: MailboxHandle, *, apart: bool) -> None:
        """Decide how a handle that is being opened reads and writes; `closed` must follow.

        Args:
            handle: its node, and the real file it is on.
            apart: what it reads may differ from what is committed, or it may write.

        """
        opened = self._opened.get(handle.node)
        is_its_file = os.fstat(handle.fd).st_ino == handle.node.number
        if opened is None:
            backing = self._backing(handle) if is_its_file and self.refused is None else None
            opened = self._opened[handle.node] = _Opened(backing)
        opened.handles += 1
        handle.backing = opened.backing
        if opened.backing is None:
            handle.way = Way.DIRECT
        else:  # a file renamed over the mailbox since look-up is another's backing file
            handle.way = Way.MAPPED if apart or not is_its_file else Way.PASSED

    def _backing(self, handle: MailboxHandle) -> int | None:
        try:
            return open_backing(handle.fd)
        except OSError as error:
            log.info("%r is not passed through: %s", handle.mailbox.name, error)
            return None

    def closed(self, handle: MailboxHandle) -> None:
        """The last descriptor of a handle is gone."""
        opened = self._opened.get(handle.node)
        if opened is None:
            return
        opened.handles -= 1
        if opened.handles > 0:
            return
        del self._opened[handle.node]
        if opened.backing is not None:
            try:
                close_backing(opened.backing)
            except OSError as error:  # the connection is gone, and its ids with it
                log.debug("backing id %d: %s", opened.backing, error)
