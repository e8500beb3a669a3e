"""The command line, run by a user as whom Python may not be readable: privileges are dropped when
everything is imported.
"""

from __future__ import annotations

import sys

from tests.support.users import ROOT, User

# /proc/self belongs to root after a change of uid, unless the process may be dumped; prctl(2).
_LAUNCH = """
import ctypes, os, sys
import mailfs.cli.main, mailfs.spool.backing_lock, tempfile, random
uid, gid, groups = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
random.uniform(0, 1), tempfile.gettempdir()
os.setgroups([int(group) for group in groups.split(",") if group])
os.setresgid(gid, gid, gid)
os.setresuid(uid, uid, uid)
ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)
sys.exit(mailfs.cli.main.main(sys.argv[4:]))
"""


def mailfs(*arguments: object, user: User = ROOT) -> list[str]:
    """A command to be started as root that does what *user* would type."""
    if user is ROOT:
        return [sys.executable, "-m", "mailfs", *map(str, arguments)]
    groups = ",".join(map(str, user.groups))
    identity = [str(user.uid), str(user.gid), groups]
    return [sys.executable, "-c", _LAUNCH, *identity, *map(str, arguments)]
