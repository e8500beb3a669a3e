"""What the operations share, and who is asking."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mailfs.fuse.nodes import MailboxNode
from mailfs.locking.model import Process, Requester
from mailfs.policy import acl
from mailfs.policy.rights import Credentials, may_remove, may_write, may_write_new

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Callable

    from mailfs.fuse.bridge import Caller, LockRequest
    from mailfs.fuse.handles import HandleTable
    from mailfs.fuse.nodes import NodeTable
    from mailfs.fuse.passthrough import Passthrough
    from mailfs.fuse.replace import Away
    from mailfs.host.accounts import Accounts
    from mailfs.host.processes import HostProcess, ProcessTable
    from mailfs.locking.posix import FileLocks
    from mailfs.locking.table import LockTable
    from mailfs.policy.budgets import Budget
    from mailfs.policy.programs import Programs
    from mailfs.sessions.mailbox import Mailbox
    from mailfs.sessions.surroundings import Surroundings
    from mailfs.spool.backing_locks import BackingLocks
    from mailfs.spool.door import Door, Path
    from mailfs.spool.private import PrivateDirectory


@dataclass(frozen=True, slots=True)
class Limits:
    """Numbers the operations go by; seconds and bytes."""

    open_wait: float
    flush_wait: float
    trusted_uids: frozenset[int]
    directory_mode: int | None  # None: as the backing directory's, writable for all


@dataclass(eq=False)
class Context:
    """The collaborators of all operations of one mount."""

    door: Door
    private: PrivateDirectory
    nodes: NodeTable
    handles: HandleTable
    processes: ProcessTable
    accounts: Accounts
    locks: LockTable
    backing: BackingLocks
    file_locks: FileLocks
    surroundings: Surroundings
    limits: Limits
    owner: int  # uid whose files in the spool's root are mailboxes whatever their name: root, or who mounted
    host: bytes
    control: dict[bytes, Callable[[], bytes]]
    scratch_files: Budget
    scratch_bytes: Budget
    open_files: Budget
    programs: Programs
    passthrough: Passthrough
    mailbox: Callable[[bytes], Mailbox]  # of a name, whether or not its file exists
    mailboxes: dict[bytes, Mailbox]  # those something is known of
    openers: dict[bytes, Counter[Process]] = field(default_factory=dict)
    replacements: dict[bytes, Away] = field(default_factory=dict)

    def give_scratch(self, uid: int, size: int = 0) -> None:
        """A scratch file is gone. Files of an earlier mount were never counted, so no more is given than was taken."""
        self.scratch_files.give(uid, min(1, self.scratch_files.used(uid)))
        self.scratch_bytes.give(uid, min(size, self.scratch_bytes.used(uid)))

    def refresh_backing(self, name: bytes) -> None:
        """A mailbox's real file is another one now: the locks held on it must follow."""
        lock = self.backing.lock_for((name,))
        if lock.held:
            lock.refresh()

    def drop_idle(self) -> None:
        """Forget mailboxes nothing is known of that could not be found out again.

        One whose node the kernel knows stays, however idle: it would be used through the node while others made a
        second one of the same name, and what a program has read would be unknown when it saves by renaming.
        """
        used = {name for name, openers in self.openers.items() if openers}
        used |= {node.mailbox.name for node in self.nodes if isinstance(node, MailboxNode)}
        for name, mailbox in list(self.mailboxes.items()):
            if name not in used and mailbox.idle:
                mailbox.store.rest()
                del self.mailboxes[name]

    def trusted(self, uid: int) -> bool:
        """Whether a user may act on everybody's mailboxes: root, the spool's owner, whom the configuration names."""
        return uid in self.trusted_uids

    @property
    def trusted_uids(self) -> frozenset[int]:
        """All of these."""
        return self.limits.trusted_uids | {0, self.owner}


class Who:
    """The client of one request; its process is only looked up if a decision depends on it."""

    def __init__(self, context: Context, caller: Caller | LockRequest) -> None:
        self._context = context
        self.pid = caller.pid
        self.uid = caller.uid
        self.gid = caller.gid
        self._process: HostProcess | None = None
        self._looked = False

    @property
    def process(self) -> HostProcess | None:
        """The process; None in another pid namespace, or when it is gone."""
        if not self._looked:
            self._looked = True
            self._process = self._context.processes.find(self.pid)
        return self._process

    @property
    def groups(self) -> frozenset[int]:
        """Supplementary groups."""
        process = self.process
        return process.groups_for(self.uid, self.gid) if process else frozenset()

    @property
    def trusted(self) -> bool:
        """See `Context.trusted`."""
        return self._context.trusted(self.uid)

    def may_write_file(self, path: Path, found: os.stat_result) -> bool:
        """Whether mode and access control list of a file let this client write it.

        Groups and lists are only looked up if they decide.
        """
        if self.trusted:
            return True
        plain = Credentials(self.uid, self.gid)
        owner, group, mode = found.st_uid, found.st_gid, found.st_mode
        if owner == self.uid or not mode & stat.S_IWGRP:
            return may_write(owner, group, mode, plain)
        known = Credentials(self.uid, self.gid, self.groups)
        try:
            listed = self._context.door.getxattr(path, acl.ATTRIBUTE)
        except OSError:  # no list, or a filesystem without
            return may_write(owner, group, mode, known)
        return acl.may_write(listed, owner, group, known)

    def may_remove(self, found: os.stat_result) -> bool:
        """The sticky rule, which the kernel does not apply, as the root shows no sticky bit."""
        root = os.fstat(self._context.door.fileno)
        return self.trusted or may_remove(
            found.st_uid, root.st_uid, Credentials(self.uid, self.gid)
        )

    async def may_write_mailbox(self, name: bytes) -> bool:
        """The right to lock a mailbox is the right to write it; where there is none, its account has it."""
        try:
            found = self._context.door.stat((name,))
        except FileNotFoundError:
            if self.trusted:
                return True
            account = await self._context.accounts.lookup(name)
            uid = account.uid if account is not None else None
            return may_write_new(uid, Credentials(self.uid, self.gid))
        return stat.S_ISREG(found.st_mode) and self.may_write_file((name,), found)

    def requester(self, mailbox: bytes, *, may_write: bool) -> Requester:
        """This client as the locking core sees it."""
        openers = self._context.openers.get(mailbox)
        return Requester(
            process=self.process,
            uid=self.uid,
            pid=self.pid,
            may_write=may_write,
            has_open=lambda process: bool(openers and openers[process] > 0),
        )
