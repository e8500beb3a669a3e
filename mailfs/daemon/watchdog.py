"""A thread that ends the mount if the loop stands still: errors are better than a frozen host.

A daemon whose loop hangs holds up every program that touches the spool, and nothing can kill them. So a thread of its
own watches a heartbeat of the loop, and when there was none for ``patience`` seconds it aborts the connection: the
kernel then answers every request with an error, waiting ones too (fs/fuse/inode.c, ``fuse_umount_begin``).
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import threading
import time

import trio

log = logging.getLogger(__name__)

PATIENCE = 60.0
BEAT = 1.0

MNT_FORCE = 1
MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def umount(mountpoint: str, flags: int) -> None:
    """umount2(2). Raises OSError."""
    if _libc.umount2(os.fsencode(mountpoint), flags) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), mountpoint)


class Watchdog:
    """Watches the loop of one mount.

    Args:
        mountpoint: what to abort.
        patience: seconds without a heartbeat.

    """

    def __init__(self, mountpoint: str, patience: float = PATIENCE) -> None:
        self._mountpoint = mountpoint
        self._patience = patience
        self._beat = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    async def beat(self) -> None:
        """Show that the loop runs, until cancelled; ends the watch then."""
        self._thread.start()
        try:
            while True:
                self._beat = time.monotonic()
                await trio.sleep(BEAT)
        finally:
            self._ended.set()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(BEAT):
            now = time.monotonic()
            if now - last > 10 * BEAT:
                self._beat = now  # it was this thread, or the whole machine, that stood still
            last = now
            if now - self._beat > self._patience:
                log.critical(
                    "the loop has stood still for %.0f s: aborting the mount", self._patience
                )
                faulthandler.dump_traceback()
                try:
                    umount(self._mountpoint, MNT_FORCE | MNT_DETACH)
                except OSError as error:
                    log.critical("cannot abort %s: %s; ending", self._mountpoint, error)
                    os._exit(70)
                return
