"""Real programs do their normal job, as an unprivileged user, on a plain spool and on mailfs
(clients.md).
"""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import time
from typing import TYPE_CHECKING

import pytest

from tests.mount.test_exclusion import free
from tests.support.mbox import message, names, verify_mbox
from tests.support.processes import PYTHON, Terminal, until
from tests.support.system import program, with_var_mail

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.mounts import Place
    from tests.support.users import User

NEW = message("new", 0)


def fill(place: Place, user: User, count: int = 3, writer: str = "old") -> list[str]:
    """Put messages into a mailbox before the program is at work; gives their names."""
    text = b"".join(message(writer, number) for number in range(count))
    place.crew.ok(["sh", "-c", 'cat >> "$0"', place.path(user)], user=user, content=text)
    # The kernel does not wait for the RELEASE that ends a shell's redirection.
    place.holds(user, names(writer, count))
    return names(writer, count)


def settled(place: Place, user: User, wanted: list[str]) -> None:
    """The mailbox holds what it should, seen from both sides, and nobody is left holding it."""
    probe = place.crew.actor(user)
    until(lambda: free(probe, place.path(user)), 2.0, "unlocked")
    place.holds(user, wanted, 2)
    assert place.seen(user) == place.content(user)
    left = {path.name for path in place.spool.iterdir()} - {".mailfs"}
    assert not [name for name in left if ".lock" in name or name.startswith((".lk", "_"))], left
    found = (place.spool / user.name).stat()
    assert (found.st_uid, found.st_nlink) == (user.uid, 1)


def owned(user: User, name: str, text: str, mode: int = 0o600) -> str:
    """A file in a user's home."""
    path = user.home / name
    path.write_text(text)
    path.chmod(mode)
    os.chown(path, user.uid, user.gid)
    return str(path)


@pytest.fixture
def user(place: Place, alice: User) -> User:
    """Whose mailbox it is; its home is as a new account's."""
    for entry in alice.home.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    return alice


# --- delivery -------------------------------------------------------------------------------------


def test_procmail(place: Place, user: User) -> None:
    wanted = fill(place, user)
    path = place.path(user)
    rc = owned(user, "rc", f"DEFAULT={path}\nVERBOSE=yes\nLOGFILE={user.home}/log\n:0:\n{path}\n")
    place.crew.ok(["procmail", "-t", rc], user=user, content=NEW)
    log = (user.home / "log").read_text()
    assert "Lock failure" not in log, log
    settled(place, user, [*wanted, "new-0"])


