"""Start a mount: look at the surroundings, go to the background, and come back when it answers.

In the background a mount is two processes for a moment. The command forks; the child begins a
session of its own and serves; the parent reads a pipe. The child writes one line there: ``ready``
once the mount answers, or ``error CODE MESSAGE``. Only then does the command return, so that who
started it (mount(8), a boot script) can use the mount at once. If the child dies without a word the
parent says so. One fork is enough: the daemon is a session leader without a terminal, and opens
none; and so the parent can still say by which signal its child died.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import shutil
import signal
import subprocess
from typing import TYPE_CHECKING

from mailfs.control.render import printable
from mailfs.daemon import logs, mountinfo
from mailfs.daemon.errors import Exit, MountError
from mailfs.daemon.notify import notify

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.daemon.config import Config, MountOptions

    Ready = Callable[[], None]
    Run = Callable[[Config, str, str, MountOptions, Ready], int]

DEVICE = "/dev/fuse"
FUSE_CONF = "/etc/fuse.conf"

_log = logging.getLogger(__name__)


def launch(
    config: Config,
    spool: str,
    mountpoint: str,
    options: MountOptions,
    *,
    foreground: bool,
    log: str | None,
    run: Run | None = None,
) -> int:
    """Mount, and in the foreground serve until it is unmounted.

    Args:
        config: what is in force.
        spool: the real directory.
        mountpoint: where to mount; may be the spool itself.
        options: what of the mount is not configuration.
        foreground: serve in this process.
        log: a file, ``syslog`` or None; see `mailfs.daemon.logs`.
        run: what serves; `mailfs.daemon.mount.run` unless a test says otherwise.

    Returns:
        The exit code of the command.

    Raises:
        MountError: the mount could not be made; nothing is left mounted.

    """
    mountpoint = mountinfo.resolve(mountpoint)
    clear_dead_mount(mountpoint)
    spool = mountinfo.resolve(spool)
    check(spool, mountpoint, options)
    if log not in (None, "syslog"):
        log = os.path.abspath(str(log))
    serve = functools.partial(_serve, config, spool, mountpoint, options, run=run)
    if foreground:
        logs.set_up(config.log.level, log, foreground=True)
        os.umask(0)
        return serve(lambda: notify("READY=1"))
    return _background(serve, functools.partial(logs.set_up, config.log.level, log))


def _serve(
    config: Config,
    spool: str,
    mountpoint: str,
    options: MountOptions,
    ready: Ready,
    *,
    run: Run | None,
) -> int:
    if run is None:
        run = _run_of_the_daemon()
    try:
        return run(config, spool, mountpoint, options, ready)
    finally:
        notify("STOPPING=1")


def _run_of_the_daemon() -> Run:
    """Import what serves. Not before: the other commands start without FUSE and its libraries."""
    try:
        from mailfs.daemon.mount import run
    except ImportError as error:
        message = f"mailfs is not installed completely ({error}); install it again"
        raise MountError(message, Exit.SOFTWARE) from error
    return run


def _background(serve: Callable[[Ready], int], set_up_log: Callable[..., None]) -> int:
    """Serve in a child; see the module's description."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    try:
        child = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise MountError(f"cannot start the daemon: {error.strerror}", Exit.OSERR) from error
    if child == 0:
        os.close(reader)
        os._exit(_child(serve, set_up_log, writer))
    os.close(writer)
    try:
        with open(reader, "rb") as pipe:
            line = pipe.readline().decode("utf-8", "replace").rstrip("\n")
    except KeyboardInterrupt:  # which does not reach the child's session
        os.kill(child, signal.SIGTERM)
        raise
    match line.split(" ", 2):
        case ["ready"]:
            return Exit.OK
        case ["error", code, message]:
            raise MountError(message, int(code))
    _, status = os.waitpid(child, 0)
    raise MountError(
        f"the daemon {_ending(status)} before the mount answered; try --foreground to see why",
        Exit.SOFTWARE,
    )


def _child(serve: Callable[[Ready], int], set_up_log: Callable[..., None], writer: int) -> int:
    """Become a daemon and serve. Returns the exit code; nothing may be raised into the caller."""
    told = False

    def tell(line: str) -> None:
        nonlocal told
        if not told:
            told = True
            with contextlib.suppress(OSError):  # the command was killed while it waited
                os.write(writer, line.replace("\n", " / ").encode("utf-8", "replace") + b"\n")
            os.close(writer)

    def ready() -> None:
        # Only now, so that what libraries print before (and tracebacks) reach who started us.
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        os.close(null)
        notify("READY=1")
        tell("ready")

    try:
        os.setsid()
        os.chdir("/")
        set_up_log(foreground=False)
        os.umask(0)
        code = serve(ready)
        tell(f"error {code or int(Exit.SOFTWARE)} the mount ended before it answered")
    except MountError as error:
        _log.error("%s", error.message)
        tell(f"error {error.exit_code} {error.message}")
        return error.exit_code
    except BaseException as error:  # noqa: BLE001 -- the last stop; sys.excepthook has nobody to tell
        _log.critical("the daemon failed", exc_info=True)
        tell(f"error {int(Exit.SOFTWARE)} the daemon failed: {error!r}")
        return Exit.SOFTWARE
    else:
        return code
    finally:
        logging.shutdown()


