"""A file system of one file, to see what the bridge sees.

It tells what happens on its standard output, a JSON object a line, and takes orders on its
standard input:

    {"do": "park", "ops": ["flock", "open"]}   let these wait from now on (locks if willing to)
    {"do": "refuse", "error": 11}              answer the other lock requests with this
    {"do": "answer", "n": 3, "error": 0}       answer a parked lock request
    {"do": "lock", "lock": [1, 5, 9, 42]}      what getlk answers from now on
    {"do": "drop"}                             forget all parked lock requests
    {"do": "resume"}                           let all parked opens, reads and flushes go on
    {"do": "pass", "file": F, "direct": false}   pass opens from now on through to a file
    {"do": "stay"}                             give back its backing id, and pass no opens any more
    {"do": "hold"}                             read, but do not answer, for a second: block the loop
    {"do": "stop"}                             unmount and end, answering nothing that is parked
"""
# ruff: noqa: ARG002, SIM905

from __future__ import annotations

import argparse
import errno
import gc
import json
import logging
import os
import signal
import stat
import sys
import threading
import time
from typing import Any

import trio

from mailfs.fuse import bridge
from mailfs.fuse.bridge import Caller, LockRequest, pyfuse3

ROOT = pyfuse3.ROOT_INODE
BOX = pyfuse3.InodeT(ROOT + 1)
NAME = b"box"
CALLER_FIELDS = "unique name pid uid gid ino fh flags lock_owner flush flock_release".split()
LOCK_FIELDS = "unique name pid uid gid ino fh owner wait type start end lock_pid".split()


def tell(event: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **more}) + "\n")
    sys.stdout.flush()


def told(caller: Caller) -> dict[str, Any]:
    return {field: getattr(caller, field) for field in CALLER_FIELDS}


class Locks:
    """Answers 0 unless told otherwise; interrupted requests are answered EINTR."""

    def __init__(self) -> None:
        self.park: set[str] = set()
        self.parked: dict[int, LockRequest] = {}
        self.error = 0
        self.lock = [2, 0, 2**63 - 1, 0]

    def getlk(self, request: LockRequest) -> None:
        self.tell(request)
        request.reply_lock(*self.lock)

    def setlk(self, request: LockRequest) -> None:
        self.decide(request)

    def flock(self, request: LockRequest) -> None:
        self.decide(request)

    def tell(self, request: LockRequest) -> None:
        tell("lock", **{field: getattr(request, field) for field in LOCK_FIELDS})

    def decide(self, request: LockRequest) -> None:
        self.tell(request)
        if "fail" in self.park:
            raise ZeroDivisionError
        if request.wait and request.name in self.park:
            self.parked[request.unique] = request
            request.on_interrupt(lambda: self.interrupted(request))
            return
        request.reply(self.error)
        try:
            request.reply(0)
        except RuntimeError:
            pass
        else:
            tell("answered twice")

    def interrupted(self, request: LockRequest) -> None:
        tell("interrupted", unique=request.unique, fired=request.interrupted)
        del self.parked[request.unique]
        request.reply(errno.EINTR)


