"""The virtual lock file: what a client sees as ``X.lock``.

It is a view of the mailbox's lock and of nothing else. Its content is kept as the client wrote it (a pid, mostly); its
mode and owner are ours; its times are *now* while the lock lives, so that nobody takes it for stale, except for its
holder's own agent, which sees what it set or the time of creation (Dovecot warns of a lock file that changes).
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailfs.locking.rules import Claim

MODE = 0o644
MAX_CONTENT = 4096
"""Bytes kept of what a client writes into its lock file; a pid and a host name need less."""


class LockFile:
    """One lock file, from its creation until the lock goes.

    Args:
        mailbox: the name of the mailbox it locks.
        uid: owner shown to clients.
        gid: group shown to clients.
        content: what the file says.

    """

    def __init__(self, mailbox: bytes, uid: int, gid: int, content: bytes = b"") -> None:
        self.mailbox = mailbox
        self.uid = uid
        self.gid = gid
        self.content = bytearray(content[:MAX_CONTENT])
        self.created_ns = time.time_ns()
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.created_ns
        self.links = 1
        self.claim: Claim | None = (
            None  # the claim it stands for; None for a lock that was taken another way
        )

    @property
    def live(self) -> bool:
        """Whether the lock it stands for is still held."""
        return self.claim is None or self.claim.live

    def write(self, offset: int, data: bytes) -> int:
        """Keep ``data``; what lies behind `MAX_CONTENT` is taken and forgotten."""
        if offset < MAX_CONTENT:
            kept = data[: MAX_CONTENT - offset]
            if len(self.content) < offset:
                self.content.extend(bytes(offset - len(self.content)))
            self.content[offset : offset + len(kept)] = kept
        self.mtime_ns = self.ctime_ns = time.time_ns()
        return len(data)

    def truncate(self, size: int) -> None:
        """Cut, or extend with zeros."""
        size = min(size, MAX_CONTENT)
        del self.content[size:]
        self.content.extend(bytes(size - len(self.content)))
        self.mtime_ns = self.ctime_ns = time.time_ns()

    def read(self, offset: int, size: int) -> bytes:
        """Part of the content."""
        return bytes(self.content[offset : offset + size])
