"""When what a program wrote becomes part of the mailbox: by descriptor, process and lock."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

from tests.support.processes import until

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User

SOON = 2.0
HALF, REST = b"From x@y Thu Jan  1 00:00:00 2026\n\nhalf", b" and rest\n\n"


def test_nothing_is_seen_before_the_close(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    actor = mail.crew.actor(alice)
    actor.do(f"fd = os.open({path!r}, os.O_WRONLY | os.O_APPEND); os.write(fd, {HALF!r})")
    assert mail.content(alice) == b""
    actor.do(f"os.write(fd, {REST!r})")
    assert mail.content(alice) == b""
    actor.do("os.close(fd)")
    assert mail.content(alice) == HALF + REST


def test_a_writer_sees_its_own_bytes_others_do_not(mail: Place, alice: User, bob: User) -> None:
    path = mail.path(alice)
    actor, other = mail.crew.actor(alice), mail.crew.actor(alice)
    actor.do(f"fd = os.open({path!r}, os.O_RDWR | os.O_APPEND); os.write(fd, {HALF!r})")
    assert actor.do("os.fstat(fd).st_size") == len(HALF)
    assert actor.do("os.pread(fd, 99, 0)") == HALF
    assert actor.do(f"os.stat({path!r}).st_size") == len(HALF)
    assert other.do(f"os.stat({path!r}).st_size") == 0
    assert other.do(f"open({path!r}, 'rb').read()") == b""
    actor.do("os.close(fd)")


def test_shell_redirection_with_children(mail: Place, alice: User) -> None:
    """The shell dups the descriptor, its children write to it; all of it is one message."""
    script = (
        'exec 3>>"$1"; printf "From x@y Thu Jan  1 00:00:00 2026\\n" >&3; sh -c "printf \\"\\nhalf\\" >&3"; '
        '(printf " and rest\\n\\n") >&3; read -r go; exec 3>&-; read -r go'
    )
    shell = mail.crew.start(["sh", "-c", script, "sh", mail.path(alice)], user=alice, stdin=-1)
    time.sleep(0.5)
    assert mail.content(alice) == b""
    assert shell.stdin is not None
    shell.stdin.write(b"go\n")
    shell.stdin.flush()
    until(lambda: mail.content(alice) == HALF + REST, SOON, "one message")


def test_two_descriptors_of_one_process_are_two_messages(mail: Place, alice: User) -> None:
    path = mail.path(alice)
    actor = mail.crew.actor(alice)
    actor.do(f"a = os.open({path!r}, os.O_WRONLY | os.O_APPEND); os.write(a, {HALF!r})")
    actor.do(f"b = os.open({path!r}, os.O_WRONLY | os.O_APPEND); os.write(b, {HALF!r})")
    actor.do(f"os.write(a, {REST!r}); os.close(a)")
    assert actor.do(f"open({path!r}, 'rb').read()") == HALF + REST
    actor.do(f"os.write(b, {REST!r}); os.close(b)")
    assert mail.content(alice) == (HALF + REST) * 2


def test_a_killed_writer_with_an_heir(mail: Place, alice: User) -> None:
    """Others still hold the descriptor: what was written passes on to them."""
    path = mail.path(alice)
    actor = mail.crew.actor(alice)
    actor.do(
        f"fd = os.open({path!r}, os.O_WRONLY | os.O_APPEND); os.write(fd, {HALF!r})\n"
        "r, w = os.pipe()\n"
        "child = os.fork()\n"
        f"if child == 0: os.close(w); os.read(r, 1); time.sleep(0.3); os.write(fd, {REST!r}); os._exit(0)"
    )
    actor.process.send_signal(signal.SIGKILL)
    until(lambda: mail.content(alice) == HALF + REST, SOON, "what the heir finished")


def test_a_helper_that_unlocks_for_a_shell(mail: Place, alice: User) -> None:
    """What was written under a lock is there when it is given back, whoever removes the lock file."""
    script = (
        'dotlockfile -l "$1.lock" && exec 3>>"$1" && printf "From x@y Thu Jan  1 00:00:00 2026\\n\\nhalf" >&3 &&'
        ' printf " and rest\\n\\n" >&3 && dotlockfile -u "$1.lock" && cat "$1" && exec 3>&-'
    )
    output = mail.crew.ok(["sh", "-c", script, "sh", mail.path(alice)], user=alice)
    assert mail.content(alice) == HALF + REST
    assert output == HALF + REST


def test_what_a_shell_wrote_is_there_for_its_next_command(mail: Place, alice: User) -> None:
    script = 'for i in 1 2 3 4 5 6 7 8 9 10; do echo "$i" | cat >> "$1"; tail -n 1 "$1"; done'
    output = mail.crew.ok(["sh", "-c", script, "sh", mail.path(alice)], user=alice)
    assert output.split() == [b"%d" % i for i in range(1, 11)]


def test_a_lock_file_survives_the_kernels_caches(mail: Place, alice: User, bob: User) -> None:
    """Others look the name up all the time; the holder must still find its lock and be able to remove it."""
    path = mail.path(alice)
    code = (
        "import mailbox, os, sys, time\n"
        "m = mailbox.mbox(sys.argv[1]); rounds = 0\n"
        "while rounds < 60:\n"
        "  try: m.lock()\n"
        "  except mailbox.ExternalClashError: time.sleep(0.01); continue\n"
        "  os.stat(sys.argv[1] + '.lock'); m.unlock(); rounds += 1\n"
    )
    watch = (
        "import os, sys, time\n"
        "end = time.time() + 30\n"
        "while time.time() < end and os.path.exists(sys.argv[1]):\n"
        "  os.path.exists(sys.argv[1] + '.lock'); os.listdir(os.path.dirname(sys.argv[1]))\n"
    )
    append = (
        "import os, sys, time\n"
        "end = time.time() + 30\n"
        "while time.time() < end and os.path.exists(sys.argv[1]):\n"
        "  fd = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND); os.write(fd, b'From x\\n\\n'); os.close(fd)\n"
    )
    flag = str(alice.home / "go")
    mail.crew.ok(["touch", flag], user=alice)
    mail.crew.ok(["chmod", "755", str(alice.home)], user=alice)
    others = [mail.crew.python(append, flag, path, user=alice)]
    others.append(
        mail.crew.python(watch.replace("sys.argv[1]):", "sys.argv[2]):"), path, flag, user=bob)
    )
    lockers = [mail.crew.python(code, path, user=alice) for _ in range(2)]
    try:
        mail.crew.finish(lockers, 40)
    finally:
        os.unlink(flag)
    mail.crew.finish(others, 10)


def test_an_unlocked_writer_has_the_mailbox_for_a_while(mail: Place, alice: User) -> None:
    """Others see a lock file, the real file is locked; a slow writer keeps it for some seconds only."""
    path, real = mail.path(alice), mail.spool / alice.name
    actor, other = mail.crew.actor(alice), mail.crew.actor(alice)
    actor.do(f"fd = os.open({path!r}, os.O_WRONLY | os.O_APPEND); os.write(fd, {HALF!r})")
    assert other.do(f"os.path.exists({path + '.lock'!r})")
    assert os.path.exists(f"{real}.lock")
    assert mail.crew.run(["flock", "-n", real, "true"], user=alice).returncode == 1
    until(lambda: not os.path.exists(f"{real}.lock"), 6.0, "given up")
    assert not other.do(f"os.path.exists({path + '.lock'!r})")
    assert mail.crew.run(["flock", "-n", real, "true"], user=alice).returncode == 0
    actor.do(f"os.write(fd, {REST!r}); os.close(fd)")
    assert mail.content(alice) == HALF + REST