class Box(pyfuse3.Operations):  # type: ignore[misc, unused-ignore]
    """The file system."""

    def __init__(self, locks: Locks, quiet: bool) -> None:
        super().__init__()
        self.locks = locks
        self.quiet = quiet
        self.resume = trio.Event()
        self.data = bytearray()
        self.last_fh = 10
        self.backing = 0
        self.direct = True

    def note(self) -> Caller:
        caller = bridge.caller()
        if not self.quiet:
            tell("call", **told(caller))
        return caller

    async def park(self, name: str) -> None:
        """Wait, if told to, and raise EINTR if the client gives up."""
        if name not in self.locks.park:
            return
        watch = bridge.watch_interrupt()
        assert watch is bridge.watch_interrupt()
        with trio.CancelScope() as scope:
            watch.on_interrupt(scope.cancel)
            tell("parked", unique=watch.unique, name=name)
            await self.resume.wait()
        tell("unparked", unique=watch.unique, name=name, fired=watch.fired)
        if watch.fired:
            raise pyfuse3.FUSEError(errno.EINTR)

    def attributes(self, ino: int) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(ino)
        entry.st_mode = pyfuse3.ModeT(stat.S_IFDIR | 0o777 if ino == ROOT else stat.S_IFREG | 0o666)
        entry.st_size = 0 if ino == ROOT else len(self.data)
        entry.attr_timeout = 0
        entry.entry_timeout = 0
        return entry

    def handle(self) -> pyfuse3.FileInfo:
        self.last_fh += 1
        if self.backing:
            bridge.pass_through(self.last_fh, self.backing)
        fh = pyfuse3.FileHandleT(self.last_fh)
        return pyfuse3.FileInfo(fh=fh, direct_io=self.direct, keep_cache=False)

    async def lookup(self, parent_inode: Any, name: bytes, ctx: Any) -> pyfuse3.EntryAttributes:
        self.note()
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.attributes(BOX)

    async def getattr(self, inode: int, ctx: Any) -> pyfuse3.EntryAttributes:
        caller = self.note()
        assert (caller.pid, caller.uid, caller.gid) == (ctx.pid, ctx.uid, ctx.gid)
        return self.attributes(inode)

    async def setattr(
        self, inode: int, attr: Any, fields: Any, fh: int | None, ctx: Any
    ) -> pyfuse3.EntryAttributes:
        assert self.note().fh == fh
        if fields.update_size:
            self.data = self.data[: attr.st_size].ljust(attr.st_size, b"\0")
        return self.attributes(inode)

    async def open(self, inode: Any, flags: Any, ctx: Any) -> pyfuse3.FileInfo:
        assert self.note().flags == flags
        await self.park("open")
        return self.handle()

    async def create(self, parent_inode: Any, name: Any, mode: Any, flags: Any, ctx: Any) -> Any:
        self.note()
        return self.handle(), self.attributes(BOX)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        assert self.note().fh == fh
        await self.park("read")
        return bytes(self.data[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        assert self.note().fh == fh
        try:
            bridge.watch_interrupt()
        except RuntimeError:
            pass
        else:
            tell("a write may wait")
        self.data.extend(bytes(max(0, off - len(self.data))))
        self.data[off : off + len(buf)] = buf
        return len(buf)

    async def flush(self, fh: int) -> None:
        assert self.note().fh == fh
        await self.park("flush")

    async def release(self, fh: int) -> None:
        assert self.note().fh == fh

    async def fsync(self, fh: int, datasync: bool) -> None:
        assert self.note().fh == fh

    async def opendir(self, inode: Any, ctx: Any) -> Any:
        self.note()
        return inode

    async def readdir(self, fh: int, start_id: int, token: Any) -> None:
        assert self.note().fh == fh
        if start_id == 0:
            pyfuse3.readdir_reply(token, NAME, self.attributes(BOX), 1)

    async def releasedir(self, fh: int) -> None:
        assert self.note().fh == fh

    async def statfs(self, ctx: Any) -> pyfuse3.StatvfsData:
        self.note()
        return pyfuse3.StatvfsData()

    async def getxattr(self, inode: Any, name: Any, ctx: Any) -> bytes:
        # After an await the caller must be right or refused, whatever came between.
        before = self.note()
        await trio.sleep(0.05)
        try:
            after = bridge.caller()
        except RuntimeError:
            tell("refused")
        else:
            tell("kept", same=told(before) == told(after))
        raise pyfuse3.FUSEError(errno.ENODATA)


def obey(order: dict[str, Any], locks: Locks, box: Box) -> None:
    """Carry out an order, in trio's thread."""
    match order["do"]:
        case "park":
            locks.park = set(order["ops"])
        case "refuse":
            locks.error = order["error"]
        case "lock":
            locks.lock = order["lock"]
        case "answer":
            locks.parked.pop(order["n"]).reply(order["error"])
        case "drop":
            locks.parked.clear()
            gc.collect()
        case "resume":
            box.resume.set()
            box.resume = trio.Event()
        case "pass":
            tell("agreed", agreed=bridge.passthrough_agreed())
            if not box.backing:
                fd = os.open(order["file"], os.O_RDONLY)
                try:
                    box.backing = bridge.open_backing(fd)
                except OSError as error:
                    tell("refused", error=error.errno)
                os.close(fd)
            box.direct = order["direct"]
        case "stay":
            bridge.close_backing(box.backing)
            box.backing, box.direct = 0, True
        case "hold":
            time.sleep(1)
        case "stop":
            pyfuse3.terminate()
    tell("done", do=order["do"])


async def serve(locks: Locks, box: Box) -> None:
    token = trio.lowlevel.current_trio_token()

    def listen() -> None:
        for line in sys.stdin:
            try:
                token.run_sync_soon(obey, json.loads(line), locks, box)
            except trio.RunFinishedError:
                return

    threading.Thread(target=listen, daemon=True).start()
    tell("ready", interposed=bridge.interposed())
    await pyfuse3.main(max_tasks=2000)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mountpoint")
    parser.add_argument("--no-locks", action="store_true")
    parser.add_argument("--passthrough", action="store_true")
    parser.add_argument("--quiet", action="store_true")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    locks = Locks()
    box = Box(locks, arguments.quiet)
    assert not bridge.interposed()
    try:
        bridge.caller()
    except RuntimeError:
        pass
    else:
        tell("a caller from nowhere")
    if not arguments.no_locks:
        bridge.set_lock_handler(locks)
    try:
        bridge.open_backing(0)
    except OSError:
        pass
    else:
        tell("a backing file of nothing")
    bridge.want_passthrough(arguments.passthrough)
    pyfuse3.init(box, arguments.mountpoint, {"fsname=bridgetest", "default_permissions"})
    trio.run(serve, locks, box)
    parked = list(locks.parked.values())
    pyfuse3.close()
    for request in parked[:1]:
        request.reply(0)  # the session is gone: nothing may happen
    locks.parked.clear()
    del parked
    gc.collect()
    tell("closed")
    os._exit(0)  # the listening thread waits for its input


if __name__ == "__main__":
    main()
