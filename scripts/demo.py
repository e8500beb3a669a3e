"""Show mailfs at work: two programs fight over one mailbox, one of them without any lock.

In a throw-away spool, mounted: a Python program that locks as mail programs do (fcntl and a lock
file) and shell scripts that lock nothing and write each message in several pieces, with pauses, so
that on a plain directory their messages would be torn. Meanwhile the lock table is shown. At the
end, after unmounting, every message must be in the mailbox once and whole.

Run by scripts/run; needs no user of its own. Root lets the programs run as an ordinary user if
there is one. Exit code 0 means that all went well.
"""
# ruff: noqa: INP001 -- a script, no part of a package

from __future__ import annotations

import collections
import contextlib
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

SHELLS = 4
MESSAGES = 6
LINES = 12
LIMIT = 120.0
"""Seconds for the fight; it takes a few."""

MAILFS = (sys.executable, "-P", "-m", "mailfs")
"""-P: a clone called mailfs in the current directory must not be taken for the package."""

LOCKING_CLIENT = """
import mailbox, sys, time
path, writer, messages, lines = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
for number in range(messages):
    text = f"X-Demo: {writer} {number}\\n\\n"
    text += "".join(f"{writer} {number} line {line}\\n" for line in range(lines))
    while True:
        box = mailbox.mbox(path, create=False)
        try:
            box.lock()
            break
        except mailbox.ExternalClashError:
            box.close()
            time.sleep(0.1)
    box.add(text)
    time.sleep(0.15)
    box.flush()
    box.unlock()
    box.close()
"""

UNLOCKED_CLIENT = """
box=$1 writer=$2 messages=$3 lines=$4 number=0
while [ "$number" -lt "$messages" ]; do
    {
        printf 'From demo Thu Jan  1 00:00:00 1970\\n'
        printf 'X-Demo: %s %s\\n\\n' "$writer" "$number"
        line=0
        while [ "$line" -lt "$lines" ]; do
            printf '%s %s line %s\\n' "$writer" "$number" "$line"
            [ "$line" -ne 5 ] || sleep 0.1
            line=$((line + 1))
        done
        printf '\\n'
    } >>"$box" || exit 1
    number=$((number + 1))
done
"""


class User(NamedTuple):
    """Who the programs run as, and with which Python."""

    name: str
    uid: int
    gid: int
    python: str

    def popen(self, *command: str) -> subprocess.Popen[bytes]:
        """Start a program as this user."""
        other: dict[str, Any] = {}
        if os.geteuid() == 0 and self.uid != 0:
            other = {"user": self.uid, "group": self.gid, "extra_groups": []}
        return subprocess.Popen(command, stdin=subprocess.DEVNULL, cwd="/", **other)


def pick_user(directory: str) -> User:
    """Choose an ordinary user who can reach the directory and a Python; else whoever we are."""
    me = pwd.getpwuid(os.geteuid())
    if os.geteuid() == 0:
        people = [entry for entry in pwd.getpwall() if 1000 <= entry.pw_uid < 60000]
        with contextlib.suppress(KeyError):
            people.append(pwd.getpwnam("nobody"))
        for entry in people[:3]:
            for python in (sys.executable, "/usr/bin/python3"):
                user = User(entry.pw_name, entry.pw_uid, entry.pw_gid, python)
                code = f"import mailbox, os; os.stat({directory + '/.'!r})"
                with contextlib.suppress(OSError):
                    if (
                        user.popen("/bin/sh", "-c", f'exec "$0" -c "{code}" 2>&-', python).wait(30)
                        == 0
                    ):
                        return user
    return User(me.pw_name, me.pw_uid, me.pw_gid, sys.executable)


@contextlib.contextmanager
def mounted(spool: str, mountpoint: str, log: str) -> Iterator[None]:
    """Mount for the time of a block."""
    subprocess.run([*MAILFS, "mount", "--log", log, spool, mountpoint], check=True, timeout=60)
    try:
        yield
    finally:
        subprocess.run([*MAILFS, "umount", mountpoint], check=True, timeout=90)


