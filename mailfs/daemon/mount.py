"""The life of a mount: from an empty spool directory to the last commit.

1. The spool is opened (before mounting, so that mounting over the spool itself works) and claimed for this daemon.
2. Everything of the mount is put together (`Core`, `Daemon`), and what an earlier daemon left unfinished is finished
   (``recovery``).
3. The filesystem is mounted, and whoever waits for it is told.
4. It serves until it is unmounted from outside, or a signal asks for it: then what is staged is committed, the mount
   detached (lazily if it is busy), and the daemon ends.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import signal
import stat
import subprocess
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio
import trio.lowlevel

from mailfs.control.tree import ControlTree, Numbers
from mailfs.daemon.background import Background
from mailfs.daemon.config import Config, MountOptions, effective
from mailfs.daemon.core import Core, offload, opened
from mailfs.daemon.errors import Exit, MountError
from mailfs.daemon.mountinfo import mount_of
from mailfs.daemon.recovery import recover
from mailfs.daemon.watchdog import MNT_DETACH, Watchdog, umount
from mailfs.fuse import bridge
from mailfs.fuse.bridge import pyfuse3
from mailfs.fuse.context import Context, Limits
from mailfs.fuse.handles import HandleTable
from mailfs.fuse.nodes import ROOT, FileNode, NodeTable
from mailfs.fuse.operations import Operations
from mailfs.fuse.passthrough import Passthrough
from mailfs.host.processes import ProcessTable
from mailfs.locking.posix import FileLocks
from mailfs.policy.budgets import Budget
from mailfs.policy.programs import Programs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mailfs.spool.door import Door
    from mailfs.spool.private import PrivateDirectory


log = logging.getLogger(__name__)
logging.getLogger("pyfuse3").addFilter(
    # A reply fails if its client or the whole connection is gone, which is nobody's mistake.
    lambda record: "fuse_reply_* failed" not in str(record.msg)
)
T = TypeVar("T")

MAX_TASKS = 100_000
"""Workers of pyfuse3; its default of 99 is a cliff that a hundred parked opens would fall off."""

ABORTED = (errno.ENODEV, errno.ECONNABORTED, errno.ENOTCONN)
"""What reading requests ends with when the connection is gone (fuse_dev_do_read in fs/fuse/dev.c)."""

SWEEP = 60.0
"""Seconds between two looks for drafts, mailboxes and scratch files nobody needs."""


STACKED = ("overlay", "ecryptfs")
"""File systems on others, which the kernel would pass nothing through to (s_stack_depth, fuse_backing_open)."""


def run(
    config: Config,
    spool: str,
    mountpoint: str,
    options: MountOptions,
    ready: Callable[[], None],
) -> int:
    """Mount and serve until unmounted.

    Args:
        config: what is in force.
        spool: the real directory.
        mountpoint: where to mount; may be the spool.
        options: what of the mount is not configuration.
        ready: called once the mount answers.

    Returns:
        The exit code.

    Raises:
        MountError: before ``ready``; nothing is left mounted.

    """
    os.umask(0)
    _raise_file_limit()
    with opened(spool) as (door, private):
        return trio.run(partial(_serve, config, door, private, spool, mountpoint, options, ready))


def _raise_file_limit() -> None:
    """Open handles of all clients are descriptors of ours."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _serve(
    config: Config,
    door: Door,
    private: PrivateDirectory,
    spool: str,
    mountpoint: str,
    options: MountOptions,
    ready: Callable[[], None],
) -> int:
    async with trio.open_nursery() as nursery:
        refused: MountError | None
        try:
            core = Core(config, door, private, Background(nursery))
            await recover(core)
        except OSError as error:
            refused = MountError(f"the journal of {spool}: {error}", Exit.IOERR)
        else:
            daemon = Daemon(core, _passthrough(private, spool, options), spool, mountpoint)
            await nursery.start(daemon.signals)  # before mounting: a mount is never left behind
            refused = daemon.mount(options)
            if refused is None:
                await _until_unmounted(daemon, spool, mountpoint, ready, nursery)
            else:
                core.leave()
                core.close()
        nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused  # out here, as the nursery would wrap it in an exception group
    log.info("%s is unmounted from %s", spool, mountpoint)
    return Exit.OK


