"""Finding cycles of waiters: whether a process would wait for itself if its request were parked.

The waits-for graph is never stored. From the new request we go to the claims that deny it and to
the waiters it would queue behind, from a claim to the parked requests of its holder, and so on over
all mailboxes; if we arrive at a claim of the new request's own process, parking it would close a
cycle. A process that holds nothing cannot be part of one, which is the usual case and ends the
search before it begins.

Only fcntl requests are checked, as fcntl(2) promises EDEADLK. flock(2) knows no such error and its
callers would not expect it: such a cycle stands until a signal or a lease ends it, as it would on a
local filesystem. A process is taken as one waiter, as the kernel does for POSIX locks; OFD locks,
which the kernel never checks, cannot be told apart here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailfs.locking.model import Kind

if TYPE_CHECKING:
    from mailfs.locking.engine import Engine
    from mailfs.locking.line import Waiter
    from mailfs.locking.rules import Claim, Request
    from mailfs.locking.table import LockTable


def holds(claim: Claim, request: Request) -> bool:
    """Whether a claim cannot be given back while this request is parked.

    That of an unlocked reader gives way by itself in a moment.
    """
    if claim.reserved or claim.kind is Kind.READER:
        return False
    if claim.kind is Kind.DOTLOCK:
        return claim.agent.covers_process(request.requester.process)
    if claim.kind is Kind.FCNTL and claim.owner == request.owner:
        return True
    process = request.requester.process
    return process is not None and claim.requester.process is process


def closes_cycle(request: Request, engine: Engine, table: LockTable) -> bool:
    """Whether parking a request on a mailbox would make a cycle of waiters."""
    if not any(holds(claim, request) for lock in table.busy for claim in lock.claims):
        return False
    parked = table.parked()
    stack: list[tuple[Request, Engine]] = [(request, engine)]
    seen: set[Waiter] = set()
    queues: set[Engine] = set()
    while stack:
        current, where = stack.pop()
        followers: list[Waiter] = []
        for claim in where.blockers(current):
            if current is not request and holds(claim, request):
                return True
            followers += [w for w in parked if holds(claim, w.request)]
        if where not in queues and not where.inside(current):
            queues.add(where)
            followers += where.waiters
        for waiter in followers:
            if waiter not in seen:
                seen.add(waiter)
                stack.append((waiter.request, waiter.engine))
    return False