def _ending(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"was killed by {signal.Signals(os.WTERMSIG(status)).name}"
    return f"ended with exit code {os.waitstatus_to_exitcode(status)}"


def check(spool: str, mountpoint: str, options: MountOptions) -> None:
    """Look at what a mount needs, before anything is tried.

    Raises:
        MountError: something is missing; the message names the remedy.

    """
    below = mountinfo.mount_of(spool)
    if below is not None and below.fstype == mountinfo.FSTYPE:
        raise MountError(
            f"{printable(spool)}: mailfs is mounted over this spool already;"
            f" `mailfs umount {printable(below.mountpoint)}` first",
            Exit.UNAVAILABLE,
        )
    for path, what in ((spool, "spool"), (mountpoint, "mountpoint")):
        if not os.path.isdir(path):
            state = "is not a directory" if os.path.exists(path) else "does not exist"
            raise MountError(f"{printable(path)}: the {what} {state}", Exit.NOINPUT)
    top = mountinfo.top_mount(mountpoint)
    if top is not None and top.fstype == mountinfo.FSTYPE:
        raise MountError(
            f"{printable(mountpoint)}: mailfs is mounted here already;"
            f" `mailfs umount {printable(mountpoint)}` first",
            Exit.UNAVAILABLE,
        )
    if mountpoint != spool and os.path.commonpath((spool, mountpoint)) == spool:
        raise MountError(
            f"{printable(mountpoint)}: the mountpoint lies inside the spool {printable(spool)};"
            " mount over the spool itself or outside of it",
            Exit.USAGE,
        )
    _check_device()
    if os.geteuid() != 0:
        _check_user(mountpoint, options)


def _check_device() -> None:
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            remedy = "this user (or container) may not use it: its mode should be 0666"
        else:
            remedy = "run `modprobe fuse`; a container must be given it (--device /dev/fuse)"
        raise MountError(f"{DEVICE}: {error.strerror}: {remedy}", Exit.OSFILE) from error


def _check_user(mountpoint: str, options: MountOptions) -> None:
    if shutil.which("fusermount3") is None:
        message = "fusermount3 is missing, which ordinary users need: install the package fuse3"
        raise MountError(message, Exit.UNAVAILABLE)
    if not os.access(mountpoint, os.W_OK):
        message = f"{printable(mountpoint)}: you may not write here, so you may not mount here"
        raise MountError(message, Exit.NOPERM)
    if options.allow_other and not _user_allow_other():
        raise MountError(
            "-o allow_other: only root may, unless user_allow_other stands in /etc/fuse.conf",
            Exit.NOPERM,
        )


def _user_allow_other() -> bool:
    try:
        with open(FUSE_CONF, encoding="utf-8", errors="replace") as file:
            return any(line.strip() == "user_allow_other" for line in file)
    except OSError:
        return False


def clear_dead_mount(mountpoint: str) -> None:
    """Detach what a daemon that died has left mounted, so that the mountpoint can be used.

    Raises:
        MountError: a dead mount is there that is not ours, or cannot be detached.

    """
    for _ in range(8):  # dead mounts may lie on one another
        top = mountinfo.top_mount(mountpoint)
        if top is None or not top.fstype.startswith("fuse") or not _dead(mountpoint):
            return
        if top.fstype != mountinfo.FSTYPE:
            raise MountError(
                f"{printable(mountpoint)}: a dead mount of type {printable(top.fstype)} is here;"
                f" `umount -l {printable(mountpoint)}` first",
                Exit.UNAVAILABLE,
            )
        detach(mountpoint)
    raise MountError(f"{printable(mountpoint)}: dead mounts on it cannot be detached", Exit.OSERR)


def _dead(mountpoint: str) -> bool:
    """Whether nobody serves the mount: the kernel answers ENOTCONN by itself (fs/fuse/dev.c)."""
    try:
        os.stat(mountpoint)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def detach(mountpoint: str) -> None:
    """Unmount lazily, whoever still uses it.

    Raises:
        MountError: it cannot be done.

    """
    root = os.geteuid() == 0
    command = ["umount", "-l", "-c", "-i"] if root else ["fusermount3", "-u", "-z"]
    try:
        done = subprocess.run(
            [*command, "--", mountpoint],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=20,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        message = (
            f"{printable(mountpoint)}: {command[0]} failed: {printable(str(error), spaces=True)}"
        )
        raise MountError(message, Exit.OSERR) from error
    if done.returncode != 0:
        reason = printable(done.stderr.strip(), spaces=True) or f"exit code {done.returncode}"
        message = f"{printable(mountpoint)}: a dead mount cannot be detached: {reason}"
        raise MountError(message, Exit.OSERR)
