"""The death of the processes a dotlock, or a hold for a session, belongs to (design 4.2, 4.6).

A lock file has no descriptor whose closing would tell that its holder is gone, so the processes it
belongs to are watched for as long as it is in force: the home, whose normal end moves the lock on
to the next home (which is then watched instead) and whose death by a signal frees it, and the user
it was made for, whose end frees it in any case. What each end means is said in ``agents``. A hold for a
session ends with its process, however that ends.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import trio

from mailfs.locking.model import Ending

if TYPE_CHECKING:
    from mailfs.locking.engine import Engine
    from mailfs.locking.model import Process
    from mailfs.locking.rules import Claim
    from mailfs.locking.table import LockTable

log = logging.getLogger(__name__)


def watch(claim: Claim, lock: Engine, table: LockTable) -> None:
    """Begin to watch the processes of a claim; ends when the claim is no longer in force."""
    if claim.agent.home is not None:
        _start(claim, lock, table, home=True)
    if claim.agent.user is not None:
        _start(claim, lock, table, home=False)


def _start(claim: Claim, lock: Engine, table: LockTable, *, home: bool) -> None:
    scope = trio.CancelScope()
    claim.watches.append(scope)

    async def task() -> None:
        with scope:
            if home:
                await _watch_home(claim, lock, table)
            elif (user := claim.agent.user) is not None:
                await _ending(user)
                lock.drop(claim, "freed", f"{user.name} (pid {user.pid}) ended")

    table.spawn(task)


async def _watch_home(claim: Claim, lock: Engine, table: LockTable) -> None:
    agent = claim.agent
    while (home := agent.home) is not None:
        ending = await _ending(home)
        if not claim.live:
            return
        why = f"{home.name} (pid {home.pid}) {ending.value}"
        user = agent.user
        if not agent.bequeath(ending):
            lock.drop(claim, "freed", why)
            return
        if agent.leased:
            why += f"; leased by uid {agent.uid}"
        table.emit("moved", lock.key, claim, why)
        lock.pump()  # whom it covers has changed
        if user is not None:
            return  # the user is watched already


async def _ending(process: Process) -> Ending:
    """Wait for a process's end, whatever the host has to say about it."""
    try:
        return await process.ended()
    except Exception:
        log.exception("watching pid %s failed", process.pid)
        return Ending.UNKNOWN