async def _until_unmounted(
    daemon: Daemon, spool: str, mountpoint: str, ready: Callable[[], None], nursery: trio.Nursery
) -> None:
    Background(nursery).start_soon(daemon.core.backing.run)
    Background(nursery).start_soon(daemon.housekeeping)
    nursery.start_soon(Watchdog(mountpoint).beat)
    nursery.start_soon(_tell_ready, ready)
    log.info("%s is mounted on %s", spool, mountpoint)
    try:
        await pyfuse3.main(max_tasks=MAX_TASKS)
    except* OSError as errors:
        if not all(error.errno in ABORTED for error in _leaves(errors)):
            raise
        log.info("the connection of %s was aborted", mountpoint)
    finally:
        with trio.CancelScope(shield=True):
            await daemon.core.settle()
        pyfuse3.close(unmount=True)
        daemon.core.close()


def _leaves(group: BaseExceptionGroup[OSError]) -> Iterator[OSError]:
    """The errors in an exception group, however deep."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


async def _tell_ready(ready: Callable[[], None]) -> None:
    """Say so once the loop serves: requests made from now on are answered."""
    await trio.lowlevel.checkpoint()
    ready()


class Daemon:
    """One mount and all that belongs to it."""

    def __init__(self, core: Core, passthrough: Passthrough, spool: str, mountpoint: str) -> None:
        self.core = core
        self._config = config = core.config
        self._private = private = core.private
        self._mountpoint = mountpoint
        door = core.door
        root = os.fstat(door.fileno)
        trusted = frozenset(config.policy.trusted_uids) | {0, os.geteuid()}
        policy = config.policy
        key = ("file", root.st_dev, root.st_ino)
        self.context = Context(
            door=door,
            private=private,
            nodes=NodeTable(FileNode(ROOT, key, None, b"")),
            handles=HandleTable(),
            processes=ProcessTable(),
            accounts=core.accounts,
            locks=core.locks,
            backing=core.backing,
            file_locks=FileLocks(config.locks.max_waiters, config.locks.max_waiters_per_uid),
            surroundings=core.surroundings,
            limits=Limits(
                config.waits.open,
                config.waits.flush,
                trusted,
                _directory_mode(policy.directory_mode),
            ),
            owner=os.geteuid(),
            host=os.fsencode(core.host),
            control={},
            mailbox=core.mailbox,
            mailboxes=core.mailboxes,
            scratch_files=Budget("scratch files", policy.scratch_files, trusted),
            scratch_bytes=Budget("scratch bytes", policy.scratch_bytes, trusted),
            open_files=Budget("open files", policy.open_files, trusted),
            passthrough=passthrough,
            programs=_programs(config),
        )
        context = self.context
        numbers = Numbers(
            mailboxes=lambda: len(context.mailboxes),
            sessions=lambda: sum(len(m.sessions) for m in context.mailboxes.values()),
            handles=lambda: len(context.handles),
            readers=lambda: str(context.passthrough),
        )
        limits: dict[str, int | float] = {
            "max_waiters": config.locks.max_waiters,
            "max_waiters_per_uid": config.locks.max_waiters_per_uid,
            "scratch_files": policy.scratch_files,
            "scratch_bytes": policy.scratch_bytes,
            "open_files": policy.open_files,
        }
        tree = ControlTree(core.locks, numbers, spool, mountpoint, limits, effective(config))
        context.control.update(tree.files())
        self._operations = Operations(context)

    def mount(self, options: MountOptions) -> MountError | None:
        """Mount; returns why it could not be done."""
        bridge.set_lock_handler(self._operations.locks)
        bridge.want_passthrough(self.context.passthrough.wanted)
        fuse_options = {"fsname=mailfs", "subtype=mailfs", "default_permissions"}
        fuse_options |= {"nosuid", "nodev", "noexec"}
        if options.allow_other:
            fuse_options.add("allow_other")
        try:
            pyfuse3.init(self._operations, self._mountpoint, fuse_options)
        except RuntimeError as error:
            message = (
                f"cannot mount on {self._mountpoint}: {error}; see the lines above from fusermount3"
            )
            return MountError(message, Exit.OSERR)
        if not bridge.interposed():
            pyfuse3.close(unmount=True)
            message = (
                "mailfs cannot see file locks: its bridge is not between pyfuse3 and libfuse. "
                "Another copy of libfuse is loaded first, or pyfuse3 was imported too early"
            )
            return MountError(message, Exit.SOFTWARE)
        return None

    # What runs beside the requests

    async def signals(self, *, task_status: trio.TaskStatus[None]) -> None:
        """SIGTERM and SIGINT unmount."""
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as received:
            task_status.started()
            async for number in received:
                log.info("unmounting %s: %s", self._mountpoint, signal.Signals(number).name)
                await self._unmount()

    async def housekeeping(self) -> None:
        """Commit idle drafts, forget idle mailboxes, remove old scratch files."""
        idle = self._config.sessions.idle_commit
        swept = 0.0
        while True:
            await trio.sleep(min(0.5, idle / 2))
            try:
                for mailbox in list(self.context.mailboxes.values()):
                    await mailbox.retry_stuck()
                    if mailbox.sessions:
                        mailbox.give_up_claims(self._config.locks.implicit_hold)
                        await mailbox.commit_idle(idle)
                if trio.current_time() - swept > SWEEP:
                    swept = trio.current_time()
                    self.context.drop_idle()
                    await offload(partial(self._private.sweep, self._config.policy.scratch_keep))
            except OSError as error:
                log.warning("housekeeping: %s", error)

    async def _unmount(self) -> None:
        """Unmount, and if programs keep the mount busy say so and detach it lazily."""
        try:
            await offload(partial(_unmount, self._mountpoint, lazily=False))
        except OSError as error:
            log.warning(
                "%s is busy (%s): detached; programs that use it get errors from now on",
                self._mountpoint,
                error.strerror,
            )
            await self.core.settle()
            with contextlib.suppress(OSError):
                await offload(partial(_unmount, self._mountpoint, lazily=True))
            pyfuse3.terminate()


def _unmount(mountpoint: str, *, lazily: bool) -> None:
    """Blocking; raises OSError."""
    if os.geteuid() == 0:
        umount(mountpoint, MNT_DETACH if lazily else 0)
        return
    command = ["fusermount3", "-uzq" if lazily else "-uq", mountpoint]
    done = subprocess.run(command, capture_output=True, check=False, timeout=10)
    if done.returncode != 0:
        raise OSError(16, "fusermount3 could not unmount it", mountpoint)


def _passthrough(private: PrivateDirectory, spool: str, options: MountOptions) -> Passthrough:
    """Where it is not refused from the start, the first request finds out (the kernel knows of nothing before)."""
    beneath = mount_of(os.path.realpath(spool))
    if not options.passthrough:
        return Passthrough(private.sample, "option no_passthrough")
    if os.geteuid() != 0:
        return Passthrough(private.sample, "it needs root")
    if beneath is not None and beneath.fstype in STACKED:
        return Passthrough(private.sample, f"the spool is on {beneath.fstype}")
    return Passthrough(private.sample)


def _programs(config: Config) -> Programs:
    """Paths as they are written, and as the kernel will tell them: without symbolic links (/bin, /lib)."""
    held = config.programs.session_hold
    real = {os.path.realpath(name) for name in held if name.startswith("/")}
    return Programs(session_hold=frozenset(held) | real)


def _directory_mode(text: str) -> int | None:
    return None if text == "auto" else stat.S_IMODE(int(text, 8))
