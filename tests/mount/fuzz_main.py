"""A client that makes random calls, valid and not, on hostile names, run by ``test_fuzz.py``.

Arguments: the spool, the users whose mailboxes are meant (space between), a seed, seconds to run.
An OSError is an answer; anything else is a failure of this program. Prints the number of calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import random
import stat
import struct
import sys
import time
from random import choice
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

SPOOL = sys.argv[1].encode()
USERS = sys.argv[2].encode().split()
LIBC = ctypes.CDLL(None, use_errno=True)
NAMES = [
    *USERS * 3,
    *[user + b".lock" for user in USERS] * 3,
    *[b".lock", b"x.lock.lock", b"a\nb", b"x" * 255, b"y" * 256, b"\xff\xfe\x80", b"\xff.lock"],
    *[b"..lock", b"...", b".", b"..", b"4913", b"%s%n", b" ", b"\x1b[31m", b"z" * 250 + b".lock"],
    *[b".mailfs", b".mailfs/control", b".mailfs/locks", b"folder", b"folder/f", b"folder/g"],
    *[b"root", b"root.lock", b"nobody", USERS[0] + b".lock/x", USERS[0] + b".lock\n"],
    *[USERS[0] + b".lock.host.1", USERS[0] + b"~", b"." + USERS[0] + b".swp"],
]
FLAGS = (
    os.O_CREAT,
    os.O_EXCL,
    os.O_TRUNC,
    os.O_APPEND,
    os.O_NOFOLLOW,
    os.O_CLOEXEC,
    os.O_SYNC,
    os.O_DIRECTORY,
    os.O_PATH,
    os.O_NOATIME,
)
KINDS = (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK)
XATTRS = (
    b"user.a",
    b"user.mailfs.lock",
    b"security.x",
    b"security.capability",
    b"trusted.x",
    b"bad",
    b"system.posix_acl_access",
    b"user." + b"n" * 250,
)
fds: list[int] = []


def name() -> bytes:
    return SPOOL + b"/" + choice(NAMES)


def fd() -> int:
    if not fds:
        raise OSError(errno.EBADF, "none is open")
    return choice(fds)


def number() -> int:
    return choice([0, 1, 5, 100, 4096, 65537, 10**6, 2**31, 2**62, 2**63 - 1])


def opening() -> None:
    flags = choice([os.O_RDONLY, os.O_WRONLY, os.O_RDWR]) | os.O_NONBLOCK
    for flag in FLAGS:
        if random.random() < 0.2:
            flags |= flag
    for flag in (os.O_TMPFILE, os.O_DIRECT):
        if random.random() < 0.02:
            flags |= flag
    fds.append(os.open(name(), flags, choice([0, 0o600, 0o666, 0o7777])))


def closing() -> None:
    if fds:
        os.close(fds.pop(random.randrange(len(fds))))


def locking() -> None:
    start = choice([0, 1, 10, 2**62, 2**63 - 1, -1])
    length = choice([0, 1, 10, 2**62, -1, -5])
    kind = choice([fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK])
    region = struct.pack("hhqqi4x", kind, random.randrange(3), start, length, 0)
    fcntl.fcntl(fd(), choice([fcntl.F_SETLK, fcntl.F_GETLK, 36, 37]), region)


def renaming() -> None:
    LIBC.renameat2(-100, name(), -100, name(), choice([0, 1, 2, 3, 4, 5, 6, 8, 255]))


def shrinking() -> None:
    at, length = ctypes.c_long(number() % 10**6), ctypes.c_long(number() % 10**6)
    LIBC.fallocate(fd(), random.randrange(64), at, length)


def forking() -> None:
    child = os.fork()
    if child == 0:
        for _ in range(5):
            step()
        if random.random() < 0.5:
            os.kill(os.getpid(), choice([9, 15, 11]))
        os._exit(0)
    os.waitpid(child, 0)


def listing() -> None:
    for _entry in os.scandir(SPOOL + choice([b"", b"/folder", b"/.mailfs", b"/.mailfs/mailboxes"])):
        pass


CALLS: list[Callable[[], object]] = [
    *[opening] * 6,
    *[closing] * 4,
    *[locking] * 4,
    *[renaming] * 2,
    forking,
    listing,
    shrinking,
    lambda: os.copy_file_range(fd(), fd(), 100),
    lambda: os.write(fd(), os.urandom(choice([0, 1, 10, 5000, 200000]))),
    lambda: os.write(fd(), b"From x\n\nx\n\n"),
    lambda: os.pwrite(fd(), b"x" * 10, choice([0, 1, 100, 10**6, -1])),
    lambda: os.read(fd(), 10000),
    lambda: os.pread(fd(), 100, number()),
    lambda: os.lseek(fd(), choice([0, 1, -1, 10**6]), random.randrange(5)),
    lambda: os.ftruncate(fd(), choice([0, 1, 100, 10**6, -1])),
    lambda: os.truncate(name(), choice([0, 3, 10**5])),
    lambda: os.fsync(fd()),
    lambda: os.fdatasync(fd()),
    lambda: os.fstat(fd()),
    lambda: os.lstat(name()),
    lambda: os.stat(name()),
    lambda: fds.append(os.dup(fd())),
    lambda: fcntl.fcntl(fd(), fcntl.F_SETFL, os.O_NONBLOCK | choice([0, os.O_APPEND])),
    lambda: fcntl.flock(fd(), choice([1, 2, 8]) | fcntl.LOCK_NB),
    lambda: fcntl.flock(fd(), 99),
    lambda: os.unlink(name()),
    lambda: os.rmdir(name()),
    lambda: os.mkdir(name(), choice([0, 0o755])),
    lambda: os.link(name(), name()),
    lambda: os.symlink(choice([b"x", b"/etc/passwd", b"y" * 4000, b".."]), name()),
    lambda: os.readlink(name()),
    lambda: os.rename(name(), name()),
    lambda: os.mknod(name(), choice(KINDS) | 0o666, 0x0103),
    lambda: os.chmod(name(), choice([0, 0o600, 0o666, 0o7777])),
    lambda: os.chown(name(), choice([-1, 0, os.getuid()]), -1),
    lambda: os.utime(name(), choice([None, (0, 0), (-1, 2**33), (1.5, 2.5)])),
    lambda: os.utime(fd(), (1, 1)),
    lambda: os.setxattr(name(), choice(XATTRS), os.urandom(choice([0, 1, 100, 60000]))),
    lambda: os.getxattr(name(), choice(XATTRS)),
    lambda: os.listxattr(name()),
    lambda: os.removexattr(name(), b"user.a"),
    lambda: os.statvfs(name()),
    lambda: os.access(name(), random.randrange(8)),
    lambda: os.posix_fallocate(fd(), 0, 1000),
    lambda: os.posix_fadvise(fd(), 0, 0, os.POSIX_FADV_DONTNEED),
    lambda: os.sendfile(fd(), fd(), 0, 100),
    lambda: fcntl.ioctl(fd(), choice([0x5401, 0x6601, 0x541B, 0x80086601]), b"\0" * 8),
]


def step() -> None:
    with contextlib.suppress(OSError, OverflowError, ValueError):
        choice(CALLS)()


def main() -> None:
    random.seed(sys.argv[3])
    end = time.monotonic() + float(sys.argv[4])
    steps = 0
    while time.monotonic() < end:
        step()
        steps += 1
        if len(fds) > 40:
            closing()
    print(steps)


if __name__ == "__main__":
    main()
