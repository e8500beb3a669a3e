"""Everything of a mount but FUSE: locks, journal and mailboxes of one spool.

A mount serves it to the kernel (``mount``); ``mailfs recover`` works on it without one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from typing import TYPE_CHECKING, TypeVar

import trio

from mailfs.daemon.errors import Exit, MountError
from mailfs.host.accounts import Accounts
from mailfs.locking.settings import LockEvent, LockSettings
from mailfs.locking.table import LockTable
from mailfs.policy.rights import may_lock
from mailfs.sessions.mailbox import Mailbox
from mailfs.sessions.surroundings import Surroundings
from mailfs.spool import dotlock
from mailfs.spool.backing_lock import BackingSettings
from mailfs.spool.backing_locks import BackingLocks
from mailfs.spool.door import Door
from mailfs.spool.journal import JournalDirectory
from mailfs.spool.mailbox_file import MailboxFile
from mailfs.spool.private import PrivateDirectory, SpoolBusyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mailfs.daemon.config import Config
    from mailfs.locking.model import Tasks
    from mailfs.locking.outside import Outside
    from mailfs.spool.door import Path

log = logging.getLogger(__name__)
T = TypeVar("T")


@contextlib.contextmanager
def opened(spool: str) -> Iterator[tuple[Door, PrivateDirectory]]:
    """A spool and its ``.mailfs`` directory, with nobody else at work on it.

    Raises:
        MountError: another daemon serves it, or it cannot be used.

    """
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
            message = f"cannot use {spool}: {error.strerror}; mailfs must be able to write there"
            raise MountError(message, Exit.NOPERM) from error
        stack.callback(private.close)
        yield door, private


class Core:
    """The core of one spool, put together.

    Args:
        config: what is in force.
        door: the spool.
        private: its ``.mailfs`` directory, and with it the right to be the only one here.
        nursery: where background tasks run.

    Raises:
        OSError: the journal cannot be opened.

    """

    def __init__(
        self, config: Config, door: Door, private: PrivateDirectory, nursery: Tasks
    ) -> None:
        self.config = config
        self.door = door
        self.private = private
        self.host = socket.gethostname()
        self.accounts = Accounts()
        self.mailboxes: dict[bytes, Mailbox] = {}
        backing = config.backing
        self.backing = BackingLocks(
            door,
            BackingSettings(
                dotlock=backing.dotlock,
                ofd=backing.ofd,
                flock=backing.flock,
                stale_after=backing.stale_after,
                touch_every=backing.touch_every,
                host=self.host,
            ),
            self._counts,
        )
        dotlock.sweep(door, (), self.host)
        if private.earlier_pid:
            dotlock.sweep_locks(door, (), self.host, private.earlier_pid)
        self.journal = JournalDirectory(door)
        self.locks = LockTable(nursery, _lock_settings(config), self._outside, self._lock_event)
        self.surroundings = Surroundings(
            nursery=nursery,
            offload=offload,
            journal=self.journal,
            spill_limit=config.sessions.spill,
            durable=config.sessions.durability == "power",
            rescue=private.rescue,
            note=_note,
        )

    def mailbox(self, name: bytes) -> Mailbox:
        """The mailbox of a name, whether or not its file exists."""
        mailbox = self.mailboxes.get(name)
        if mailbox is None:
            store = MailboxFile(self.door, (name,))
            mailbox = Mailbox(name, store, self.locks.lock(name), self.surroundings)
            self.mailboxes[name] = mailbox
        return mailbox

    async def settle(self) -> None:
        """Commit what is staged: nobody will write to it any more."""
        for mailbox in list(self.mailboxes.values()):
            await mailbox.settle()

    def leave(self) -> list[bytes]:
        """Leave what is not committed in the journal, for the next daemon. Returns whose mail that is."""
        return [name for name, mailbox in self.mailboxes.items() if mailbox.leave()]

    def close(self) -> None:
        """Give back locks and what of the journal is free."""
        self.backing.close()
        self.journal.close()

    # What the core asks for

    def _outside(self, mailbox: bytes) -> Outside:
        return self.backing.lock_for((mailbox,))

    def _counts(self, path: Path, uid: int, gid: int, file: os.stat_result | None, /) -> bool:
        """Whether a foreign lock file of this owner counts: only if its owner may write the mailbox.

        Where there is no mailbox yet, its account decides, if it is known. The group of a lock file says something
        of its owner only where strangers cannot make files of that group.
        """
        account = self.accounts.cached(path[-1])
        return may_lock(
            uid,
            gid,
            (file.st_uid, file.st_gid, file.st_mode) if file else None,
            account_uid=account.uid if account else None,
            directory=os.fstat(self.door.fileno).st_mode,
        )

    def _lock_event(self, event: LockEvent) -> None:
        if event.what == "revoked" and event.claim is not None:
            log.warning("%r: lock taken from %s: %s", event.key, event.claim, event.detail)
            self.mailbox(event.key).fence(event.claim)
        elif event.what in ("freed", "failed", "deadlock"):
            log.info("%r: %s: %s", event.key, event.what, event.detail or event.claim)
        else:
            log.debug("%r: %s %s %s", event.key, event.what, event.claim, event.detail)


async def offload(function: Callable[[], T]) -> T:
    """Run what blocks in a thread."""
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
