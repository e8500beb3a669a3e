"""The bridge lays passthrough into the replies to INIT, OPEN and CREATE, and into nothing else."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from tests.bridge.mounted import Mounted

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

READ = "print(json.dumps(open(box).read()))"


@pytest.fixture
def backed(tmp_path: Path) -> Iterator[Mounted]:
    """A server that asks for passthrough, and the file it may pass opens to."""
    (tmp_path / "real").write_text("the real file")
    server = Mounted(tmp_path, "--passthrough")
    try:
        server.run("os.stat(box)")  # the kernel has been told by now
        yield server
    finally:
        server.end()
    assert "ERROR" not in server.log.read_text()
    assert "Traceback" not in server.log.read_text()


def pass_through(server: Mounted, *, direct: bool) -> None:
    real = str(server.mountpoint.parent / "real")
    assert server.process.stdin is not None
    server.order("pass", file=real, direct=direct)


def test_an_open_is_read_from_its_backing_file(backed: Mounted) -> None:
    assert backed.run(READ) == ""
    pass_through(backed, direct=False)
    assert backed.run(READ) == "the real file"
    names = []
    while not backed.events.empty():
        names.append(backed.events.get()["name"])
    assert "open" in names
    assert "read" not in names


def test_with_direct_io_only_mappings_go_there(backed: Mounted) -> None:
    pass_through(backed, direct=True)
    script = """
        import mmap
        fd = os.open(box, os.O_RDWR)
        os.write(fd, b"what we have.")
        mapped = mmap.mmap(fd, 13)
        mapped[:3] = b"THE"
        mapped.flush()
        print(json.dumps([os.pread(fd, 20, 0).decode(), mapped[:].decode()]))
    """
    assert backed.run(script) == ["what we have.", "THE real file"]
    assert (backed.mountpoint.parent / "real").read_text() == "THE real file"


def test_create(backed: Mounted) -> None:
    """The open part of its reply lies behind the entry."""
    pass_through(backed, direct=False)
    script = """
        fd = os.open(os.path.dirname(box) + "/other", os.O_RDWR | os.O_CREAT, 0o600)
        print(json.dumps(os.read(fd, 20).decode()))
    """
    assert backed.run(script) == "the real file"
    backed.call("create")


def test_ways_are_not_mixed(backed: Mounted) -> None:
    """The kernel refuses it: whoever passes one open of a node through must do so with all."""
    pass_through(backed, direct=False)
    script = """
        fd = os.open(box, os.O_RDONLY)
        print("opened", flush=True)
        sys.stdin.readline()
        try:
            os.open(box, os.O_RDONLY)
        except OSError as error:
            print(error.errno, flush=True)
        print(json.dumps(os.read(fd, 20).decode()))
    """
    client = backed.client(script)
    assert client.stdout is not None
    assert client.stdout.readline() == "opened\n"
    backed.order("stay")
    output, _ = client.communicate("go\n", timeout=10)
    assert output.splitlines() == [str(errno.EIO), '"the real file"']
    assert backed.run(READ) == "", "its last handle gone, the node is as any other"


def test_a_refused_file_has_no_number(tmp_path: Path) -> None:
    """Without passthrough nothing is asked for, and everything is as it was."""
    server = Mounted(tmp_path)
    try:
        (tmp_path / "real").write_text("the real file")
        server.run("os.stat(box)")
        assert server.process.stdin is not None
        server.process.stdin.write(
            '{"do": "pass", "file": "%s", "direct": true}\n' % (tmp_path / "real")
        )
        server.process.stdin.flush()
        assert server.expect("agreed")["agreed"] is False
        assert server.expect("refused")["error"] == errno.EPERM
        server.expect("done")
        assert server.run(READ) == ""
    finally:
        server.end()
