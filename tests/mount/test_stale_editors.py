"""Programs that lock nothing save a mailbox to which mail has come since they read it (P9, design 3.4).

What was delivered meanwhile is there, once; what was deleted stays deleted; what was edited is. If somebody else has
*rewritten* the mailbox meanwhile, the save is refused, and nothing is lost on either side.
"""

from __future__ import annotations

import errno
import subprocess
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import pytest

from tests.mount.work import fill, owned
from tests.support.mbox import message, names, verify_mbox
from tests.support.processes import until

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.support.mounts import Place
    from tests.support.users import User

LINES = message("old", 0).count(b"\n")  # of the message that is deleted
THIRD = message("third", 0)


class Editor(Protocol):
    """An editor with the mailbox open: it deletes the first message and edits the others, saves, and ends."""

    def change(self) -> None:
        """Delete the first message, and make WHOLE of whole in the others."""

    def save(self) -> None:
        """Save, whatever warning there is; may be refused."""

    def end(self) -> None:
        """End without saving again."""


class Vim:
    def __init__(self, place: Place, user: User) -> None:
        self.screen = place.crew.terminal(["vim", "-u", "NONE", "-N", place.path(user)], user=user)
        self.screen.wait_for("From old@test")
        self.screen.settle(0.2)

    def change(self) -> None:
        self._type(f":1,{LINES}d|%s/whole/WHOLE/\r")

    def save(self) -> None:
        self.screen.send(":w!\r")
        self.screen.wait_for(r"really want|written|E\d+:")
        self.screen.settle(0.2)
        self._type("y\x1b")  # without effect if it did not ask

    def _type(self, keys: str) -> None:
        self.screen.send(keys)
        self.screen.settle(0.2)
        if "Press ENTER" in self.screen.screen:
            self.screen.send("\r")
        self.screen.settle(0.2)
        self.screen.raw = b""

    def end(self) -> None:
        self.screen.send(":q!\r")
        assert self.screen.finish() == 0


class Nano:
    def __init__(self, place: Place, user: User) -> None:
        self.screen = place.crew.terminal(["nano", place.path(user)], user=user)
        self.screen.wait_for("From old@test")
        self.screen.settle(0.2)

    def change(self) -> None:
        self._type("\x0b" * LINES)
        self._type("\x1cwhole\r")
        self._type("WHOLE\r")
        self._type("A")

    def save(self) -> None:
        self._type("\x0f")
        self._type("\r")
        if "changed" in self.screen.screen or "modified" in self.screen.screen:
            self._type("y")
        self.screen.raw = b""

    def _type(self, keys: str) -> None:
        self.screen.send(keys)
        self.screen.settle(0.2)

    def end(self) -> None:
        self.screen.send("\x18")
        self.screen.settle(0.2)
        self.screen.send("n")
        self.screen.finish()


