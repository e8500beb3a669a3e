"""The command line: its forms, what it prints and its exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from rich.console import Console

from mailfs.cli import main as cli_main
from mailfs.cli import mount as cli_mount
from mailfs.cli.main import main
from mailfs.cli.tables import print_locks, print_status
from mailfs.cli.umount import holders
from mailfs.control.render import locks_json, status_json
from mailfs.daemon import mountinfo
from mailfs.daemon.config import Config, loads
from mailfs.daemon.errors import Exit
from tests.cli.test_render import ALICE, STATUS

if TYPE_CHECKING:
    import pathlib


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `mailfs mount` would have launched."""
    calls: list[dict[str, Any]] = []

    def launch(config: object, spool: str, mountpoint: str, options: object, **more: object) -> int:
        names = {"config": config, "spool": spool, "mountpoint": mountpoint, "options": options}
        calls.append({**names, **more})
        return 0

    monkeypatch.setattr(cli_mount, "launch", launch)
    return calls


@pytest.fixture
def no_mounts(monkeypatch: pytest.MonkeyPatch) -> list[mountinfo.Mount]:
    """Mounts as a test wants them; at first none."""
    found: list[mountinfo.Mount] = []
    monkeypatch.setattr(mountinfo, "mounts", lambda: found)
    return found


@pytest.fixture
def mounted(tmp_path: pathlib.Path, no_mounts: list[mountinfo.Mount]) -> pathlib.Path:
    """A directory with the control files of a mount."""
    control = tmp_path / ".mailfs"
    control.mkdir()
    (control / "locks.json").write_text(locks_json([ALICE]))
    (control / "status.json").write_text(status_json(STATUS))
    no_mounts.append(mountinfo.Mount(1, os.path.realpath(tmp_path), mountinfo.FSTYPE, "mailfs"))
    return tmp_path


def test_mount_mounts_over_the_spool_itself(launched: list[dict[str, Any]]) -> None:
    assert main(["mount", "/spool"]) == 0
    (call,) = launched
    assert (call["spool"], call["mountpoint"]) == ("/spool", "/spool")
    assert call["config"] == Config()
    assert not call["foreground"]
    assert call["log"] is None


def test_mount_as_mount_8_does_it(launched: list[dict[str, Any]], tmp_path: pathlib.Path) -> None:
    file = tmp_path / "mailfs.toml"
    file.write_text("[locks]\nlease = 7\nkeep_place = 8\n")
    options = f"rw,dev,suid,_netdev,x-systemd.automount,config={file},locks.lease=9,noallow_other"
    assert main(["/spool", "/mnt", "-o", options]) == 0
    (call,) = launched
    assert (call["spool"], call["mountpoint"]) == ("/spool", "/mnt")
    assert (call["config"].locks.lease, call["config"].locks.keep_place) == (9.0, 8.0)
    assert not call["options"].allow_other


def test_a_relative_directory_is_a_spool_too(
    launched: list[dict[str, Any]], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "spool").mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(["spool", "mnt"]) == 0
    assert launched[0]["spool"] == "spool"
    assert main(["nothing", "mnt"]) == Exit.USAGE


def test_the_flags_of_mount(launched: list[dict[str, Any]]) -> None:
    assert main(["mount", "--foreground", "--log", "/log", "-o", "rw", "/a", "/b"]) == 0
    assert launched[0]["foreground"]
    assert launched[0]["log"] == "/log"


