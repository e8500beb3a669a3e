"""The order of loading decides whether the bridge works; wrong orders are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def python(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


def test_pyfuse3_first_is_refused() -> None:
    result = python("import pyfuse3, mailfs.fuse.bridge")
    assert result.returncode == 1
    assert "BridgeError: pyfuse3 was imported before mailfs.fuse.bridge" in result.stderr


def test_failed_interposition_is_seen(tmp_path: Path) -> None:
    """Whoever goes around the bridge's door has a session that is not ours."""
    (tmp_path / "mnt").mkdir()
    result = python(f"""
import pyfuse3
from mailfs.fuse import _bridge
pyfuse3.init(pyfuse3.Operations(), {str(tmp_path / "mnt")!r})
print(_bridge.interposed())
pyfuse3.close()
""")
    assert result.stdout == "False\n", result.stderr


def test_flags_of_dlopen_are_restored() -> None:
    result = python("""
import sys
before = sys.getdlopenflags()
import mailfs.fuse.bridge
assert sys.getdlopenflags() == before
""")
    assert result.returncode == 0, result.stderr


def test_outside_a_request() -> None:
    result = python("""
import trio
from mailfs.fuse import bridge
async def main():
    for function in bridge.caller, bridge.watch_interrupt:
        try:
            function()
        except RuntimeError:
            continue
        raise SystemExit(1)
trio.run(main)
for function in bridge.caller, bridge.watch_interrupt:
    try:
        function()
    except RuntimeError:
        continue
    raise SystemExit(1)
caller = bridge.Caller("open", pid=3, flags=2, fh=7)
assert (caller.name, caller.pid, caller.fh, caller.uid) == ("open", 3, 7, 0)
try:
    caller.pid = 4
except AttributeError:
    pass
else:
    raise SystemExit(1)
""")
    assert result.returncode == 0, result.stderr
