"""Reading, writing and truncating. As in ``checks.py``."""

from __future__ import annotations

CHECKS: dict[str, str] = {
    "append-goes-to-the-end": """
put(d + "/f", b"0123456789")
a = os.open(d + "/f", os.O_WRONLY | os.O_APPEND)
b = os.open(d + "/f", os.O_RDWR | os.O_APPEND)
os.write(a, b"A"); os.write(b, b"B"); os.write(a, b"C")
assert os.lseek(a, 0, os.SEEK_CUR) == 13
os.close(a); os.close(b)
assert get(d + "/f") == b"0123456789ABC"
""",
    "seek-end-after-append": """
fd = os.open(d + "/f", os.O_CREAT | os.O_RDWR, 0o600)
os.write(fd, b"12345")
assert os.lseek(fd, 0, os.SEEK_END) == 5 == os.fstat(fd).st_size
os.write(fd, b"678")
assert os.lseek(fd, 0, os.SEEK_END) == 8 == os.fstat(fd).st_size
assert os.pread(fd, 99, 0) == b"12345678"
os.close(fd)
assert os.stat(d + "/f").st_size == 8
""",
    "pread-pwrite": """
fd = os.open(d + "/f", os.O_CREAT | os.O_RDWR, 0o600)
os.pwrite(fd, b"abcdef", 0); os.pwrite(fd, b"XY", 2)
assert os.lseek(fd, 0, os.SEEK_CUR) == 0
assert os.pread(fd, 3, 1) == b"bXY" and os.pread(fd, 10, 6) == b"" and os.pread(fd, 10, 99) == b""
assert os.read(fd, 100) == b"abXYef"
os.close(fd)
assert get(d + "/f") == b"abXYef"
""",
    "truncate-both-ways": """
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
    "truncate-zero-then-write": """
put(d + "/f", b"0123456789" * 1000)
fd = os.open(d + "/f", os.O_RDWR)
os.ftruncate(fd, 0); os.write(fd, b"new content\\n")
os.close(fd)
assert get(d + "/f") == b"new content\\n"
""",
    "sparse-files": """
fd = os.open(d + "/f", os.O_CREAT | os.O_RDWR, 0o600)
os.pwrite(fd, b"end", 1 << 20)
assert os.fstat(fd).st_size == (1 << 20) + 3
assert os.pread(fd, 4, (1 << 20) - 1) == b"\\0end" and os.pread(fd, 4, 0) == b"\\0" * 4
os.close(fd)
assert get(d + "/f") == b"\\0" * (1 << 20) + b"end"
""",
    "posix-fallocate": """
fd = os.open(d + "/f", os.O_CREAT | os.O_RDWR, 0o600)
os.posix_fallocate(fd, 0, 5000)
assert os.fstat(fd).st_size == 5000
os.close(fd)
""",
    "megabytes": """
import hashlib
block = bytes(range(256)) * 257
put(d + "/f", block * 64)
content = get(d + "/f")
assert len(content) == len(block) * 64 and content == block * 64
""",
    "many-small-writes-one-file": """
fd = os.open(d + "/f", os.O_CREAT | os.O_WRONLY, 0o600)
for i in range(500):
    os.write(fd, b"%06d\\n" % i)
os.close(fd)
assert get(d + "/f") == b"".join(b"%06d\\n" % i for i in range(500))
""",
    "open-file-modes-are-kept": """
put(d + "/f", b"x")
r = os.open(d + "/f", os.O_RDONLY); w = os.open(d + "/f", os.O_WRONLY)
assert fails(lambda: os.write(r, b"y"), errno.EBADF) and fails(lambda: os.read(w, 1), errno.EBADF)
os.close(r); os.close(w)
assert fails(lambda: os.open(d, os.O_WRONLY), errno.EISDIR)
assert fails(lambda: os.open(d + "/f", os.O_RDONLY | os.O_DIRECTORY), errno.ENOTDIR)
assert fails(lambda: get(d + "/f/x"), errno.ENOTDIR)
""",
    "dup-and-close": """
fd = os.open(d + "/f", os.O_CREAT | os.O_WRONLY, 0o600)
other = os.dup(fd)
os.write(fd, b"one "); os.close(fd)
os.write(other, b"two "); os.close(other)
assert get(d + "/f") == b"one two "
""",
    "descriptor-shared-with-a-child": """
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
    "fsync": """
fd = os.open(d + "/f", os.O_CREAT | os.O_RDWR, 0o600)
os.write(fd, b"x"); os.fsync(fd); os.write(fd, b"y"); os.fdatasync(fd)
os.close(fd)
dirfd = os.open(d, os.O_RDONLY); os.fsync(dirfd); os.close(dirfd)
assert get(d + "/f") == b"xy"
""",
    "mmap-read": """
import mmap
put(d + "/f", b"0123456789" * 1000)
fd = os.open(d + "/f", os.O_RDONLY)
with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as m:
    assert m[5000:5010] == b"0123456789" and len(m) == 10000
os.close(fd)
""",
}