def test_procmail_d(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = with_var_mail(place.dir, ["procmail", "-t", "-d", user.name])
    place.crew.ok(argv, content=NEW)
    settled(place, user, [*wanted, "new-0"])


def test_procmail_d_makes_a_mailbox(place: Place, newuser: User) -> None:
    """procmail(1): a new mailbox is made by link(2) from a temporary, as root."""
    argv = with_var_mail(place.dir, ["procmail", "-t", "-d", newuser.name])
    place.crew.ok(argv, content=NEW)
    settled(place, newuser, ["new-0"])


def test_maildrop(place: Place, user: User) -> None:
    wanted = fill(place, user)
    filters = owned(user, "filter", f'to "{place.path(user)}"\n')
    text = message("new", 0, envelope=False)
    place.crew.ok(["maildrop", filters], user=user, content=text)
    settled(place, user, [*wanted, "new-0"])


def test_maildrop_d(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = with_var_mail(place.dir, ["maildrop", "-d", user.name])
    place.crew.ok(argv, content=message("new", 0, envelope=False))
    settled(place, user, [*wanted, "new-0"])


def test_lockmail(place: Place, user: User) -> None:
    wanted = fill(place, user)
    path = place.path(user)
    place.crew.ok(
        ["lockmail", "-t", "10", path, "sh", "-c", f"cat >> {path}"], user=user, content=NEW
    )
    settled(place, user, [*wanted, "new-0"])


@pytest.mark.parametrize("tool", ["dotlockfile -l -r 1", "lockfile -r 1"])
def test_a_shell_script_that_locks(place: Place, user: User, tool: str) -> None:
    wanted = fill(place, user)
    path = place.path(user)
    script = f"{tool} {path}.lock && cat >> {path} && rm -f {path}.lock"
    place.crew.ok(["sh", "-c", script], user=user, content=NEW)
    settled(place, user, [*wanted, "new-0"])


def test_dotlockfile_of_ones_own_mailbox(place: Place, user: User) -> None:
    wanted = fill(place, user)
    script = f"dotlockfile -ml && cat >> /var/mail/{user.name} && dotlockfile -mu"
    argv = with_var_mail(place.dir, ["sh", "-c", script], user)
    place.crew.ok(argv, content=NEW, env={"USER": user.name, "HOME": str(user.home)})
    settled(place, user, [*wanted, "new-0"])


def test_dotlockfile_with_a_command(place: Place, user: User) -> None:
    wanted = fill(place, user)
    path = place.path(user)
    argv = ["dotlockfile", "-l", "-r", "1", f"{path}.lock", "sh", "-c", f"cat >> {path}"]
    place.crew.ok(argv, user=user, content=NEW)
    settled(place, user, [*wanted, "new-0"])


# --- Dovecot --------------------------------------------------------------------------------------


@pytest.fixture
def dovecot(place: Place, user: User) -> str:
    """Dovecot's configuration; it wants a mailbox of mode 0600 of users that are not in group
    mail.
    """
    place.crew.ok(["chmod", "600", place.path(user)], user=user)
    return owned(
        user,
        "dovecot.conf",
        "protocols =\nlog_path = /dev/stderr\nssl = no\nmail_privileged_group =\n"
        f"mail_location = mbox:~/dmail:INBOX={place.dir}/%u\n",
    )


def dialogue(process: subprocess.Popen[bytes], *turns: tuple[str, str], limit: float = 15) -> str:
    """Send a line and wait for an answer, in turn; gives all that was answered."""
    assert process.stdin
    assert process.stdout
    text = ""
    for line, answer in turns:
        if line:
            process.stdin.write(line.encode() + b"\r\n")
            process.stdin.flush()
        start, end = len(text), time.monotonic() + limit
        while not re.search(answer, text[start:], re.MULTILINE):
            ready, _, _ = select.select([process.stdout], [], [], max(0, end - time.monotonic()))
            part = os.read(process.stdout.fileno(), 1 << 16) if ready else b""
            assert part, f"no {answer!r} after {line!r}:\n{text}"
            text += part.decode(errors="replace")
    return text


def test_dovecot_lda(place: Place, user: User, dovecot: str) -> None:
    wanted = fill(place, user)
    argv = [program("dovecot-lda"), "-c", dovecot, "-f", "bob@example.org"]
    place.crew.ok(argv, user=user, content=message("new", 0, envelope=False))
    settled(place, user, [*wanted, "new-0"])


def talker(place: Place, user: User, argv: list[str]) -> subprocess.Popen[bytes]:
    pipe = subprocess.PIPE
    return place.crew.start(argv, user=user, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT)


def test_dovecot_imap(place: Place, user: User, dovecot: str) -> None:
    wanted = fill(place, user)
    process = talker(place, user, [program("imap"), "-c", dovecot])
    dialogue(
        process,
        ("", r"PREAUTH"),
        ("a SELECT INBOX", r"3 EXISTS[\s\S]*^a OK"),
        ("b FETCH 2 BODY.PEEK[]", r"end old-1[\s\S]*^b OK"),
        (r"c STORE 1 +FLAGS (\Deleted)", r"^c OK"),
        ("d EXPUNGE", r"1 EXPUNGE[\s\S]*^d OK"),
        ("e LOGOUT", r"^e OK"),
    )
    assert process.wait(10) == 0
    settled(place, user, wanted[1:])


def test_dovecot_imap_sees_new_mail(place: Place, user: User, dovecot: str) -> None:
    wanted = fill(place, user)
    process = talker(place, user, [program("imap"), "-c", dovecot])
    dialogue(process, ("", r"PREAUTH"), ("a SELECT INBOX", r"3 EXISTS[\s\S]*^a OK"))
    place.crew.ok(["sh", "-c", 'cat >> "$0"', place.path(user)], user=user, content=NEW)
    place.holds(user, [*wanted, "new-0"])
    dialogue(
        process,
        ("b NOOP", r"4 EXISTS[\s\S]*^b OK"),
        (r"c STORE 2 +FLAGS (\Deleted)", r"^c OK"),
        ("d EXPUNGE", r"2 EXPUNGE[\s\S]*^d OK"),
        ("e LOGOUT", r"^e OK"),
    )
    assert process.wait(10) == 0
    settled(place, user, [wanted[0], wanted[2], "new-0"])


def test_dovecot_pop3(place: Place, user: User, dovecot: str) -> None:
    wanted = fill(place, user)
    process = talker(place, user, [program("pop3"), "-c", dovecot])
    dialogue(
        process,
        ("STAT", r"^\+OK 3 "),
        ("RETR 1", r"end old-0[\s\S]*^\."),
        ("DELE 1", r"^\+OK"),
        ("QUIT", r"^\+OK"),
    )
    assert process.wait(10) == 0
    settled(place, user, wanted[1:])


def drawn_until(terminal: Terminal, condition: Callable[[], object], what: str) -> None:
    """Wait for a condition, reading what the program draws meanwhile."""

    def look() -> object:
        terminal.settle(0.05)
        return condition()

    until(look, 15, what)


# --- mail readers ---------------------------------------------------------------------------------


def mutt(place: Place, user: User) -> list[str]:
    (user.home / "Mail").mkdir(exist_ok=True)
    os.chown(user.home / "Mail", user.uid, user.gid)
    setting = "set move=no delete=yes quit=yes"
    return ["mutt", "-n", "-F", "/dev/null", "-e", setting, "-f", place.path(user)]


def test_mutt_looks(place: Place, user: User) -> None:
    wanted = fill(place, user)
    mutt_ = place.crew.terminal(mutt(place, user), user=user)
    mutt_.wait_for(r"Msgs:3")
    mutt_.settle()
    mutt_.send("q")
    assert mutt_.finish() == 0
    settled(place, user, wanted)


def test_mutt_deletes(place: Place, user: User) -> None:
    wanted = fill(place, user)
    mutt_ = place.crew.terminal(mutt(place, user), user=user)
    mutt_.wait_for(r"Msgs:3")
    mutt_.settle()
    mutt_.send("d")
    mutt_.settle()
    mutt_.send("$")
    drawn_until(mutt_, lambda: len(place.content(user)) < 1300, "synced")
    mutt_.settle()
    verify_mbox(place.content(user), wanted[1:])
    place.crew.ok(["sh", "-c", 'cat >> "$0"', place.path(user)], user=user, content=NEW)
    mutt_.send("q")
    assert mutt_.finish() == 0
    settled(place, user, [*wanted[1:], "new-0"])


def test_alpine_deletes(place: Place, user: User) -> None:
    wanted = fill(place, user)
    (user.home / "mail").mkdir()
    os.chown(user.home / "mail", user.uid, user.gid)
    rc = owned(
        user,
        ".pinerc",
        f"inbox-path={place.path(user)}\n"
        "feature-list=quit-without-confirm,expunge-without-confirm,"
        "expunge-without-confirm-everywhere\nlast-version-used=6.99.99\n",
    )
    alpine = place.crew.terminal(["alpine", "-p", rc, "-i"], user=user)
    alpine.wait_for(r"(?i)3 messages|of 3|INDEX")
    alpine.settle()
    if "vulnerable" in alpine.screen:
        raise AssertionError(alpine.screen)
    alpine.send("p")
    alpine.settle(0.2)
    alpine.send("p")
    alpine.settle(0.2)
    alpine.send("d")
    alpine.settle()
    alpine.send("x")
    drawn_until(alpine, lambda: b"old-0 line" not in place.content(user), "expunged")
    alpine.settle()
    alpine.send("q")
    alpine.finish()
    settled(place, user, wanted[1:])


def test_s_nail_deletes(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = ["s-nail", "-n", "-f", place.path(user)]
    output = place.crew.ok(argv, user=user, content=b"d 1\nq\n")
    assert b"locked" not in output.lower() or b"unable" not in output.lower(), output
    settled(place, user, wanted[1:])


def test_s_nail_appends(place: Place, user: User) -> None:
    wanted = fill(place, user)
    other = user.home / "other.mbox"
    other.write_bytes(NEW)
    os.chown(other, user.uid, user.gid)
    commands = f"c 1 {place.path(user)}\nx\n".encode()
    place.crew.ok(["s-nail", "-n", "-f", str(other)], user=user, content=commands)
    settled(place, user, [*wanted, "new-0"])


def test_bsd_mailx_on_a_file(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = ["bsd-mailx", "-n", "-f", place.path(user)]
    place.crew.ok(argv, user=user, content=b"d 1\nq\n")
    settled(place, user, wanted[1:])


def test_bsd_mailx_on_the_system_mailbox(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = with_var_mail(place.dir, ["bsd-mailx", "-n"], user)
    env = {"USER": user.name, "LOGNAME": user.name, "HOME": str(user.home)}
    output = place.crew.ok(argv, content=b"d 1\nq\n", env=env, timeout=40)
    assert b"lock" not in output.lower(), output
    settled(place, user, wanted[1:])


PYTHON_MAILBOX = """
import mailbox, sys
box = mailbox.mbox(sys.argv[1], create=False)
box.lock()
box.add(mailbox.mboxMessage(sys.argv[2].encode()))
box.flush()
box.remove(0)
box.flush()
box.unlock()
assert len(box) == 3, len(box)
box.close()
"""


def test_python_mailbox(place: Place, user: User) -> None:
    wanted = fill(place, user)
    argv = [PYTHON, "-I", "-c", PYTHON_MAILBOX, place.path(user), NEW.decode()]
    place.crew.ok(argv, user=user)
    settled(place, user, [*wanted[1:], "new-0"])


# --- editors and shell ----------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["660", "600"])
def test_vim(place: Place, user: User, mode: str) -> None:
    """0600 and one's own group: vim renames the mailbox away and makes a new one."""
    fill(place, user)
    if mode == "600":
        place.crew.ok(["chown", f"{user.name}:{user.name}", place.spool / user.name])
    place.crew.ok(["chmod", mode, place.path(user)], user=user)
    vim = place.crew.terminal(["vim", "-u", "NONE", "-N", place.path(user)], user=user)
    vim.wait_for("From old@test")
    vim.settle()
    vim.send(":%s/whole/WHOLE/\r")
    vim.settle()
    vim.send(":wq\r")
    assert vim.finish() == 0
    content = place.content(user)
    assert content.count(b"WHOLE") == content.count(b" line ") > 0
    assert content.count(b"end old-") == 3
    assert place.seen(user) == content
    assert not place.mailfs or {p.name for p in place.spool.iterdir()} >= {user.name, ".mailfs"}
    assert not [p.name for p in place.spool.iterdir() if p.name.endswith(("~", ".swp", "4913"))]
    assert (place.spool / user.name).stat().st_mode & 0o777 == int(mode, 8)


def test_nano(place: Place, user: User) -> None:
    fill(place, user)
    before = place.content(user)
    nano = place.crew.terminal(["nano", place.path(user)], user=user)
    nano.wait_for("From old@test")
    nano.settle()
    nano.send("X")
    nano.settle()
    nano.send("\x0f")
    nano.settle()
    nano.send("\r")
    nano.settle()
    nano.send("\x18")
    assert nano.finish() == 0
    assert place.content(user) == b"X" + before
    assert place.seen(user) == b"X" + before


SAVES = {
    "sed-i": ("sed -i s/whole/WHOLE/ $0", True),
    "ed": (r"printf ',s/whole/WHOLE/\nw\nq\n' | ed -s $0", True),
    "cp-over": ("sed s/whole/WHOLE/ $0 > $HOME/new; cp $HOME/new $0", True),
    "cat-over": ("sed s/whole/WHOLE/ $0 > $HOME/new; cat $HOME/new > $0", True),
    "mv-over": ("sed s/whole/WHOLE/ $0 > $0.new; mv $0.new $0", True),
    "perl-i": ("perl -pi -e s/whole/WHOLE/ $0", True),
    "empty": (": > $0", False),
    "truncate": ("truncate -s 0 $0", False),
    "dd": (("sed s/whole/WHOLE/ $0 | dd of=$HOME/new status=none; dd if=$HOME/new of=$0"
           " status=none"), True),
}  # fmt: skip


@pytest.mark.parametrize("name", SAVES)
def test_saves_from_the_shell(place: Place, user: User, name: str) -> None:
    fill(place, user)
    before = place.content(user)
    script, edited = SAVES[name]
    place.crew.ok(["sh", "-ec", script, place.path(user)], user=user)
    wanted = before.replace(b"whole", b"WHOLE") if edited else b""
    until(lambda: place.content(user) == wanted, 3, "saved")
    assert place.seen(user) == wanted
    assert free(place.crew.actor(user), place.path(user))
    found = (place.spool / user.name).stat()
    assert found.st_uid == user.uid
    if place.mailfs:
        left = {path.name for path in place.spool.iterdir()}
        assert len(left) == 4, left
        assert found.st_mode & 0o777 == 0o660, "a mailbox keeps its mode (design 3.4)"
    else:
        (place.spool / user.name).chmod(0o660)
