"""What a faithful file system does, as a table of checks.

Each check is Python for an actor: it runs as a user in an empty directory ``d`` of that user's,
with everything of ``tests/support/actor_main.py`` at hand, and asserts. It must pass on the plain
directory; that validates the check. The idea of the table is hanwen/go-fuse's ``posixtest``.
"""

from __future__ import annotations

CHECKS: dict[str, str] = {}


def _check(name: str, code: str) -> None:
    CHECKS[name] = code


_check(
    "create-is-exclusive",
    """
put(d + "/f", b"x")
assert fails(lambda: put(d + "/f"), errno.EEXIST)
put(d + "/f", b"y", os.O_CREAT | os.O_TRUNC)
assert get(d + "/f") == b"y"
""",
)
_check(
    "missing-is-enoent",
    """
for call in (os.stat, os.unlink, get, os.listdir, os.rmdir, os.readlink):
    assert fails(lambda: call(d + "/no"), errno.ENOENT), call
""",
)
_check(
    "create-mode-and-umask",
    """
os.umask(0o027)
fd = os.open(d + "/f", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
os.mkdir(d + "/dir", 0o777)
assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640 == stat.S_IMODE(os.stat(d + "/f").st_mode)
assert stat.S_IMODE(os.stat(d + "/dir").st_mode) & 0o777 == 0o750
os.close(fd)
""",
)
_check(
    "read-only-create-can-be-written",
    """
fd = os.open(d + "/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400)
assert os.write(fd, b"x") == 1
os.close(fd)
assert get(d + "/f") == b"x"
""",
)
_check(
    "permissions-are-checked",
    """
put(d + "/f", b"x", mode=0o200)
assert fails(lambda: get(d + "/f"), errno.EACCES)
os.chmod(d + "/f", 0o400)
assert fails(lambda: os.open(d + "/f", os.O_WRONLY), errno.EACCES)
assert get(d + "/f") == b"x"
os.mkdir(d + "/dir", 0o500)
assert fails(lambda: put(d + "/dir/f"), errno.EACCES)
""",
)
_check(
    "rename-replaces",
    """
put(d + "/a", b"a")
put(d + "/b", b"b")
ino = os.stat(d + "/a").st_ino
os.rename(d + "/a", d + "/b")
assert get(d + "/b") == b"a" and os.stat(d + "/b").st_ino == ino
assert not os.path.exists(d + "/a")
""",
)
_check(
    "rename-noreplace",
    """
put(d + "/a", b"a")
put(d + "/b", b"b")
assert fails(lambda: renameat2(d + "/a", d + "/b", 1), errno.EEXIST)
assert get(d + "/a") == b"a" and get(d + "/b") == b"b"
renameat2(d + "/a", d + "/c", 1)
assert get(d + "/c") == b"a"
""",
)
_check(
    "rename-exchange",
    """
put(d + "/a", b"a")
put(d + "/b", b"b")
renameat2(d + "/a", d + "/b", 2)
assert get(d + "/a") == b"b" and get(d + "/b") == b"a"
assert fails(lambda: renameat2(d + "/a", d + "/no", 2), errno.ENOENT)
""",
)
_check(
    "rename-over-an-open-file",
    """
put(d + "/a", b"new")
put(d + "/b", b"old")
fd = os.open(d + "/b", os.O_RDWR)
os.rename(d + "/a", d + "/b")
assert os.pread(fd, 10, 0) == b"old" and os.fstat(fd).st_nlink == 0
os.pwrite(fd, b"gone", 0)
os.close(fd)
assert get(d + "/b") == b"new"
""",
)
_check(
    "rename-directories",
    """
os.mkdir(d + "/a"); os.mkdir(d + "/b"); put(d + "/a/f", b"x"); put(d + "/b/g")
assert fails(lambda: os.rename(d + "/a", d + "/b"), errno.ENOTEMPTY)
assert fails(lambda: os.rename(d + "/a", d + "/a/c"), errno.EINVAL)
os.rename(d + "/a/f", d + "/b/f")
os.rename(d + "/a", d + "/c")
os.rename(d + "/b", d + "/c")
assert get(d + "/c/f") == b"x" and sorted(os.listdir(d + "/c")) == ["f", "g"]
assert os.listdir(d) == ["c"]
""",
)
_check(
    "unlink-an-open-file",
    """
put(d + "/f", b"abc")
fd = os.open(d + "/f", os.O_RDWR)
os.unlink(d + "/f")
assert os.pread(fd, 3, 0) == b"abc" and os.fstat(fd).st_nlink == 0
assert os.pwrite(fd, b"xyz", 3) == 3 and os.pread(fd, 9, 0) == b"abcxyz"
assert os.listdir(d) == []
put(d + "/f", b"new")
assert os.pread(fd, 9, 0) == b"abcxyz"
os.close(fd)
assert get(d + "/f") == b"new"
""",
)
_check(
    "hard-links",
    """
put(d + "/f", b"x")
os.link(d + "/f", d + "/g")
a, b = os.stat(d + "/f"), os.stat(d + "/g")
assert a.st_nlink == b.st_nlink == 2 and a.st_ino == b.st_ino
assert fails(lambda: os.link(d + "/f", d + "/g"), errno.EEXIST)
append(d + "/g", b"yz")
assert get(d + "/f") == b"xyz"
os.unlink(d + "/f")
assert os.stat(d + "/g").st_nlink == 1
""",
)
_check(
    "symbolic-links",
    """
os.symlink("f", d + "/s")
assert os.readlink(d + "/s") == "f" and os.lstat(d + "/s").st_size == 1
assert fails(lambda: get(d + "/s"), errno.ENOENT)
put(d + "/f", b"x")
assert get(d + "/s") == b"x"
assert fails(lambda: os.open(d + "/s", os.O_RDONLY | os.O_NOFOLLOW), errno.ELOOP)
os.symlink("l" * 1000, d + "/long")
assert os.readlink(d + "/long") == "l" * 1000
""",
)
_check(
    "mkdir-rmdir-link-counts",
    """
before = os.stat(d).st_nlink
os.mkdir(d + "/dir")
assert os.stat(d).st_nlink in (before + 1, 1)  # 1: the file system does not count
assert fails(lambda: os.mkdir(d + "/dir"), errno.EEXIST)
put(d + "/dir/f")
assert fails(lambda: os.rmdir(d + "/dir"), errno.ENOTEMPTY)
assert fails(lambda: os.unlink(d + "/dir"), errno.EISDIR)
assert fails(lambda: os.rmdir(d + "/dir/f"), errno.ENOTDIR)
os.unlink(d + "/dir/f")
os.rmdir(d + "/dir")
assert os.stat(d).st_nlink == before
""",
)
_check(
    "fifo",
    """
os.mkfifo(d + "/p")
assert stat.S_ISFIFO(os.stat(d + "/p").st_mode)
r = os.open(d + "/p", os.O_RDONLY | os.O_NONBLOCK)
w = os.open(d + "/p", os.O_WRONLY | os.O_NONBLOCK)
os.write(w, b"x")
assert os.read(r, 9) == b"x"
os.close(r); os.close(w)
""",
)
_check(
    "names-of-255-bytes",
    """
name = "n" * 255
put(d + "/" + name, b"x")
assert os.listdir(d) == [name] and get(d + "/" + name) == b"x"
assert fails(lambda: put(d + "/" + name + "n"), errno.ENAMETOOLONG)
assert os.statvfs(d).f_namemax == 255
""",
)
_check(
    "names-that-are-not-utf-8",
    r"""
names = {bytes(range(1, 47)) + b"0" + bytes(range(48, 130)), bytes(range(128, 256)), b"a\nb", b" ",
         b"...", b"-", b"\\", "\u00e9".encode(), b"%s"}
for name in names:
    put(os.fsencode(d) + b"/" + name, name)
assert set(os.listdir(os.fsencode(d))) == names
for name in names:
    assert get(os.fsencode(d) + b"/" + name) == name
""",
)
_check(
    "extended-attributes",
    """
put(d + "/f")
os.setxattr(d + "/f", "user.a", b"1")
os.setxattr(d + "/f", "user.b", b"\\0\\xff" * 100)
assert os.getxattr(d + "/f", "user.a") == b"1"
assert os.getxattr(d + "/f", "user.b") == b"\\0\\xff" * 100
assert {"user.a", "user.b"} <= set(os.listxattr(d + "/f"))
assert fails(lambda: os.setxattr(d + "/f", "user.a", b"2", os.XATTR_CREATE), errno.EEXIST)
assert fails(lambda: os.setxattr(d + "/f", "user.c", b"2", os.XATTR_REPLACE), errno.ENODATA)
os.removexattr(d + "/f", "user.a")
assert fails(lambda: os.getxattr(d + "/f", "user.a"), errno.ENODATA)
assert fails(lambda: os.removexattr(d + "/f", "user.a"), errno.ENODATA)
""",
)
_check(
    "statvfs",
    """
v = os.statvfs(d)
assert v.f_blocks > 0 and v.f_bfree > 0 and v.f_bsize > 0 and v.f_frsize > 0
""",
)
_check(
    "utimens-in-nanoseconds",
    """
put(d + "/f")
os.utime(d + "/f", ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
s = os.stat(d + "/f")
assert (s.st_atime_ns, s.st_mtime_ns) == (1_000_000_000_123_456_789, 1_100_000_000_987_654_321)
assert abs(s.st_ctime - time.time()) < 5
fd = os.open(d + "/f", os.O_RDWR)
os.utime(fd, ns=(5_000_000_000, 6_000_000_000))
s = os.fstat(fd)
assert (s.st_atime_ns, s.st_mtime_ns) == (5_000_000_000, 6_000_000_000)
os.utime(d + "/f")
assert abs(os.stat(d + "/f").st_mtime - time.time()) < 5
os.close(fd)
""",
)
_check(
    "utimens-before-1970-and-of-a-link",
    """
put(d + "/f")
os.utime(d + "/f", ns=(-1_500_000_000, -2_000_000_000))
assert os.stat(d + "/f").st_mtime_ns == -2_000_000_000, os.stat(d + "/f").st_mtime_ns
assert os.stat(d + "/f").st_atime_ns == -1_500_000_000
os.symlink("f", d + "/s")
os.utime(d + "/s", ns=(7_000_000_000, 8_000_000_000), follow_symlinks=False)
assert os.lstat(d + "/s").st_mtime_ns == 8_000_000_000
assert os.stat(d + "/f").st_mtime_ns == -2_000_000_000
""",
)
_check(
    "write-moves-mtime",
    """
put(d + "/f", b"x")
os.utime(d + "/f", (1, 1))
append(d + "/f", b"y")
assert abs(os.stat(d + "/f").st_mtime - time.time()) < 5
os.utime(d, (1, 1))
put(d + "/g")
assert abs(os.stat(d).st_mtime - time.time()) < 5
""",
)
_check(
    "new-mail-test",
    """
put(d + "/f", b"old")
os.utime(d + "/f", (time.time() - 50, time.time() - 100))
append(d + "/f", b"new")
s = os.stat(d + "/f")
assert s.st_atime < s.st_mtime, (s.st_atime, s.st_mtime)
get(d + "/f")
time.sleep(0.05)
s = os.stat(d + "/f")
assert s.st_atime >= s.st_mtime, (s.st_atime, s.st_mtime)
""",
)
_check(
    "readdir-is-a-snapshot",
    """
import threading
for i in range(1000):
    put(d + "/%d.old" % i)
found = os.scandir(d)
seen = {next(found).name for _ in range(10)}
mover = os.fork()
if mover == 0:
    for i in range(1000):
        os.rename(d + "/%d.old" % i, d + "/%d.new" % i)
    os._exit(0)
os.waitpid(mover, 0)
seen |= {entry.name for entry in found}
lost = [i for i in range(1000) if "%d.old" % i not in seen and "%d.new" % i not in seen]
assert not lost, lost[:5]
assert sorted(os.listdir(d)) == sorted("%d.new" % i for i in range(1000))
""",
)
_check(
    "readdir-types-and-rewind",
    """
put(d + "/f"); os.mkdir(d + "/dir"); os.symlink("f", d + "/s")
kinds = {e.name: (e.is_file(follow_symlinks=False), e.is_dir(follow_symlinks=False), e.inode())
         for e in os.scandir(d)}
assert kinds["f"][:2] == (True, False) and kinds["dir"][:2] == (False, True)
assert kinds["s"][:2] == (False, False)
assert kinds["f"][2] == os.stat(d + "/f").st_ino
fd = os.open(d, os.O_RDONLY)
first = sorted(os.listdir(fd)); put(d + "/later"); second = sorted(os.listdir(fd))
assert first == ["dir", "f", "s"] and second == ["dir", "f", "later", "s"], (first, second)
os.close(fd)
""",
)
_check(
    "readdir-of-5000-long-names",
    """
names = {("%05d" % i) + "x" * 200 for i in range(5000)}
for name in names:
    os.close(os.open(d + "/" + name, os.O_CREAT | os.O_WRONLY, 0o600))
listed = os.listdir(d)
assert len(listed) == 5000 and set(listed) == names
for name in names:
    os.unlink(d + "/" + name)
assert os.listdir(d) == []
""",
)
_check(
    "maildir-delivery",
    """
for part in ("", "/cur", "/new", "/tmp"):
    os.mkdir(d + "/Maildir" + part, 0o700)
m = d + "/Maildir"
for i in range(20):
    name = "%d.M%dP%d.host" % (time.time(), i, os.getpid())
    put(m + "/tmp/" + name, b"mail %d" % i)
    fd = os.open(m + "/tmp/" + name, os.O_RDONLY); os.fsync(fd); os.close(fd)
    if i % 2:
        os.link(m + "/tmp/" + name, m + "/new/" + name); os.unlink(m + "/tmp/" + name)
    else:
        os.rename(m + "/tmp/" + name, m + "/new/" + name)
assert os.listdir(m + "/tmp") == [] and len(os.listdir(m + "/new")) == 20
for name in os.listdir(m + "/new"):
    os.rename(m + "/new/" + name, m + "/cur/" + name + ":2,S")
assert len(os.listdir(m + "/cur")) == 20 and os.listdir(m + "/new") == []
""",
)
_check(
    "append-goes-to-the-end",
    """
put(d + "/f", b"0123456789")
a = os.open(d + "/f", os.O_WRONLY | os.O_APPEND)
b = os.open(d + "/f", os.O_RDWR | os.O_APPEND)
os.write(a, b"A"); os.write(b, b"B"); os.write(a, b"C")
assert os.lseek(a, 0, os.SEEK_CUR) == 13
os.close(a); os.close(b)
assert get(d + "/f") == b"0123456789ABC"
""",
)
_check(
    "seek-end-after-append",
    """
fd = os.open(d + "/f", os.O_CREAT | os.O_RDWR, 0o600)
os.write(fd, b"12345")
assert os.lseek(fd, 0, os.SEEK_END) == 5 == os.fstat(fd).st_size
os.write(fd, b"678")
assert os.lseek(fd, 0, os.SEEK_END) == 8 == os.fstat(fd).st_size
assert os.pread(fd, 99, 0) == b"12345678"
os.close(fd)
assert os.stat(d + "/f").st_size == 8
""",
)
_check(
    "pread-pwrite",
    """
fd = os.open(d + "/f", os.O_CREAT | os.O_RDWR, 0o600)
os.pwrite(fd, b"abcdef", 0); os.pwrite(fd, b"XY", 2)
assert os.lseek(fd, 0, os.SEEK_CUR) == 0
assert os.pread(fd, 3, 1) == b"bXY" and os.pread(fd, 10, 6) == b"" and os.pread(fd, 10, 99) == b""
assert os.read(fd, 100) == b"abXYef"
os.close(fd)
assert get(d + "/f") == b"abXYef"
""",
)
_check(
    "truncate-both-ways",
    """
fd = os.open(d + "/f", os.O_CREAT | os.O_RDWR, 0o600)
os.write(fd, b"0123456789")
os.ftruncate(fd, 4)
assert os.pread(fd, 99, 0) == b"0123" and os.fstat(fd).st_size == 4
os.ftruncate(fd, 8)
assert os.pread(fd, 99, 0) == b"0123\\0\\0\\0\\0"
os.close(fd)
os.truncate(d + "/f", 2)
assert get(d + "/f") == b"01"
put(d + "/f", b"", os.O_TRUNC)
assert get(d + "/f") == b""
""",
)
_check(
    "truncate-zero-then-write",
    """
put(d + "/f", b"0123456789" * 1000)
fd = os.open(d + "/f", os.O_RDWR)
os.ftruncate(fd, 0); os.write(fd, b"new content\\n")
os.close(fd)
assert get(d + "/f") == b"new content\\n"
""",
)
_check(
    "sparse-files",
    """
fd = os.open(d + "/f", os.O_CREAT | os.O_RDWR, 0o600)
os.pwrite(fd, b"end", 1 << 20)
assert os.fstat(fd).st_size == (1 << 20) + 3
assert os.pread(fd, 4, (1 << 20) - 1) == b"\\0end" and os.pread(fd, 4, 0) == b"\\0" * 4
os.close(fd)
assert get(d + "/f") == b"\\0" * (1 << 20) + b"end"
""",
)
_check(
    "posix-fallocate",
    """
fd = os.open(d + "/f", os.O_CREAT | os.O_RDWR, 0o600)
os.posix_fallocate(fd, 0, 5000)
assert os.fstat(fd).st_size == 5000
os.close(fd)
""",
)
_check(
    "megabytes",
    """
import hashlib
block = bytes(range(256)) * 257
put(d + "/f", block * 64)
content = get(d + "/f")
assert len(content) == len(block) * 64 and content == block * 64
""",
)
_check(
    "many-small-writes-one-file",
    """
fd = os.open(d + "/f", os.O_CREAT | os.O_WRONLY, 0o600)
for i in range(500):
    os.write(fd, b"%06d\\n" % i)
os.close(fd)
assert get(d + "/f") == b"".join(b"%06d\\n" % i for i in range(500))
""",
)
_check(
    "open-file-modes-are-kept",
    """
put(d + "/f", b"x")
r = os.open(d + "/f", os.O_RDONLY); w = os.open(d + "/f", os.O_WRONLY)
assert fails(lambda: os.write(r, b"y"), errno.EBADF) and fails(lambda: os.read(w, 1), errno.EBADF)
os.close(r); os.close(w)
assert fails(lambda: os.open(d, os.O_WRONLY), errno.EISDIR)
assert fails(lambda: os.open(d + "/f", os.O_RDONLY | os.O_DIRECTORY), errno.ENOTDIR)
assert fails(lambda: get(d + "/f/x"), errno.ENOTDIR)
""",
)
_check(
    "dup-and-close",
    """
fd = os.open(d + "/f", os.O_CREAT | os.O_WRONLY, 0o600)
other = os.dup(fd)
os.write(fd, b"one "); os.close(fd)
os.write(other, b"two "); os.close(other)
assert get(d + "/f") == b"one two "
""",
)
_check(
    "descriptor-shared-with-a-child",
    """
fd = os.open(d + "/f", os.O_CREAT | os.O_WRONLY, 0o600)
os.write(fd, b"parent ")
child = os.fork()
if child == 0:
    os.write(fd, b"child ")
    os._exit(0)
os.waitpid(child, 0)
os.write(fd, b"parent")
os.close(fd)
assert get(d + "/f") == b"parent child parent"
""",
)
_check(
    "fsync",
    """
fd = os.open(d + "/f", os.O_CREAT | os.O_RDWR, 0o600)
os.write(fd, b"x"); os.fsync(fd); os.write(fd, b"y"); os.fdatasync(fd)
os.close(fd)
dirfd = os.open(d, os.O_RDONLY); os.fsync(dirfd); os.close(dirfd)
assert get(d + "/f") == b"xy"
""",
)
_check(
    "mmap-read",
    """
import mmap
put(d + "/f", b"0123456789" * 1000)
fd = os.open(d + "/f", os.O_RDONLY)
with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as m:
    assert m[5000:5010] == b"0123456789" and len(m) == 10000
os.close(fd)
""",
)
_check(
    "flock-between-processes",
    """
put(d + "/f")
fd = os.open(d + "/f", os.O_RDWR); other = os.open(d + "/f", os.O_RDWR)
fcntl.flock(fd, fcntl.LOCK_SH); fcntl.flock(other, fcntl.LOCK_SH | fcntl.LOCK_NB)
assert fails(lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), errno.EWOULDBLOCK)
os.close(other)
fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
again = os.dup(fd)
os.close(fd)
third = os.open(d + "/f", os.O_RDWR)
assert fails(lambda: fcntl.flock(third, fcntl.LOCK_SH | fcntl.LOCK_NB), errno.EWOULDBLOCK)
os.close(again)
fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
os.close(third)
""",
)
_check(
    "fcntl-byte-ranges",
    """
put(d + "/f", b"0" * 100)
fd = os.open(d + "/f", os.O_RDWR)
fcntl_lock(fd, fcntl.F_WRLCK, start=10, n=10); fcntl_lock(fd, fcntl.F_RDLCK, start=50, n=10)
def child():
    mine = os.open(d + "/f", os.O_RDWR)
    fcntl_lock(mine, fcntl.F_WRLCK, start=0, n=10)
    fcntl_lock(mine, fcntl.F_WRLCK, start=20, n=30)
    fcntl_lock(mine, fcntl.F_RDLCK, start=50, n=10)
    for start, kind in ((19, fcntl.F_RDLCK), (59, fcntl.F_WRLCK)):
        assert fails(lambda: fcntl_lock(mine, kind, start=start, n=1), errno.EAGAIN)
    assert fcntl_lock(mine, fcntl.F_WRLCK, fcntl.F_GETLK, 10, 1) == (fcntl.F_WRLCK, os.getppid())
in_child(child)
fcntl_lock(fd, fcntl.F_UNLCK, start=12, n=4)
def hole():
    mine = os.open(d + "/f", os.O_RDWR)
    fcntl_lock(mine, fcntl.F_WRLCK, start=12, n=4)
    assert fails(lambda: fcntl_lock(mine, fcntl.F_WRLCK, start=11, n=1), errno.EAGAIN)
    assert fails(lambda: fcntl_lock(mine, fcntl.F_WRLCK, start=16, n=1), errno.EAGAIN)
in_child(hole)
os.close(os.open(d + "/f", os.O_RDONLY))  # POSIX: closing any descriptor drops the process's locks
def freed():
    fcntl_lock(os.open(d + "/f", os.O_RDWR), fcntl.F_WRLCK)
in_child(freed)
os.close(fd)
""",
)
_check(
    "fcntl-deadlock",
    """
put(d + "/f", b"0" * 100)
fd = os.open(d + "/f", os.O_RDWR)
fcntl_lock(fd, fcntl.F_WRLCK, start=0, n=1)
r, w = os.pipe()
child = os.fork()
if child == 0:
    mine = os.open(d + "/f", os.O_RDWR)
    fcntl_lock(mine, fcntl.F_WRLCK, start=1, n=1)
    os.write(w, b"x")
    fcntl_lock(mine, fcntl.F_WRLCK, fcntl.F_SETLKW, 0, 1)
    os._exit(0)
os.read(r, 1)
time.sleep(0.2)
assert fails(lambda: fcntl_lock(fd, fcntl.F_WRLCK, fcntl.F_SETLKW, 1, 1), errno.EDEADLK)
fcntl_lock(fd, fcntl.F_UNLCK)
assert os.waitpid(child, 0)[1] == 0
os.close(r); os.close(w); os.close(fd)
""",
)
_check(
    "ofd-locks",
    """
put(d + "/f", b"0" * 100)
a = os.open(d + "/f", os.O_RDWR); b = os.open(d + "/f", os.O_RDWR)
fcntl_lock(a, fcntl.F_WRLCK, F_OFD_SETLK, 0, 10)
assert fails(lambda: fcntl_lock(b, fcntl.F_RDLCK, F_OFD_SETLK, 5, 1), errno.EAGAIN)
fcntl_lock(b, fcntl.F_WRLCK, F_OFD_SETLK, 10, 10)
os.close(os.open(d + "/f", os.O_RDONLY))
assert fails(lambda: fcntl_lock(b, fcntl.F_RDLCK, F_OFD_SETLK, 5, 1), errno.EAGAIN)
os.close(a)
fcntl_lock(b, fcntl.F_WRLCK, F_OFD_SETLK)
os.close(b)
""",
)
_check(
    "chown-to-oneself",
    """
put(d + "/f")
os.chown(d + "/f", os.getuid(), os.getgid())
os.chown(d + "/f", -1, -1)
assert fails(lambda: os.chown(d + "/f", 0, -1), errno.EPERM)
""",
)
_check(
    "root-owns-what-root-owns",
    """
assert fails(lambda: os.mknod(d + "/dev", stat.S_IFBLK | 0o600, os.makedev(8, 0)), errno.EPERM)
""",
)
_check(
    "access",
    """
put(d + "/f", mode=0o400)
assert os.access(d + "/f", os.R_OK) and not os.access(d + "/f", os.W_OK)
assert os.access(d, os.W_OK | os.X_OK)
""",
)
_check(
    "a-deep-tree",
    """
path = d
for i in range(30):
    path += "/level%d" % i
    os.mkdir(path)
put(path + "/f", b"deep")
assert get(path + "/f") == b"deep"
os.chdir(path)
assert get("f") == b"deep" and get("../level29/f") == b"deep" and os.getcwd() == path
os.chdir("/")
""",
)
_check(
    "copy-tools",
    """
import subprocess
put(d + "/f", b"line\\n" * 5000)
run = lambda *argv: subprocess.run(argv, check=True, timeout=20, cwd=d, stdin=subprocess.DEVNULL)
run("cp", "f", "g"); run("cp", "-p", "f", "h"); run("mv", "g", "i"); run("ln", "h", "k")
run("sed", "-i", "s/line/LINE/", "i"); run("tar", "cf", "t.tar", "f", "h"); run("rm", "h")
run("sh", "-c", "cat f >> k; : > f; grep -c line k > n")
assert get(d + "/n") == b"10000\\n" and get(d + "/i") == b"LINE\\n" * 5000 and get(d + "/f") == b""
""",
)
