"""The life of a mount: from an empty spool directory to the last commit.

1. The spool is opened (before mounting, so that mounting over the spool itself works) and claimed for this daemon.
2. Everything of the mount is put together (`Daemon`).
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
import socket
import stat
import subprocess
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import trio
import trio.lowlevel

from mailfs.control.tree import ControlTree, Numbers
from mailfs.daemon.config import Config, MountOptions, effective
from mailfs.daemon.errors import Exit, MountError
from mailfs.daemon.watchdog import MNT_DETACH, Watchdog, umount
from mailfs.fuse import bridge
from mailfs.fuse.bridge import pyfuse3
from mailfs.fuse.context import Context, Limits
from mailfs.fuse.handles import HandleTable
from mailfs.fuse.nodes import ROOT, FileNode, NodeTable
from mailfs.fuse.operations import Operations
from mailfs.host.accounts import Accounts
from mailfs.host.processes import ProcessTable
from mailfs.locking.posix import FileLocks
from mailfs.locking.settings import LockEvent, LockSettings
from mailfs.locking.table import LockTable
from mailfs.policy.budgets import Budget
from mailfs.policy.programs import Programs
from mailfs.policy.rights import Credentials, may_write
from mailfs.sessions.surroundings import Surroundings
from mailfs.spool import dotlock
from mailfs.spool.backing_lock import BackingSettings
from mailfs.spool.backing_locks import BackingLocks
from mailfs.spool.door import Door, Path
from mailfs.spool.private import PrivateDirectory, SpoolBusyError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from mailfs.locking.outside import Outside

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
    with contextlib.ExitStack() as stack:
        try:
            door = stack.enter_context(Door.at(spool))
            private = PrivateDirectory(door)
        except SpoolBusyError as busy:
            message = (
                f"{spool} is served by another mailfs (pid {busy.pid}): unmount it first; "
                "if it was detached while busy, it ends when its last user closes its files"
            )
            raise MountError(message, Exit.TEMPFAIL) from None
        except OSError as error:
            message = (
                f"cannot use {spool}: {error.strerror}; the daemon must be able to write there"
            )
            raise MountError(message, Exit.NOPERM) from error
        stack.callback(private.close)
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
        daemon = Daemon(config, door, private, spool, mountpoint, Background(nursery))
        await nursery.start(daemon.signals)  # before mounting: a mount is never left behind
        refused = daemon.mount(options)
        if refused is None:
            await _until_unmounted(daemon, spool, mountpoint, ready, nursery)
        nursery.cancel_scope.cancel()
    if refused is not None:
        raise refused  # out here, as the nursery would wrap it in an exception group
    log.info("%s is unmounted from %s", spool, mountpoint)
    return Exit.OK


async def _until_unmounted(
    daemon: Daemon, spool: str, mountpoint: str, ready: Callable[[], None], nursery: trio.Nursery
) -> None:
    Background(nursery).start_soon(daemon.backing.run)
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
            await daemon.settle()
        pyfuse3.close(unmount=True)
        daemon.backing.close()


def _leaves(group: BaseExceptionGroup[OSError]) -> Iterator[OSError]:
    """The errors in an exception group, however deep."""
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


class Background:
    """Starts tasks in a nursery whose failure, a bug of ours, is logged and ends nothing else.

    Args:
        nursery: where they run.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(
        self, async_fn: Callable[..., Awaitable[object]], /, *args: object, name: object = None
    ) -> None:
        """See `trio.Nursery.start_soon`."""
        self._nursery.start_soon(self._run, async_fn, args, name=name or async_fn)

    async def _run(
        self, async_fn: Callable[..., Awaitable[object]], args: tuple[object, ...]
    ) -> None:
        try:
            await async_fn(*args)
        except Exception:
            log.exception("a background task failed: %r", async_fn)


async def _tell_ready(ready: Callable[[], None]) -> None:
    """Say so once the loop serves: requests made from now on are answered."""
    await trio.lowlevel.checkpoint()
    ready()