def show_locks(mountpoint: str, clients: list[subprocess.Popen[bytes]]) -> None:
    """Print the lock table now and then, when there is something in it, until the clients end."""
    shown = 0
    deadline = time.monotonic() + LIMIT
    while any(client.poll() is None for client in clients):
        if time.monotonic() > deadline:
            raise SystemExit(f"demo: the programs did not end within {LIMIT:g} s")
        done = subprocess.run(
            [*MAILFS, "locks", mountpoint], check=True, timeout=30, stdout=subprocess.PIPE
        )
        table = done.stdout.decode()
        if shown < 3 and table.count("\n") > 1:
            shown += 1
            print(f"\nmailfs locks, {shown}:\n{table}", end="", flush=True)
        time.sleep(0.3)


def problems(mailbox: str, expected: dict[str, int]) -> list[str]:
    """Say what is wrong with the mailbox, if anything."""
    with open(mailbox, "rb") as file:
        content = file.read()
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    wrong = []
    for message in content.removeprefix(b"From ").split(b"\nFrom "):
        lines = message.decode("ascii", "replace").rstrip("\n").split("\n")
        header = [line for line in lines if line.startswith("X-Demo: ")]
        if len(header) != 1:
            wrong.append(f"torn: {message[:80]!r}...")
            continue
        _, writer, number = header[0].split()
        body = lines[lines.index("") + 1 :]
        if body != [f"{writer} {number} line {line}" for line in range(LINES)]:
            wrong.append(f"torn: message {number} of {writer}")
        found[writer, number] += 1
    wrong += [
        f"message {number} of {writer}: {found[writer, str(number)]} times"
        for writer, count in expected.items()
        for number in range(count)
        if found[writer, str(number)] != 1
    ]
    return wrong


def main() -> int:
    """Run the demonstration."""
    top = tempfile.mkdtemp(prefix="mailfs-demo-")
    spool, mountpoint, log = (os.path.join(top, name) for name in ("spool", "mail", "log"))
    clients: list[subprocess.Popen[bytes]] = []
    try:
        os.chmod(top, 0o755)
        os.mkdir(mountpoint)
        os.mkdir(spool)
        os.chmod(spool, 0o1777)
        user = pick_user(top)
        mailbox = os.path.join(spool, user.name)
        with open(mailbox, "wb"):
            pass
        os.chmod(mailbox, 0o660)
        os.chown(mailbox, user.uid, user.gid)

        print(f"Mounting {spool} at {mountpoint}; the programs run as {user.name}.", flush=True)
        with mounted(spool, mountpoint, log):
            path = os.path.join(mountpoint, user.name)
            tail = (str(MESSAGES), str(LINES))
            print(f"One program locks {path}, {SHELLS} shell scripts just write to it.", flush=True)
            clients.append(user.popen(user.python, "-c", LOCKING_CLIENT, path, "python", *tail))
            for index in range(SHELLS):
                name = f"shell{index}"
                clients.append(
                    user.popen("/bin/sh", "-c", UNLOCKED_CLIENT, "sh", path, name, *tail)
                )
            show_locks(mountpoint, clients)
        failed = [client.args for client in clients if client.wait(5) != 0]
        expected = {"python": MESSAGES, **{f"shell{index}": MESSAGES for index in range(SHELLS)}}
        wrong = problems(mailbox, expected)
        wrong += [f"a program failed: {command!r:.60}" for command in failed]
        if not wrong:
            print(
                f"\nAll {sum(expected.values())} messages are in the mailbox, each once and whole."
            )
            return 0
        print("\n" + "\n".join(wrong))
    except (subprocess.SubprocessError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
    finally:
        for client in clients:
            if client.poll() is None:
                client.kill()
                client.wait(30)
        with contextlib.suppress(OSError), open(log, encoding="utf-8") as file:
            lines = [line for line in file if " WARNING " in line or " ERROR " in line]
            print("".join(lines), end="", file=sys.stderr)
        clean_up(top, mountpoint)
    return 1


def clean_up(top: str, mountpoint: str) -> None:
    """Remove everything, but nothing through a mount that is still there."""
    with open("/proc/self/mountinfo", "rb") as file:
        if f" {mountpoint} ".encode() in file.read():
            print(f"demo: {mountpoint} is still mounted, {top} stays", file=sys.stderr)
            return
    shutil.rmtree(top)


if __name__ == "__main__":
    sys.exit(main())
