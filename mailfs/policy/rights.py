"""Who may read, write, remove and rename, by the ordinary rules of owner, group and mode.

The right to lock a mailbox is the right to write it, so `may_write` (or, before there is a mailbox,
`may_write_new`) also decides about every kind of lock.

The spool shows itself without the sticky bit, because in a sticky directory that others may write
``fs.protected_regular`` (Documentation/admin-guide/sysctl/fs.rst) refuses open(O_CREAT) of an
existing file by anyone but its owner, root included. What the sticky bit would forbid
(`inode(7)`), `may_remove` forbids.
"""

from __future__ import annotations

import stat
from dataclasses import dataclass
from typing import Final

ROOT: Final = 0


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who asks: the ids of the request and the supplementary groups of its process."""

    uid: int
    gid: int
    groups: frozenset[int] = frozenset()

    def in_group(self, gid: int) -> bool:
        """Whether `gid` is the caller's group or one of the others."""
        return gid == self.gid or gid in self.groups


def may_read(owner: int, group: int, mode: int, caller: Credentials) -> bool:
    """Whether the caller may read a file with these attributes."""
    return _allowed(owner, group, mode, caller, stat.S_IRUSR)


def may_write(owner: int, group: int, mode: int, caller: Credentials) -> bool:
    """Whether the caller may write a file with these attributes, and so lock it."""
    return _allowed(owner, group, mode, caller, stat.S_IWUSR)


def may_write_new(account_uid: int | None, caller: Credentials) -> bool:
    """Whether the caller may make, and so lock, a mailbox that does not exist yet.

    Args:
        account_uid: the uid of the account of that name, None if there is none.
        caller: who asks.
    """
    return caller.uid in (ROOT, account_uid)


def may_lock(
    uid: int,
    gid: int,
    mailbox: tuple[int, int, int] | None,
    *,
    account_uid: int | None,
    directory: int,
) -> bool:
    """Whether a lock file in the real spool counts: only if its owner may write the mailbox.

    Args:
        uid: owner of the lock file.
        gid: its group, which says something of its owner only where strangers cannot make files of that group.
        mailbox: owner, group and mode of the mailbox; None if there is none yet.
        account_uid: who may make it then, None if unknown.
        directory: mode of the spool.
    """
    if uid == ROOT:
        return True
    if mailbox is None:
        return account_uid is None or account_uid == uid
    owner, group, mode = mailbox
    caller = Credentials(uid, gid)
    if may_write(owner, group, mode & ~stat.S_IWGRP, caller):
        return True
    open_to_all = bool(directory & stat.S_IWOTH and directory & stat.S_ISGID)
    return not open_to_all and may_write(owner, group, mode, caller)


def may_remove(owner: int, directory_owner: int, caller: Credentials) -> bool:
    """Whether the caller may remove, or rename away, a file of `owner`: as if it were sticky."""
    return caller.uid in (ROOT, owner, directory_owner)


def directory_mode(backing: int, override: int | None = None) -> int:
    """Return the permission bits that the spool's directory shows.

    Whoever may search it may also write to it, so that every program may try; 2775 and 1777 show as
    2777 and 0777.

    Args:
        backing: the mode of the real directory, with or without the type of file.
        override: what the configuration demands instead.
    """
    if override is not None:
        return stat.S_IMODE(override)
    searchable = backing & (stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return stat.S_IMODE(backing | searchable << 1) & ~stat.S_ISVTX


def _allowed(owner: int, group: int, mode: int, caller: Credentials, wanted: int) -> bool:
    """Whether the bit `wanted`, given as the owner's, is set for the caller.

    As in the kernel (generic_permission in fs/namei.c), only one of the three classes counts.
    """
    if caller.uid == ROOT:
        return True
    if caller.uid == owner:
        return bool(mode & wanted)
    if caller.in_group(group):
        return bool(mode & wanted >> 3)
    return bool(mode & wanted >> 6)
