"""The ways in which a mailbox is changed, one of each kind: what the tests of crashes and of failing disks run.

An operation runs from a mailbox with known text through known *states*, each of them a whole commit. It says how many
of these its clients were told of. Whatever goes wrong meanwhile, the mailbox must end in one of the states from that
number on, and without trouble in the last.
"""

from __future__ import annotations

import mailbox
import tempfile
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.support.mbox import message
from tests.support.processes import Actor, ActorError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tests.support.mounts import Place
    from tests.support.users import User

_MARK, _SEEN = b"Status: O \n", b"Status: RO\n"
OLD = [message("old", number).replace(b"X-Test-Id", _MARK + b"X-Test-Id", 1) for number in range(3)]
TEXT = b"".join(OLD)
NEW, NEXT = message("new", 0), message("next", 0)
LARGE = message("large", 0, 300_000)
_CLEANED = OLD[0] + OLD[2]


@dataclass
class Scene:
    """A mailbox with `TEXT` in it, and two programs of its owner's."""

    place: Place
    user: User
    actors: list[Actor]
    acknowledged: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def path(self) -> str:
        """The mailbox, as clients name it."""
        return self.place.path(self.user)

    def do(self, code: str, actor: int = 0) -> bool:
        """Let an actor do something; whether it went well."""
        self.actors[actor].start(code)
        return self.done(actor)

    def done(self, actor: int = 0) -> bool:
        """Wait for the end of what an actor was told to do; whether it went well."""
        try:
            self.actors[actor].result(20)
        except (OSError, ActorError) as error:
            self.errors.append(str(error))
            return False
        return True

    def told(self, well: bool) -> bool:
        """The clients know of one more state, if all went well."""
        self.acknowledged += well
        return well

    def run(self, argv: Sequence[str]) -> bool:
        """Run a program; whether it said that it succeeded."""
        done = self.place.crew.run(argv, user=self.user)
        if done.returncode:
            self.errors.append(done.stdout.decode(errors="replace"))
        return done.returncode == 0

    def file(self, name: str, content: bytes) -> str:
        """A file in the user's home."""
        path = self.user.home / name
        path.write_bytes(content)
        path.chmod(0o644)
        return str(path)


@dataclass(frozen=True)
class Operation:
    """One way to change a mailbox."""

    name: str
    run: Callable[[Scene], None]
    states: Sequence[bytes]
    prepare: Callable[[Scene], None] = lambda _scene: None
    ends: bool = False
    """An error ends the program; what it leaves behind is found out by its end."""
    also: Sequence[bytes] = ()
    """What may come of it when something of it fails, and all else goes well."""


def _with(path: str, flags: str, *steps: str) -> str:
    """Code of a program that opens a file, does something and closes it, whatever goes wrong; an error ends it."""
    body = "".join(f"    {step}\n" for step in steps)
    return f"fd = os.open({path!r}, {flags}, 0o660)\ntry:\n{body}finally:\n    os.close(fd)"


