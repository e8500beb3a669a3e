"""Names, links and directories. As in ``checks.py``."""

from __future__ import annotations

CHECKS: dict[str, str] = {
    "create-is-exclusive": """
put(d + "/f", b"x")
assert fails(lambda: put(d + "/f"), errno.EEXIST)
put(d + "/f", b"y", os.O_CREAT | os.O_TRUNC)
assert get(d + "/f") == b"y"
""",
    "missing-is-enoent": """
for call in (os.stat, os.unlink, get, os.listdir, os.rmdir, os.readlink):
    assert fails(lambda: call(d + "/no"), errno.ENOENT), call
""",
    "rename-replaces": """
put(d + "/a", b"a")
put(d + "/b", b"b")
ino = os.stat(d + "/a").st_ino
os.rename(d + "/a", d + "/b")
assert get(d + "/b") == b"a" and os.stat(d + "/b").st_ino == ino
assert not os.path.exists(d + "/a")
""",
    "rename-noreplace": """
put(d + "/a", b"a")
put(d + "/b", b"b")
assert fails(lambda: renameat2(d + "/a", d + "/b", 1), errno.EEXIST)
assert get(d + "/a") == b"a" and get(d + "/b") == b"b"
renameat2(d + "/a", d + "/c", 1)
assert get(d + "/c") == b"a"
""",
    "rename-exchange": """
put(d + "/a", b"a")
put(d + "/b", b"b")
renameat2(d + "/a", d + "/b", 2)
assert get(d + "/a") == b"b" and get(d + "/b") == b"a"
assert fails(lambda: renameat2(d + "/a", d + "/no", 2), errno.ENOENT)
""",
    "rename-over-an-open-file": """
put(d + "/a", b"new")
put(d + "/b", b"old")
fd = os.open(d + "/b", os.O_RDWR)
os.rename(d + "/a", d + "/b")
assert os.pread(fd, 10, 0) == b"old" and os.fstat(fd).st_nlink == 0
os.pwrite(fd, b"gone", 0)
os.close(fd)
assert get(d + "/b") == b"new"
""",
    "rename-directories": """
os.mkdir(d + "/a"); os.mkdir(d + "/b"); put(d + "/a/f", b"x"); put(d + "/b/g")
assert fails(lambda: os.rename(d + "/a", d + "/b"), errno.ENOTEMPTY)
assert fails(lambda: os.rename(d + "/a", d + "/a/c"), errno.EINVAL)
os.rename(d + "/a/f", d + "/b/f")
os.rename(d + "/a", d + "/c")
os.rename(d + "/b", d + "/c")
assert get(d + "/c/f") == b"x" and sorted(os.listdir(d + "/c")) == ["f", "g"]
assert os.listdir(d) == ["c"]
""",
    "unlink-an-open-file": """
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
    "hard-links": """
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
    "symbolic-links": """
os.symlink("f", d + "/s")
assert os.readlink(d + "/s") == "f" and os.lstat(d + "/s").st_size == 1
assert fails(lambda: get(d + "/s"), errno.ENOENT)
put(d + "/f", b"x")
assert get(d + "/s") == b"x"
assert fails(lambda: os.open(d + "/s", os.O_RDONLY | os.O_NOFOLLOW), errno.ELOOP)
os.symlink("l" * 1000, d + "/long")
assert os.readlink(d + "/long") == "l" * 1000
""",
    "mkdir-rmdir-link-counts": """
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
    "fifo": """
os.mkfifo(d + "/p")
assert stat.S_ISFIFO(os.stat(d + "/p").st_mode)
r = os.open(d + "/p", os.O_RDONLY | os.O_NONBLOCK)
w = os.open(d + "/p", os.O_WRONLY | os.O_NONBLOCK)
os.write(w, b"x")
assert os.read(r, 9) == b"x"
os.close(r); os.close(w)
""",
    "names-of-255-bytes": """
name = "n" * 255
put(d + "/" + name, b"x")
assert os.listdir(d) == [name] and get(d + "/" + name) == b"x"
assert fails(lambda: put(d + "/" + name + "n"), errno.ENAMETOOLONG)
assert os.statvfs(d).f_namemax == 255
""",
    "names-that-are-not-utf-8": r"""
names = {bytes(range(1, 47)) + b"0" + bytes(range(48, 130)), bytes(range(128, 256)), b"a\nb", b" ",
         b"...", b"-", b"\\", "\u00e9".encode(), b"%s"}
for name in names:
    put(os.fsencode(d) + b"/" + name, name)
assert set(os.listdir(os.fsencode(d))) == names
for name in names:
    assert get(os.fsencode(d) + b"/" + name) == name
""",
    "readdir-is-a-snapshot": """
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
    "readdir-types-and-rewind": """
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
    "readdir-of-5000-long-names": """
names = {("%05d" % i) + "x" * 200 for i in range(5000)}
for name in names:
    os.close(os.open(d + "/" + name, os.O_CREAT | os.O_WRONLY, 0o600))
listed = os.listdir(d)
assert len(listed) == 5000 and set(listed) == names
for name in names:
    os.unlink(d + "/" + name)
assert os.listdir(d) == []
""",
    "maildir-delivery": """
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
    "a-deep-tree": """
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
    "copy-tools": """
import subprocess
put(d + "/f", b"line\\n" * 5000)
run = lambda *argv: subprocess.run(argv, check=True, timeout=20, cwd=d, stdin=subprocess.DEVNULL)
run("cp", "f", "g"); run("cp", "-p", "f", "h"); run("mv", "g", "i"); run("ln", "h", "k")
run("sed", "-i", "s/line/LINE/", "i"); run("tar", "cf", "t.tar", "f", "h"); run("rm", "h")
run("sh", "-c", "cat f >> k; : > f; grep -c line k > n")
assert get(d + "/n") == b"10000\\n" and get(d + "/i") == b"LINE\\n" * 5000 and get(d + "/f") == b""
""",
}
