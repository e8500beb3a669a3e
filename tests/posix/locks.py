"""flock(2) and fcntl(2) on an ordinary file. As in ``checks.py``."""

from __future__ import annotations

CHECKS: dict[str, str] = {
    "flock-between-processes": """
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
    "fcntl-byte-ranges": """
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
    "fcntl-deadlock": """
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
    "ofd-locks": """
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
}