def test_print_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["mount", "--print-config", "-o", "locks.lease=9"]) == 0
    assert loads(capsys.readouterr().out, "printed").locks.lease == 9.0


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], Exit.USAGE, "Usage: mailfs"),
        (["mount"], Exit.USAGE, "which SPOOL?"),
        (["mount", "--wrong"], Exit.USAGE, "No such option"),
        (["statsu"], Exit.USAGE, "Did you mean 'status'?"),
        (["mount", "-o", "wrong", "/a"], Exit.USAGE, "mailfs: -o wrong: no such option"),
        (["mount", "-o", "locks.lease=x", "/a"], Exit.USAGE, "[locks] lease: must be seconds"),
        (["mount", "--config", "/nonexistent", "/a"], Exit.CONFIG, "No such file or directory"),
        (["mount", "/nonexistent\n"], Exit.NOINPUT, r"/nonexistent\x0a: the spool does not exist"),
        (["umount", "/nonexistent"], Exit.NOINPUT, "no mailfs is mounted here"),
        (["locks"], Exit.NOINPUT, "no mailfs is mounted; `mailfs mount SPOOL` mounts one"),
        (["status", "/nonexistent"], Exit.NOINPUT, "no mailfs is mounted here"),
    ],
)
def test_failures_have_a_code_and_a_message(
    no_mounts: list[mountinfo.Mount],
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert main(arguments) == code
    assert message in capsys.readouterr().err.replace(r"\x5cx0a", r"\x0a")


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert main(["umount", "--help"]) == 0
    assert "mailfs 0." in capsys.readouterr().out


def test_interrupted_is_what_a_shell_expects(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_arguments: object, **_more: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_mount, "launch", interrupted)
    assert main(["mount", "/spool"]) == 130


def test_locks_in_a_pipe(mounted: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["locks"]) == 0
    header, line = capsys.readouterr().out.splitlines()
    assert header.split()[0] == "MAILBOX"
    assert line.split()[0] == "alice"


def test_locks_and_status_as_json(
    mounted: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["locks", "--json", str(mounted)]) == 0
    assert json.loads(capsys.readouterr().out)["locks"][0]["mailbox"] == "alice"
    assert main(["status", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["pid"] == 12


def test_status_in_a_pipe(mounted: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", str(mounted)]) == 0
    assert "waiting: 3" in capsys.readouterr().out.splitlines()


def test_control_files_that_are_none(
    mounted: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (mounted / ".mailfs" / "locks.json").write_text("{}")
    assert main(["locks"]) == Exit.DATAERR
    assert "not what this version of mailfs expects" in capsys.readouterr().err
    (mounted / ".mailfs" / "locks.json").unlink()
    assert main(["locks"]) == Exit.NOPERM


def test_several_mounts_must_be_named(
    mounted: pathlib.Path,
    no_mounts: list[mountinfo.Mount],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    no_mounts.append(mountinfo.Mount(2, "/b", mountinfo.FSTYPE, "mailfs"))
    assert main(["locks"]) == Exit.USAGE
    assert "name one of" in capsys.readouterr().err
    monkeypatch.setattr("mailfs.cli.where.DEFAULT", str(mounted))
    assert main(["locks"]) == 0


def test_a_closed_pipe_is_no_traceback(tmp_path: pathlib.Path) -> None:
    command = f"{sys.executable} -m mailfs mount --print-config | head -n 1"
    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, timeout=30, check=True)
    assert done.stderr == b""


def test_tables_take_names_as_they_are() -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    print_locks([msgspec.structs.replace(ALICE, mailbox="[red]x[/]\x1b[31m")], console)
    print_locks([], console)
    print_status(STATUS, console)
    text = console.export_text()
    assert r"[red]x[/]\x1b[31m" in text
    assert "No mailbox is locked" in text
    assert "/var/mail" in text


def test_who_keeps_a_mount_busy_is_found(tmp_path: pathlib.Path) -> None:
    inside = tmp_path / "inside\n"
    inside.mkdir()
    beside = tmp_path.parent / (tmp_path.name + "-beside")
    beside.mkdir()
    commands = []
    try:
        commands = [
            subprocess.Popen(["sleep", "30"], cwd=directory) for directory in (inside, beside)
        ]
        with open(inside / "file", "wb") as file:
            commands.append(subprocess.Popen(["sleep", "30"], cwd="/", stdin=file))
        found = {holder.pid: holder for holder in holders(os.path.realpath(tmp_path), set())}
        assert set(found) == {commands[0].pid, commands[2].pid}
        assert str(found[commands[0].pid]) == (
            f"pid {commands[0].pid} (sleep, uid {os.getuid()}):"
            f" {os.path.realpath(tmp_path)}/inside\\x0a"
        )
        assert found[commands[2].pid].path.endswith("/file")
        assert not set(holders(os.path.realpath(tmp_path), set(found)))
    finally:
        for command in commands:
            command.kill()
            command.wait(10)
        beside.rmdir()


def test_messages_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    cli_main.complain("two\nlines")
    assert capsys.readouterr().err == "mailfs: two\\x0alines\n"
