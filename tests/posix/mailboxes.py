"""Checks on a mailbox in the spool's root: what an ordinary program expects of a file it owns.

As in ``checks.py``; ``m`` is the user's own empty mailbox. One program at work at a time.
"""

from __future__ import annotations

CHECKS: dict[str, str] = {
    "append-and-read-back": """
append(m, b"From a\\n\\none\\n\\n"); append(m, b"From b\\n\\ntwo\\n\\n", 7)
assert get(m) == b"From a\\n\\none\\n\\nFrom b\\n\\ntwo\\n\\n" and os.stat(m).st_size == 26
""",
    "inode-and-links-stay": """
before = os.stat(m)
append(m, b"From a\\n\\none\\n\\n")
after = os.stat(m)
assert (after.st_ino, after.st_dev, after.st_nlink) == (before.st_ino, before.st_dev, 1)
assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
""",
    "a-writer-sees-what-it-wrote": """
append(m, b"From a\\n\\none\\n\\n")
fd = os.open(m, os.O_RDWR | os.O_APPEND)
os.write(fd, b"From b\\n"); os.write(fd, b"\\ntwo\\n\\n")
assert os.fstat(fd).st_size == 26 == os.lseek(fd, 0, os.SEEK_END)
assert os.pread(fd, 99, 13) == b"From b\\n\\ntwo\\n\\n"
os.close(fd)
assert get(m)[13:] == b"From b\\n\\ntwo\\n\\n"
""",
    "seek-end-then-write": """
append(m, b"From a\\n\\none\\n\\n")
fd = os.open(m, os.O_WRONLY)
assert os.lseek(fd, 0, os.SEEK_END) == 13
os.write(fd, b"From b\\n\\n"); os.write(fd, b"two\\n\\n")
os.close(fd)
assert get(m) == b"From a\\n\\none\\n\\nFrom b\\n\\ntwo\\n\\n"
""",
    "rewrite-in-place": """
append(m, b"From a\\n\\none\\n\\nFrom b\\n\\ntwo\\n\\n")
fd = os.open(m, os.O_RDWR)
text = os.read(fd, 999)
os.lseek(fd, 0, os.SEEK_SET); os.write(fd, text[13:]); os.ftruncate(fd, 13)
assert os.pread(fd, 99, 0) == text[13:]
os.close(fd)
assert get(m) == b"From b\\n\\ntwo\\n\\n"
""",
    "truncating-save": """
append(m, b"From a\\n\\none\\n\\n")
get(m)
put(m, b"From z\\n\\nnew\\n\\n", os.O_TRUNC)
assert get(m) == b"From z\\n\\nnew\\n\\n"
get(m)
put(m, b"", os.O_TRUNC)
assert get(m) == b""
""",
    "rename-over": """
append(m, b"From a\\n\\none\\n\\n")
before = os.stat(m)
text = get(m)
put(m + ".new", text + b"From b\\n\\ntwo\\n\\n", mode=0o660)
os.rename(m + ".new", m)
assert get(m) == text + b"From b\\n\\ntwo\\n\\n"
assert not os.path.exists(m + ".new") and os.stat(m).st_nlink == 1
""",
    "times": """
append(m, b"From a\\n\\none\\n\\n")
os.utime(m, ns=(1_700_000_000_000_000_001, 1_600_000_000_000_000_002))
s = os.stat(m)
assert (s.st_atime_ns, s.st_mtime_ns) == (1_700_000_000_000_000_001, 1_600_000_000_000_000_002)
append(m, b"From b\\n\\ntwo\\n\\n")
assert abs(os.stat(m).st_mtime - time.time()) < 5
""",
    "times-set-through-the-handle-before-close": """
fd = os.open(m, os.O_RDWR)
os.write(fd, b"From a\\n\\none\\n\\n")
os.utime(fd, ns=(1_700_000_000_000_000_000, 1_600_000_000_000_000_000))
os.close(fd)
assert os.stat(m).st_mtime_ns == 1_600_000_000_000_000_000, os.stat(m).st_mtime_ns
""",
    "new-mail-test": """
append(m, b"From a\\n\\none\\n\\n")
os.utime(m, (time.time() - 50, time.time() - 100))
append(m, b"From b\\n\\ntwo\\n\\n")
s = os.stat(m)
assert s.st_atime < s.st_mtime, (s.st_atime, s.st_mtime)
get(m)
time.sleep(0.05)
s = os.stat(m)
assert s.st_atime >= s.st_mtime, (s.st_atime, s.st_mtime)
""",
    "mode-can-be-changed-and-is-checked": """
append(m, b"From a\\n\\none\\n\\n")
os.chmod(m, 0o400)
assert fails(lambda: os.open(m, os.O_WRONLY), errno.EACCES)
os.chmod(m, 0o600)
assert stat.S_IMODE(os.stat(m).st_mode) == 0o600
append(m, b"From b\\n\\ntwo\\n\\n")
""",
    "create-without-exclusive": """
fd = os.open(m, os.O_RDWR | os.O_CREAT, 0o600)
os.close(fd)
assert fails(lambda: os.open(m, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), errno.EEXIST)
""",
    "private-mapping": """
import mmap
append(m, b"From a\\n\\n" + b"0123456789" * 1000)
fd = os.open(m, os.O_RDONLY)
with mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) as view:
    assert view[8:18] == b"0123456789" and len(view) == 10008
os.close(fd)
""",
    "fsync-makes-it-so": """
fd = os.open(m, os.O_WRONLY | os.O_APPEND)
os.write(fd, b"From a\\n\\none\\n\\n"); os.fsync(fd)
assert get(m) == b"From a\\n\\none\\n\\n"
os.close(fd)
assert get(m) == b"From a\\n\\none\\n\\n"
""",
    "probe-with-rdwr-is-no-save": """
append(m, b"From a\\n\\none\\n\\n")
before = os.stat(m)
os.close(os.open(m, os.O_RDWR))
after = os.stat(m)
assert before.st_mtime_ns == after.st_mtime_ns and get(m) == b"From a\\n\\none\\n\\n"
""",
    "written-by-a-shell": """
import subprocess
script = 'exec 3>>"$1"; echo "From a" >&3; echo >&3; (echo one; echo) >&3; exec 3>&-; cat "$1"'
done = subprocess.run(["sh", "-c", script, "sh", m], capture_output=True, timeout=20, check=True)
assert done.stdout == b"From a\\n\\none\\n\\n" == get(m), (done, get(m))
script = '(echo "From b"; echo; echo two; echo) >> "$1"'
subprocess.run(["sh", "-c", script, "sh", m], timeout=20, check=True)
assert get(m) == b"From a\\n\\none\\n\\nFrom b\\n\\ntwo\\n\\n", get(m)
""",
    "listed-once": """
name = os.path.basename(m)
assert os.listdir(os.path.dirname(m)).count(name) == 1
assert [e.inode() for e in os.scandir(os.path.dirname(m)) if e.name == name] == [os.stat(m).st_ino]
""",
}
