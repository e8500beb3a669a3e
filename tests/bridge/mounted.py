"""A server.py that runs, as a test sees it: what it tells, its orders, and its mount's users."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
PATIENCE = 10.0  # seconds; what takes longer has failed
PRELUDE = """\
import ctypes, fcntl, json, os, signal, struct, sys, threading, time
box = sys.argv[1]
def lock(fd, command, type, start=0, length=0):
    answer = fcntl.fcntl(fd, command, struct.pack("hhqqi4x", type, 0, start, length, 0))
    return struct.unpack("hhqqi4x", answer)
"""

Event = dict[str, Any]


def detach(mountpoint: Path) -> None:
    """Unmount whatever is there, with or without a daemon behind it."""
    subprocess.run(
        ["fusermount3", "-u", "-z", str(mountpoint)], check=False, capture_output=True, timeout=10
    )


class Mounted:
    """A mounted server."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.mountpoint = directory / "mnt"
        self.mountpoint.mkdir()
        self.log = directory / "log"
        self.events: queue.Queue[Event] = queue.Queue()
        self.clients: list[subprocess.Popen[str]] = []
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.bridge.server", *options, str(self.mountpoint)],
                cwd=REPOSITORY,
                # Memory that is freed is overwritten, so that using it after that is noticed.
                env={**os.environ, "PYTHONMALLOC": "malloc", "MALLOC_PERTURB_": "165"},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        self.reader = threading.Thread(target=self._read)
        self.reader.start()
        try:
            assert self.expect("ready")["interposed"] is True
        except BaseException:
            self.end()
            raise

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.events.put(json.loads(line))
        self.events.put({"event": "end"})

    def expect(self, event: str, patience: float = PATIENCE, **fields: Any) -> Event:
        """The next event of this kind with these fields; others before it are dropped."""
        deadline = time.monotonic() + patience
        seen = []
        while True:
            try:
                found = self.events.get(timeout=max(0, deadline - time.monotonic()))
            except queue.Empty:
                found = {"event": "end"}
            if found["event"] == event and found.items() >= fields.items():
                return found
            seen.append(found)
            assert found["event"] != "end", (
                f"no {event} {fields}; {seen[-8:]}\n{self.log.read_text()}"
            )

    def call(self, name: str, **fields: Any) -> Event:
        """The next call of an operation."""
        return self.expect("call", name=name, **fields)

    def order(self, do: str, **more: Any) -> None:
        """Give an order and wait until it is carried out. Drops the events before."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"do": do, **more}) + "\n")
        self.process.stdin.flush()
        self.expect("done", do=do)

    def client(self, script: str) -> subprocess.Popen[str]:
        """Start a program that has the file's name in ``box`` and ``lock`` for fcntl."""
        client = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + textwrap.dedent(script), str(self.mountpoint / "box")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.clients.append(client)
        return client

    def run(self, script: str) -> Any:
        """Run a client to its end and give the JSON it printed last."""
        output, _ = self.client(script).communicate(timeout=PATIENCE)
        assert self.clients[-1].returncode == 0
        return json.loads(output.splitlines()[-1]) if output else None

    def stop(self) -> None:
        """Have the server unmount and end by itself, and see that it ends well."""
        self.order("stop")
        self.expect("closed")
        assert self.process.wait(PATIENCE) == 0

    def end(self) -> None:
        """Leave nothing behind, whatever the state of things."""
        detach(self.mountpoint)
        self.process.kill()
        self.process.wait()
        for client in self.clients:
            client.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                client.communicate(timeout=PATIENCE)
        self.reader.join(PATIENCE)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
