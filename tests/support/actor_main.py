"""The program of an :class:`~tests.support.processes.Actor`: runs one piece of Python a line, as
some user.

A request is a JSON string on stdin, an answer one line: ``ok``, ``os`` or ``error`` and the repr of
the value, of ``(errno, text)``, or of a message. It runs with the system's Python and imports
nothing of ours; everything defined here is at hand for the code it is sent.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import linecache
import os
import signal
import stat
import struct
import sys
import time
import traceback
from typing import Any

F_OFD_GETLK, F_OFD_SETLK, F_OFD_SETLKW = 36, 37, 38
_libc = ctypes.CDLL(None, use_errno=True)
held: dict[tuple[str, str], int] = {}  # (protocol, path) -> descriptor


def renameat2(old: str, new: str, flags: int) -> None:
    """rename(2) with flags: 1 NOREPLACE, 2 EXCHANGE, 4 WHITEOUT."""
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old)


def _region(kind: int, start: int = 0, length: int = 0) -> bytes:
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)


def fcntl_lock(fd: int, kind: int, command: int = fcntl.F_SETLK, start: int = 0, n: int = 0) -> Any:
    """One fcntl lock call; gives (type, pid) of the answer."""
    answer = fcntl.fcntl(fd, command, _region(kind, start, n))
    kind, _whence, _start, _length, pid = struct.unpack("hhqqi4x", answer)
    return kind, pid


def lock(protocol: str, path: str, wait: bool = False) -> None:
    """Take the lock of a mailbox by one protocol, as its own program would.

    flock, flock-sh, fcntl, fcntl-r, ofd: on a descriptor kept until :func:`unlock`. dotlock:
    exclusive create. dotlock-link: from a temporary. Dotlocks never wait here: their programs poll.
    """
    if protocol == "dotlock":
        fd = os.open(path + ".lock", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, b"%d" % os.getpid())
        os.close(fd)
        return
    if protocol == "dotlock-link":
        temp = f"{path}.lock.{os.uname().nodename}.{os.getpid()}"
        os.close(os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
        try:
            os.link(temp, path + ".lock")
        finally:
            os.unlink(temp)
        return
    fd = os.open(path, os.O_RDWR)
    try:
        if protocol.startswith("flock"):
            how = fcntl.LOCK_SH if protocol == "flock-sh" else fcntl.LOCK_EX
            fcntl.flock(fd, how if wait else how | fcntl.LOCK_NB)
        elif protocol == "ofd":
            fcntl_lock(fd, fcntl.F_WRLCK, F_OFD_SETLKW if wait else F_OFD_SETLK)
        else:
            kind = fcntl.F_RDLCK if protocol == "fcntl-r" else fcntl.F_WRLCK
            fcntl_lock(fd, kind, fcntl.F_SETLKW if wait else fcntl.F_SETLK)
    except BaseException:
        os.close(fd)
        raise
    held[protocol, path] = fd


def unlock(protocol: str, path: str) -> None:
    """Give back what :func:`lock` took, by the protocol's own unlock call."""
    if protocol.startswith("dotlock"):
        os.unlink(path + ".lock")
        return
    fd = held.pop((protocol, path))
    if protocol.startswith("flock"):
        fcntl.flock(fd, fcntl.LOCK_UN)
    elif protocol == "ofd":
        fcntl_lock(fd, fcntl.F_UNLCK, F_OFD_SETLK)
    else:
        fcntl_lock(fd, fcntl.F_UNLCK)
    os.close(fd)


def getlk(path: str, kind: int = fcntl.F_WRLCK) -> Any:
    """Who stands in the way of an fcntl lock: (type, pid), type F_UNLCK if nobody."""
    fd = os.open(path, os.O_RDWR)
    try:
        return fcntl_lock(fd, kind, fcntl.F_GETLK)
    finally:
        os.close(fd)


def put(
    path: str, content: bytes = b"", flags: int = os.O_CREAT | os.O_EXCL, mode: int = 0o600
) -> None:
    """Create a file with a content."""
    fd = os.open(path, os.O_WRONLY | flags, mode)
    try:
        while content:
            content = content[os.write(fd, content) :]
    finally:
        os.close(fd)


def get(path: str) -> bytes:
    """Return the whole content of a file."""
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(fd, 1 << 20):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)


def append(path: str, message: bytes, calls: int = 5, create: bool = False) -> None:
    """Append a message by several write() calls, without any lock.

    Not O_CREAT by itself: in a sticky directory fs.protected_regular forbids it to all but the
    file's owner, root included.
    """
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | (os.O_CREAT if create else 0), 0o660)
    try:
        step = max(1, -(-len(message) // calls))
        for at in range(0, len(message), step):
            os.write(fd, message[at : at + step])
    finally:
        os.close(fd)


def main() -> None:
    """Answer requests until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    names: dict[str, Any] = dict(globals())
    for line in sys.stdin:
        code = json.loads(line)
        linecache.cache["<request>"] = (len(code), None, code.splitlines(True), "<request>")
        try:
            try:
                todo = compile(code, "<request>", "eval")
            except SyntaxError:
                todo = compile(code, "<request>", "exec")
            value = eval(todo, names)
            answer = f"ok {value!r}"
        except OSError as error:
            answer = f"os {(error.errno, str(error))!r}"
        except BaseException:  # noqa: BLE001 -- whatever the code raises is an answer
            answer = f"error {traceback.format_exc()!r}"
        print(answer, flush=True)


_AT_HAND = (errno, stat, time)  # for the code of requests
if __name__ == "__main__":
    main()
