"""POSIX access control lists, as far as the right to lock depends on them.

With a list, the group bits of a file's mode are the list's mask and say nothing about its group. The kernel checks
lists itself where a file is opened (posix_acl_permission() in fs/posix_acl.c); here the same rule decides who may lock.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mailfs.policy.rights import Credentials

ATTRIBUTE: Final = b"system.posix_acl_access"

# include/uapi/linux/posix_acl.h and posix_acl_xattr.h
_VERSION: Final = 2
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_WRITE: Final = 0x2


def may_write(acl: bytes, owner: int, group: int, caller: Credentials) -> bool:
    """Whether a list lets the caller write a file.

    Args:
        acl: the value of `ATTRIBUTE`; one that cannot be read lets nobody write.
        owner: the file's.
        group: the file's.
        caller: who asks.
    """
    if len(acl) < 4 or (len(acl) - 4) % 8 or struct.unpack_from("<I", acl)[0] != _VERSION:
        return False
    entries = list(struct.iter_unpack("<HHI", acl[4:]))
    mask = next((perm for tag, perm, _ in entries if tag == _MASK), 0o7)
    in_a_group = False
    for tag, perm, number in entries:
        if tag == _USER_OBJ and caller.uid == owner:
            return bool(perm & _WRITE)
        if tag == _USER and caller.uid == number:
            return bool(perm & mask & _WRITE)
        if (tag == _GROUP_OBJ and caller.in_group(group)) or (
            tag == _GROUP and caller.in_group(number)
        ):
            in_a_group = True
            if perm & mask & _WRITE:
                return True
        if tag == _OTHER and not in_a_group:
            return bool(perm & _WRITE)
    return False
