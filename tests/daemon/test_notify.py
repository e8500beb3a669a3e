"""What the service manager and the log's readers are told."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

import pytest

from mailfs.daemon import logs
from mailfs.daemon.notify import notify, watchdog_interval

if TYPE_CHECKING:
    import pathlib
    from collections.abc import Iterator


@pytest.mark.parametrize("abstract", [False, True])
def test_the_manager_is_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, *, abstract: bool
) -> None:
    name = f"@mailfs-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0") if abstract else name)
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        notify("READY=1")
        assert manager.recv(100) == b"READY=1"
    notify("STOPPING=1")  # to nobody: nothing happens


def test_without_a_manager_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    notify("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", "nonsense")
    notify("READY=1")


@pytest.mark.parametrize(
    ("usec", "pid", "interval"),
    [
        ("30000000", None, 15.0),
        ("30000000", "1", None),
        ("0", None, None),
        ("x", None, None),
        (None, None, None),
    ],
)
def test_the_watchdog_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None, interval: float | None
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    assert watchdog_interval() == interval


@pytest.fixture
def root_logger() -> Iterator[logging.Logger]:
    """Put the root logger back as it was."""
    root = logging.getLogger()
    before = root.handlers[:], root.level, logging.raiseExceptions
    yield root
    root.handlers[:], _, logging.raiseExceptions = before
    root.setLevel(before[1])


def test_journald_gets_priorities(
    root_logger: logging.Logger,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    status = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    logs.set_up("info", None, foreground=True)
    logging.getLogger("mailfs.x").warning("two\nlines")
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")  # a stderr that was redirected
    logs.set_up("info", None, foreground=True)
    logging.getLogger("mailfs.x").info("plain")
    assert capfd.readouterr().err.splitlines() == [r"<4>two\x0alines", "mailfs: INFO: plain"]


def test_syslog_gets_one_line(
    root_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    monkeypatch.setattr(logs, "SYSLOG_SOCKET", str(tmp_path / "log"))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(logs.SYSLOG_SOCKET)
        syslog.settimeout(5)
        logs.set_up("warning", None, foreground=False)
        logging.getLogger("mailfs.x").warning("say %s", "\x1b")
        # <2*8+4> is facility mail, priority warning
        assert syslog.recv(1000) == f"<20>mailfs[{os.getpid()}]: say \\x1b\0".encode()
    for handler in root_logger.handlers:
        handler.close()