def _append(path: str, text: bytes, calls: int = 1) -> str:
    step = -(-len(text) // calls)
    parts = [text[at : at + step] for at in range(0, len(text), step)]
    return _with(path, "os.O_WRONLY | os.O_APPEND", *(f"os.write(fd, {part!r})" for part in parts))


def by_shell(scene: Scene) -> None:
    """The shell closes the file when nobody waits for it any more: nobody is told of anything."""
    scene.run(["sh", "-c", 'cat "$0" >> "$1"', scene.file("message", NEW), scene.path])


def append(scene: Scene) -> None:
    scene.told(scene.do(_append(scene.path, NEW)))


def pieces(scene: Scene) -> None:
    scene.told(scene.do(_append(scene.path, NEW, 4)))


def large(scene: Scene) -> None:
    scene.told(scene.do(_append(scene.path, LARGE, 5)))


def synced(scene: Scene) -> None:
    """A message on the disk, and a second one under the same lock."""
    steps = [f"os.write(fd, {NEW!r}); os.fsync(fd)"]
    take = f"fd = os.open({scene.path!r}, os.O_RDWR | os.O_APPEND); fcntl.flock(fd, fcntl.LOCK_EX)"
    try:
        if scene.do(take) and scene.told(scene.do("; ".join(steps))):
            scene.told(scene.do(f"os.write(fd, {NEXT!r}); fcntl.flock(fd, fcntl.LOCK_UN)"))
    finally:
        scene.do("os.close(fd)")


def flags(scene: Scene) -> None:
    steps = "os.read(fd, 1 << 20)", f"os.pwrite(fd, {_SEEN!r}, {TEXT.index(_MARK)})"
    scene.told(scene.do(_with(scene.path, "os.O_RDWR", *steps)))


def shrink(scene: Scene) -> None:
    steps = (
        "os.read(fd, 1 << 20)",
        f"os.pwrite(fd, {OLD[2]!r}, {len(OLD[0])})",
        f"os.ftruncate(fd, {len(_CLEANED)})",
    )
    scene.told(scene.do(_with(scene.path, "os.O_RDWR", *steps)))


def save(scene: Scene) -> None:
    """What nano does: read all, write all."""
    code = _with(scene.path, "os.O_WRONLY | os.O_TRUNC", f"os.write(fd, {(_CLEANED + NEW)!r})")
    scene.told(scene.do(f"get({scene.path!r})") and scene.do(code))


def stale_save(scene: Scene) -> None:
    """Mail comes while an editor is open."""
    code = _with(scene.path, "os.O_WRONLY | os.O_TRUNC", f"os.write(fd, {_CLEANED!r})")
    scene.do(f"get({scene.path!r})")
    if scene.told(scene.do(_append(scene.path, NEW), 1)):
        scene.told(scene.do(code))


def empty(scene: Scene) -> None:
    scene.told(scene.do(f"get({scene.path!r}); os.truncate({scene.path!r}, 0)"))


def sed(scene: Scene) -> None:
    """What makes a new file and renames it."""
    scene.told(scene.run(["sed", "-i", "s/^Status: O $/Status: RO/", scene.path]))


_FLUSH = """
import mailbox
box = mailbox.mbox({path!r}, create=False)
try:
    box.lock()
    box.remove(1)
    box.flush()
finally:
    box.close()
"""


def flush(scene: Scene) -> None:
    scene.told(scene.do(_FLUSH.format(path=scene.path)))


def _flushed() -> bytes:
    """What Python's library makes of it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(TEXT)
        file.flush()
        box = mailbox.mbox(file.name, create=False)
        del box[1]  # type: ignore[arg-type]  # typeshed takes keys for strings
        box.flush()
        box.close()
        with open(file.name, "rb") as result:
            return result.read()


_VIM = """
os.rename({path!r}, {path!r} + '~')
try:
    fd = os.open({path!r}, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.write(fd, {text!r})
    finally:
        os.close(fd)
except OSError:
    os.rename({path!r} + '~', {path!r})
    raise
os.unlink({path!r} + '~')
"""


def vim(scene: Scene) -> None:
    code = _VIM.format(path=scene.path, text=_CLEANED)
    scene.told(scene.do(f"get({scene.path!r})") and scene.do(code))


def _hold(scene: Scene) -> None:
    scene.do(f"lock('flock', {scene.path!r})", 1)


def deferred(scene: Scene) -> None:
    """Two messages while another program has the lock, which it then gives back."""
    if scene.told(scene.do(_append(scene.path, NEW))):
        scene.told(scene.do(_append(scene.path, NEXT, 3)))
    scene.do(f"unlock('flock', {scene.path!r})", 1)


def hand_over(scene: Scene) -> None:
    """What one has written is committed as it unlocks, and the next has the lock."""
    path = scene.path
    if not scene.do(f"lock('flock', {path!r})"):
        return
    scene.actors[1].start(
        f"lock('flock', {path!r}, wait=True)\ntry:\n"
        f"    os.lseek(held['flock', {path!r}], 0, 2); os.write(held['flock', {path!r}], {NEXT!r})\n"
        f"finally:\n    unlock('flock', {path!r})"
    )
    well = False
    try:
        at = f"held['flock', {path!r}]"
        well = scene.do(f"os.lseek({at}, 0, 2); os.write({at}, {NEW!r})")
    finally:
        well = scene.do(f"unlock('flock', {path!r})") and well
        scene.told(well)
        scene.told(scene.done(1) and well)


OPERATIONS = [
    Operation("by shell", by_shell, (TEXT, TEXT + NEW)),
    Operation("append", append, (TEXT, TEXT + NEW)),
    Operation("in pieces", pieces, (TEXT, TEXT + NEW)),
    Operation("large", large, (TEXT, TEXT + LARGE)),
    Operation("synced", synced, (TEXT, TEXT + NEW, TEXT + NEW + NEXT)),
    Operation("flags", flags, (TEXT, TEXT.replace(_MARK, _SEEN, 1))),
    Operation("shrink", shrink, (TEXT, _CLEANED)),
    Operation("save", save, (TEXT, _CLEANED + NEW)),
    Operation("stale save", stale_save, (TEXT, TEXT + NEW, _CLEANED + NEW)),
    Operation("truncate", empty, (TEXT, b"")),
    Operation("sed", sed, (TEXT, TEXT.replace(_MARK, _SEEN))),
    Operation("flush", flush, (TEXT, _flushed()), ends=True),
    Operation("vim", vim, (TEXT, _CLEANED), ends=True),
    Operation("deferred", deferred, (TEXT, TEXT + NEW, TEXT + NEW + NEXT), _hold),
    Operation(
        "hand-over",
        hand_over,
        (TEXT, TEXT + NEW, TEXT + NEW + NEXT),
        ends=True,
        also=(TEXT + NEXT, TEXT + NEXT + NEW),  # after an error the first is tried again later
    ),
]
