"""A process as a descriptor (``pidfd_open(2)``): is it alive, wait for its end, how did it end.

A pid can be recycled, a pidfd cannot: it stays with the process it was opened for. It is readable
from the moment the last thread of the process has exited, zombie or not. How the process ended is
asked of ``PIDFD_GET_INFO``, which knows once the parent has reaped it (Linux 6.15); before that
there is a zombie, whose ``/proc/PID/stat`` says the same (see ``procfs``).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import struct

import trio

# linux/pidfd.h: struct pidfd_info in its first version (PIDFD_INFO_SIZE_VER0, 64 bytes): u64 mask,
# u64 cgroupid, u32 pid, tgid, ppid, eight ids, s32 exit_code. Kernels with a longer structure
# accept the shorter one.
_INFO = struct.Struct("=QQ11Ii")
_INFO_EXIT = 1 << 3
# _IOWR(0xFF, 11, struct pidfd_info)
_GET_INFO = (3 << 30) | (_INFO.size << 16) | (0xFF << 8) | 11


class Pidfd:
    """Owns one pidfd; it is closed by `close` or with the object.

    Args:
        pid: a thread group id.

    Raises:
        OSError: ESRCH, ENOENT or EINVAL if there is no such process or it is a thread (which,
            differs by kernel); EMFILE or ENFILE if there are no descriptors left.
    """

    __slots__ = ("_fd", "_poll")

    def __init__(self, pid: int) -> None:
        self._fd = -1  # so that __del__ finds it if the next line raises
        self._fd = os.pidfd_open(pid)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; twice is harmless. Nobody may be in `wait`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def fileno(self) -> int:
        """Return the descriptor, -1 if closed; it stays this object's."""
        return self._fd

    @property
    def running(self) -> bool:
        """Whether some thread of the process has not exited yet. Does not block."""
        return self._fd >= 0 and not self._poll.poll(0)

    @property
    def reaped(self) -> bool:
        """Whether its pid may belong to somebody else by now; a zombie still has it."""
        if self._fd < 0:
            return True
        try:
            signal.pidfd_send_signal(self._fd, 0)
        except ProcessLookupError:
            return True
        except OSError:  # EPERM: it exists
            return False
        return False

    async def wait(self) -> None:
        """Return when the process has exited.

        Raises:
            trio.BusyResourceError: if another task waits already; sharing is the caller's affair.
        """
        if self._fd >= 0:
            await trio.lowlevel.wait_readable(self._fd)

    def exit_status(self) -> int | None:
        """Return the wait status (``wait(2)``) of a process that was reaped.

        None if it is a zombie or runs still, or if the kernel cannot say.
        """
        if self._fd < 0:
            return None
        answer = bytearray(_INFO.size)
        _INFO.pack_into(answer, 0, _INFO_EXIT, *[0] * 13)
        with contextlib.suppress(OSError):
            fcntl.ioctl(self._fd, _GET_INFO, answer)
            fields = _INFO.unpack(answer)
            if fields[0] & _INFO_EXIT:
                return int(fields[-1])
        return None
