"""Reads and writes that are whole, and reserving room: what os.pread and friends leave to the caller."""

from __future__ import annotations

import ctypes
import errno
import os

_libc = ctypes.CDLL(None, use_errno=True)
_KEEP_SIZE = 0x01  # FALLOC_FL_KEEP_SIZE, include/uapi/linux/falloc.h


def read_all(fd: int, size: int, offset: int) -> bytes:
    """Read ``size`` bytes; fewer only at the end of the file. Raises OSError."""
    text = os.pread(fd, size, offset)
    if len(text) == size or not text:
        return text
    parts = [text]
    got = len(text)
    while got < size:
        part = os.pread(fd, size - got, offset + got)
        if not part:
            break
        parts.append(part)
        got += len(part)
    return b"".join(parts)


def write_all(fd: int, data: bytes, offset: int) -> None:
    """Write all of ``data``. A short write is carried on, as only the next one tells why. Raises OSError."""
    written = os.pwrite(fd, data, offset)
    if written == len(data):
        return
    view = memoryview(data)[written:]
    while view:
        offset += written
        written = os.pwrite(fd, view, offset)
        view = view[written:]


def allocate(fd: int, offset: int, size: int) -> None:
    """Find out about ENOSPC and EDQUOT now, without changing the file's size.

    A filesystem that cannot reserve says nothing: then writing tells.
    """
    while _libc.fallocate(fd, _KEEP_SIZE, ctypes.c_long(offset), ctypes.c_long(size)) != 0:
        code = ctypes.get_errno()
        if code in (errno.EOPNOTSUPP, errno.ENOSYS):
            return
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