class Ed:
    def __init__(self, place: Place, user: User) -> None:
        pipe = subprocess.PIPE
        self.process = place.crew.start(
            ["ed", place.path(user)], user=user, stdin=pipe, stdout=pipe, stderr=-2
        )
        self._answer()

    def _answer(self) -> bytes:
        assert self.process.stdout
        return self.process.stdout.readline()

    def _say(self, text: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def change(self) -> None:
        self._say(f"1,{LINES}d\n,s/whole/WHOLE/\n")

    def save(self) -> None:
        self._say("w\n")
        self._answer()

    def end(self) -> None:
        self._say("Q\n")
        self.process.wait(5)


class Script:
    """Reads all, and later writes all; how, says the class's code."""

    read = "text = open(m, 'rb').read()"
    write = "f = open(m, 'wb'); f.write(text); f.close()"

    def __init__(self, place: Place, user: User) -> None:
        self.actor = place.crew.actor(user)
        self.actor.do(f"m = {place.path(user)!r}")
        self.actor.do(self.read)

    def change(self) -> None:
        self.actor.do("text = text[text.find(b'\\nFrom ') + 1 :].replace(b'whole', b'WHOLE')")

    def save(self) -> None:
        self.error = self.actor.errno(self.write)

    def end(self) -> None:
        self.actor.kill()


class ReadPlus(Script):
    write = "f = open(m, 'r+b'); f.truncate(0); f.write(text); f.close()"


class Kept(Script):
    """One descriptor from reading to saving; writes over the old text, then cuts off the rest."""

    read = "f = open(m, 'r+b'); text = f.read()"
    write = "f.seek(0); f.write(text); f.truncate(); f.flush(); os.fsync(f.fileno())"


class Rename(Script):
    write = "put(m + '.new', text, mode=0o660); os.rename(m + '.new', m)"


class Backup(Script):
    """As emacs does: the mailbox is renamed to a backup, and made anew."""

    write = "os.rename(m, m + '~'); put(m, text, mode=0o660)"


EDITORS: dict[str, Callable[[Place, User], Editor]] = {
    "vim": Vim,
    "vim-renaming": Vim,
    "nano": Nano,
    "ed": Ed,
    "truncate": Script,
    "truncate-r+": ReadPlus,
    "kept-open": Kept,
    "rename": Rename,
    "backup": Backup,
}


def deliver(place: Place, user: User, number: int) -> str:
    """Deliver a message by one of several programs; gives its name."""
    how = number % 3
    text = message("new", number, envelope=how != 1)
    path = place.path(user)
    if how == 0:
        place.crew.ok(["sh", "-c", 'cat >> "$0"', path], user=user, content=text)
    elif how == 1:
        place.crew.ok(
            ["maildrop", owned(user, "filter", f'to "{path}"\n')], user=user, content=text
        )
    else:
        rc = owned(user, "rc", f"DEFAULT={path}\nLOGFILE={user.home}/log\n:0:\n{path}\n")
        place.crew.ok(["procmail", "-t", rc], user=user, content=text)
    return f"new-{number}"


def edited(place: Place, user: User, wanted: list[str], what: str) -> None:
    """The mailbox comes to hold these messages; those that were there from the start are edited."""

    def is_so() -> bool:
        content = place.content(user)
        try:
            verify_mbox(content.replace(b"WHOLE", b"whole"), wanted)
        except AssertionError:
            return False
        return b"-1 line 0 of a body that is to stay WHOLE\n" in content

    try:
        until(is_so, 3.0, what)
    except AssertionError:
        verify_mbox(place.content(user).replace(b"WHOLE", b"whole"), wanted)
        raise
    assert place.seen(user) == place.content(user)


def ready(place: Place, user: User, name: str) -> None:
    fill(place, user)
    if name == "vim-renaming":
        place.crew.ok(["chown", f"{user.name}:{user.name}", place.spool / user.name])
        place.crew.ok(["chmod", "600", place.path(user)], user=user)
    assert place.seen(user)  # it is in the page cache, if anything is


@pytest.mark.parametrize("name", EDITORS)
def test_mail_comes_while_it_is_open(
    mounting: Callable[..., Place], people: dict[str, User], name: str
) -> None:
    """None, one and three messages before the first save, one more before the second."""
    place = mounting()

    def work(user: User, count: int) -> None:
        ready(place, user, name)
        editor = EDITORS[name](place, user)
        editor.change()
        wanted = [*names("old", 3)[1:], *(deliver(place, user, n) for n in range(count))]
        editor.save()
        edited(place, user, wanted, f"{name}: saved over {count} new messages")
        wanted.append(deliver(place, user, 3))
        editor.save()
        edited(place, user, wanted, f"{name}: saved once more, after {count}")
        editor.end()
        edited(place, user, wanted, f"{name}: at the end")

    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(work, people[letter], count)
            for letter, count in zip("abc", (0, 1, 3), strict=True)
        ]
    failed = [str(job.exception()) for job in jobs if job.exception()]
    assert not failed, failed


@pytest.mark.parametrize("name", EDITORS)
def test_somebody_else_has_rewritten_it(
    mounting: Callable[..., Place], alice: User, name: str
) -> None:
    """The save is refused; the other's text stays, the editor's is in the editor still."""
    place = mounting()
    assert place.mailfs
    place.mailfs.announce("commit at last close failed: the mailbox was rewritten")
    ready(place, alice, name)
    editor = EDITORS[name](place, alice)
    editor.change()
    other = place.crew.actor(alice)
    other.do(f"m = {place.path(alice)!r}; get(m); put(m, {THIRD!r}, os.O_TRUNC)")
    place.holds(alice, ["third-0"])
    editor.save()
    assert place.seen(alice) == THIRD == place.content(alice)
    if isinstance(editor, Script):
        assert editor.error == errno.ESTALE
    editor.end()
    assert place.seen(alice) == THIRD == place.content(alice)


def test_mail_comes_while_it_is_being_read(mounting: Callable[..., Place], alice: User) -> None:
    """Between its open and its close: what the program has read of it is there once."""
    place = mounting()
    ready(place, alice, "truncate")
    actor = place.crew.actor(alice)
    actor.do(f"m = {place.path(alice)!r}; f = open(m, 'rb', 0); text = f.read(99)")
    wanted = [*names("old", 3), deliver(place, alice, 0)]
    place.holds(alice, wanted)
    actor.do("text += f.read(1 << 20); f.close()")
    wanted.append(deliver(place, alice, 3))
    place.holds(alice, wanted)
    actor.do("f = open(m, 'wb'); f.write(text); f.close()")
    place.holds(alice, wanted)


def test_sed_while_mail_comes(mounting: Callable[..., Place], alice: User) -> None:
    """sed -i has the mailbox open until it renames; it may read what comes meanwhile, or not."""
    place = mounting()
    ready(place, alice, "sed")
    wait = f"1e touch {alice.home}/ready; while [ ! -e {alice.home}/go ]; do sleep 0.02; done"
    argv = ["sed", "-i", "-e", wait, "-e", "s/whole/WHOLE/", place.path(alice)]
    (alice.home / "ready").unlink(missing_ok=True)
    (alice.home / "go").unlink(missing_ok=True)
    sed = place.crew.start(argv, user=alice)
    until((alice.home / "ready").exists, 10.0, "sed has begun to read")
    wanted = [*names("old", 3), *(deliver(place, alice, n) for n in (0, 1, 3))]
    place.holds(alice, wanted)
    (alice.home / "go").touch()
    assert sed.wait(10) == 0
    edited(place, alice, wanted, "sed -i")