class Daemon:
    """One mount and all that belongs to it."""

    def __init__(
        self,
        config: Config,
        door: Door,
        private: PrivateDirectory,
        spool: str,
        mountpoint: str,
        nursery: Background,
    ) -> None:
        self._config = config
        self._private = private
        self._mountpoint = mountpoint
        root = os.fstat(door.fileno)
        host = socket.gethostname()
        backing = config.backing
        self.backing = BackingLocks(
            door,
            BackingSettings(
                dotlock=backing.dotlock,
                ofd=backing.ofd,
                flock=backing.flock,
                stale_after=backing.stale_after,
                touch_every=backing.touch_every,
                host=host,
            ),
            self._counts,
        )
        dotlock.sweep(door, (), host)
        if private.earlier_pid:
            dotlock.sweep_locks(door, (), host, private.earlier_pid)
        locks = LockTable(nursery, _lock_settings(config), self._outside, self._lock_event)
        around = Surroundings(
            nursery=nursery,
            offload=_offload,
            spill=private.spill,
            spill_limit=config.sessions.spill,
            rescue=private.rescue,
            note=_note,
        )
        trusted = frozenset(config.policy.trusted_uids) | {0, os.geteuid()}
        policy = config.policy
        key = ("file", root.st_dev, root.st_ino)
        self.context = Context(
            door=door,
            private=private,
            nodes=NodeTable(FileNode(ROOT, key, None, b"")),
            handles=HandleTable(),
            processes=ProcessTable(),
            accounts=Accounts(),
            locks=locks,
            backing=self.backing,
            file_locks=FileLocks(config.locks.max_waiters, config.locks.max_waiters_per_uid),
            surroundings=around,
            limits=Limits(
                config.waits.open,
                config.waits.flush,
                trusted,
                _directory_mode(policy.directory_mode),
            ),
            owner=os.geteuid(),
            host=os.fsencode(host),
            control={},
            scratch_files=Budget("scratch files", policy.scratch_files, trusted),
            scratch_bytes=Budget("scratch bytes", policy.scratch_bytes, trusted),
            open_files=Budget("open files", policy.open_files, trusted),
            programs=_programs(config),
        )
        context = self.context
        numbers = Numbers(
            mailboxes=lambda: len(context.mailboxes),
            sessions=lambda: sum(len(m.sessions) for m in context.mailboxes.values()),
            handles=lambda: len(context.handles),
        )
        limits: dict[str, int | float] = {
            "max_waiters": config.locks.max_waiters,
            "max_waiters_per_uid": config.locks.max_waiters_per_uid,
            "scratch_files": policy.scratch_files,
            "scratch_bytes": policy.scratch_bytes,
            "open_files": policy.open_files,
        }
        tree = ControlTree(locks, numbers, spool, mountpoint, limits, effective(config))
        context.control.update(tree.files())
        self._operations = Operations(context)

    def mount(self, options: MountOptions) -> MountError | None:
        """Mount; returns why it could not be done."""
        bridge.set_lock_handler(self._operations.locks)
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
                    if mailbox.sessions:
                        mailbox.give_up_claims(self._config.locks.implicit_hold)
                        await mailbox.commit_idle(idle)
                if trio.current_time() - swept > SWEEP:
                    swept = trio.current_time()
                    self.context.drop_idle()
                    await _offload(partial(self._private.sweep, self._config.policy.scratch_keep))
            except OSError as error:
                log.warning("housekeeping: %s", error)

    async def settle(self) -> None:
        """Commit what is staged: nobody will write to it any more."""
        for mailbox in list(self.context.mailboxes.values()):
            await mailbox.settle()

    async def _unmount(self) -> None:
        """Unmount, and if programs keep the mount busy say so and detach it lazily."""
        try:
            await _offload(partial(_unmount, self._mountpoint, lazily=False))
        except OSError as error:
            log.warning(
                "%s is busy (%s): detached; programs that use it get errors from now on",
                self._mountpoint,
                error.strerror,
            )
            await self.settle()
            with contextlib.suppress(OSError):
                await _offload(partial(_unmount, self._mountpoint, lazily=True))
            pyfuse3.terminate()

    # What the core asks for

    def _outside(self, mailbox: bytes) -> Outside:
        return self.backing.lock_for((mailbox,))

    def _counts(self, path: Path, uid: int, gid: int, file: os.stat_result | None, /) -> bool:
        """Whether a foreign lock file of this owner counts: only if its owner may write the mailbox.

        Where there is no mailbox yet, its account decides, if it is known. The group of a lock file says something
        of its owner only where strangers cannot make files of that group.
        """
        if uid == 0:
            return True
        if file is None:
            account = self.context.accounts.cached(path[-1])
            return account is None or account.uid == uid
        caller = Credentials(uid, gid, frozenset())
        if may_write(file.st_uid, file.st_gid, file.st_mode & ~stat.S_IWGRP, caller):
            return True
        root = os.fstat(self.context.door.fileno)
        open_to_all = bool(root.st_mode & stat.S_IWOTH and root.st_mode & stat.S_ISGID)
        return not open_to_all and may_write(file.st_uid, file.st_gid, file.st_mode, caller)

    def _lock_event(self, event: LockEvent) -> None:
        if event.what == "revoked" and event.claim is not None:
            log.warning("%r: lock taken from %s: %s", event.key, event.claim, event.detail)
            self.context.mailbox(event.key).fence(event.claim)
        elif event.what in ("freed", "failed", "deadlock"):
            log.info("%r: %s: %s", event.key, event.what, event.detail or event.claim)
        else:
            log.debug("%r: %s %s %s", event.key, event.what, event.claim, event.detail)


def _unmount(mountpoint: str, *, lazily: bool) -> None:
    """Blocking; raises OSError."""
    if os.geteuid() == 0:
        umount(mountpoint, MNT_DETACH if lazily else 0)
        return
    command = ["fusermount3", "-uzq" if lazily else "-uq", mountpoint]
    done = subprocess.run(command, capture_output=True, check=False, timeout=10)
    if done.returncode != 0:
        raise OSError(16, "fusermount3 could not unmount it", mountpoint)


async def _offload(function: Callable[[], T]) -> T:
    return await trio.to_thread.run_sync(function)


def _note(mailbox: bytes, event: str, detail: str) -> None:
    log.info("%r: %s: %s", mailbox, event, detail)


def _lock_settings(config: Config) -> LockSettings:
    locks = config.locks
    return LockSettings(
        lease=locks.lease,
        keep_place=locks.keep_place,
        poll_patience=locks.poll_patience,
        reserve_for=locks.reserve_for,
        implicit_hold=locks.implicit_hold,
        max_waiters=locks.max_waiters,
        max_waiters_per_uid=locks.max_waiters_per_uid,
    )


def _programs(config: Config) -> Programs:
    """Paths as they are written, and as the kernel will tell them: without symbolic links (/bin, /lib)."""
    held = config.programs.session_hold
    real = {os.path.realpath(name) for name in held if name.startswith("/")}
    return Programs(session_hold=frozenset(held) | real)


def _directory_mode(text: str) -> int | None:
    return None if text == "auto" else stat.S_IMODE(int(text, 8))
