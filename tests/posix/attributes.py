"""Owners, modes, times and extended attributes. As in ``checks.py``."""

from __future__ import annotations

CHECKS: dict[str, str] = {
    "create-mode-and-umask": """
os.umask(0o027)
fd = os.open(d + "/f", os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
os.mkdir(d + "/dir", 0o777)
assert stat.S_IMODE(os.fstat(fd).st_mode) == 0o640 == stat.S_IMODE(os.stat(d + "/f").st_mode)
assert stat.S_IMODE(os.stat(d + "/dir").st_mode) & 0o777 == 0o750
os.close(fd)
""",
    "read-only-create-can-be-written": """
fd = os.open(d + "/f", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o400)
assert os.write(fd, b"x") == 1
os.close(fd)
assert get(d + "/f") == b"x"
""",
    "permissions-are-checked": """
put(d + "/f", b"x", mode=0o200)
assert fails(lambda: get(d + "/f"), errno.EACCES)
os.chmod(d + "/f", 0o400)
assert fails(lambda: os.open(d + "/f", os.O_WRONLY), errno.EACCES)
assert get(d + "/f") == b"x"
os.mkdir(d + "/dir", 0o500)
assert fails(lambda: put(d + "/dir/f"), errno.EACCES)
""",
    "extended-attributes": """
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
    "statvfs": """
v = os.statvfs(d)
assert v.f_blocks > 0 and v.f_bfree > 0 and v.f_bsize > 0 and v.f_frsize > 0
""",
    "utimens-in-nanoseconds": """
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
    "utimens-before-1970-and-of-a-link": """
put(d + "/f")
os.utime(d + "/f", ns=(-1_500_000_000, -2_000_000_000))
assert os.stat(d + "/f").st_mtime_ns == -2_000_000_000, os.stat(d + "/f").st_mtime_ns
assert os.stat(d + "/f").st_atime_ns == -1_500_000_000
os.symlink("f", d + "/s")
os.utime(d + "/s", ns=(7_000_000_000, 8_000_000_000), follow_symlinks=False)
assert os.lstat(d + "/s").st_mtime_ns == 8_000_000_000
assert os.stat(d + "/f").st_mtime_ns == -2_000_000_000
""",
    "write-moves-mtime": """
put(d + "/f", b"x")
os.utime(d + "/f", (1, 1))
append(d + "/f", b"y")
assert abs(os.stat(d + "/f").st_mtime - time.time()) < 5
os.utime(d, (1, 1))
put(d + "/g")
assert abs(os.stat(d).st_mtime - time.time()) < 5
""",
    "new-mail-test": """
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
    "chown-to-oneself": """
put(d + "/f")
os.chown(d + "/f", os.getuid(), os.getgid())
os.chown(d + "/f", -1, -1)
assert fails(lambda: os.chown(d + "/f", 0, -1), errno.EPERM)
""",
    "root-owns-what-root-owns": """
assert fails(lambda: os.mknod(d + "/dev", stat.S_IFBLK | 0o600, os.makedev(8, 0)), errno.EPERM)
""",
    "access": """
put(d + "/f", mode=0o400)
assert os.access(d + "/f", os.R_OK) and not os.access(d + "/f", os.W_OK)
assert os.access(d, os.W_OK | os.X_OK)
""",
}
