"""Tell the service manager how we are: the protocol of sd_notify(3), without its library."""

from __future__ import annotations

import contextlib
import os
import socket


def notify(state: str) -> None:
    """Send ``READY=1``, ``STOPPING=1``, ``WATCHDOG=1`` or the like; without systemd do nothing.

    A manager that does not listen must not harm the daemon, so errors are dropped.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # the abstract namespace, unix(7)
        address = "\0" + address[1:]
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel,
    ):
        channel.setblocking(False)
        channel.sendto(state.encode(), address)


def watchdog_interval() -> float | None:
    """Seconds between two ``WATCHDOG=1``, half of sd_watchdog_enabled(3); None if not asked for."""
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    try:
        microseconds = int(os.environ.get("WATCHDOG_USEC", ""))
    except ValueError:
        return None
    return microseconds / 2e6 if microseconds > 0 else None
