"""What a refused save contained can be had by whoever wrote it, and by nobody else."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from tests.support.processes import until

if TYPE_CHECKING:
    from tests.support.mounts import Place
    from tests.support.users import User


def write(text: str, box: str) -> str:
    return f"printf 'From a Thu Jan  1 00:00:00 1970\\n\\n{text}\\n\\n' >{box}"


def test_a_refused_save_is_there_for_its_writer(mail: Place, alice: User, bob: User) -> None:
    box = mail.path(alice)
    mail.crew.ok(["sh", "-c", write("old", box)], user=alice)
    editor = mail.crew.actor(alice)
    editor.do(f"text = open({box!r}, 'rb').read()")
    editor.do(f"file = open({box!r}, 'r+b', buffering=0)")
    editor.do("file.write(b'From edited Thu Jan  1 00:00:00 1970\\n\\nmine\\n\\n')")
    mail.crew.ok(["sh", "-c", write("other", box)], user=alice)
    until(lambda: b"other" in mail.content(alice), 5, "its last close, which it did not wait for")
    assert editor.errno("file.close()") == errno.ESTALE
    rescue = f"{mail.dir}/.mailfs/rescue"
    names = mail.crew.ok(["ls", rescue], user=alice).split()
    assert len(names) == 1
    kept = f"{rescue}/{names[0].decode()}"
    assert b"mine" in mail.crew.ok(["cat", kept], user=alice)
    assert mail.crew.ok(["ls", rescue], user=bob) == b""
    assert mail.crew.run(["cat", kept], user=bob).returncode != 0
    assert mail.crew.run(["rm", "-f", kept], user=bob).returncode in (0, 1)
    assert mail.crew.run(["sh", "-c", f"echo x >>{kept}"], user=alice).returncode != 0
    assert mail.crew.run(["touch", f"{rescue}/new"], user=alice).returncode != 0
    assert b"mine" in mail.crew.ok(["cat", kept])  # root
    mail.crew.ok(["rm", kept], user=alice)
    assert mail.crew.ok(["ls", rescue], user=alice) == b""
