"""What excludes what: the one place where conflicts between claims are decided (design 4.1).

*Within* a protocol its own owner decides, as its manual page says: flock(2) by open file
description, fcntl(2) by lock owner and byte range, a dotlock by its existence. *Across* protocols
the agent decides, and any range stands for the whole mailbox. A claim of somebody who may not write
the mailbox never matters to somebody who may. Beyond that:

* A commit excludes every other commit, of the same agent too: the real file is written by one at a
  time.
* A reader without locks excludes nothing but commits (4.7); everybody else's data is only staged.
  It does so even if it may not write the mailbox, for the short time it is given; and it excludes
  its relatives' commits too, but for those of its own process and its descendants.
* The commit that puts a new file in the mailbox's place is not in the way of readers: they go on
  reading the old one.
* An administrator's freeze and a pid of 0 have agents that are nobody's relatives, so nothing is
  exempt from them.
* A *reservation* (see ``places``) denies whatever the claim it stands for would deny, but never its
  own agent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf
from typing import TYPE_CHECKING

from mailfs.locking.agents import lineage
from mailfs.locking.model import Kind, Mode
from mailfs.locking.ranges import OFFSET_MAX, Range, clash

if TYPE_CHECKING:
    from collections.abc import Hashable

    import trio

    from mailfs.locking.agents import Agent
    from mailfs.locking.model import Process, Requester

EXPLICIT = frozenset({Kind.DOTLOCK, Kind.FLOCK, Kind.FCNTL, Kind.SESSION})
"""What a client asked for, or the configuration for it; leased, and fenced when revoked."""

OUTSIDE = EXPLICIT | {Kind.COMMIT, Kind.FREEZE, Kind.WRITER}
"""What needs the lock on the real file. Unlocked readers and writers do not: their data is passed
through or staged, and an unlocked writer that keeps its file open for hours must not stop the
programs outside the mount."""

PATIENT = frozenset({Kind.DOTLOCK, Kind.SESSION, Kind.WRITER, Kind.READER})
"""Requests that are refused also because others are waiting. F_SETLK and LOCK_NB are not: on a
local filesystem only what is *held* refuses them, and programs rely on it. Nor are commits, which
are short."""


@dataclass(slots=True, eq=False)
class Request:
    """One request for a claim."""

    kind: Kind
    mode: Mode
    requester: Requester
    owner: Hashable = None
    """Handle of a flock, lock owner of an fcntl lock, session of an unlocked writer or reader."""
    start: int = 0
    end: int = OFFSET_MAX
    hold: float = inf
    """Seconds for which the claim is firm; afterwards it gives way to whoever wants the mailbox."""
    content: object = None
    """Whatever the caller wants to find again at a dotlock."""
    beside_readers: bool = False
    """A commit that changes no byte which an unlocked reader may be reading."""
    _lineage: tuple[Process, ...] | None = None

    @property
    def lineage(self) -> tuple[Process, ...]:
        """The requesting process and its ancestors, looked up once."""
        if self._lineage is None:
            self._lineage = lineage(self.requester.process)
        return self._lineage

    @property
    def needs_outside(self) -> bool:
        """Whether granting it takes the lock on the real file."""
        return self.kind in OUTSIDE and self.requester.may_write


@dataclass(slots=True, eq=False)
class Claim:
    """Something held on a mailbox. Read it freely; only its `MailboxLock` changes it."""

    key: bytes
    kind: Kind
    mode: Mode
    agent: Agent
    requester: Requester
    owner: Hashable
    generation: int
    since: float
    touched: float
    """When the agent was last seen at work on the mailbox (trio's clock)."""
    firm_until: float = inf
    """From then on the claim gives way to whoever wants the mailbox."""
    ranges: list[Range] = field(default_factory=list)
    """Of an fcntl claim."""
    content: object = None
    reserved: bool = False
    """Not a claim, but a place kept free for one."""
    live: bool = True
    """Still in force."""
    revoked: bool = False
    """Taken away, not given back. If not ``fenced``, it lapsed, and its session simply goes on."""
    fenced: bool = False
    """The agent's unfinished work must not land any more."""
    watches: list[trio.CancelScope] = field(default_factory=list)

    @property
    def program(self) -> str:
        """The name of the holder's program."""
        process = self.agent.home or self.requester.process
        return process.name if process is not None else "?"

    @property
    def explicit(self) -> bool:
        """Whether a client asked for it by a protocol."""
        return self.kind in EXPLICIT and not self.reserved

    @property
    def needs_outside(self) -> bool:
        """Whether the lock on the real file must be held for it."""
        return self.kind in OUTSIDE and self.requester.may_write and not self.reserved

    def __str__(self) -> str:
        """For people: who holds what."""
        who = f"{self.program} (pid {self.requester.pid}, uid {self.requester.uid})"
        return (
            f"{'kept free' if self.reserved else self.kind.value} {self.mode.name.lower()}: {who}"
        )


def exclusive(kind: Kind, mode: Mode, other: Kind, other_mode: Mode) -> bool:
    """Whether claims of different agents exclude each other, byte ranges aside."""
    if kind is Kind.COMMIT and other is Kind.COMMIT:
        return True
    if kind is Kind.READER or other is Kind.READER:
        return Kind.COMMIT in (kind, other) and mode.conflicts(other_mode)
    return mode.conflicts(other_mode)


def same_agent(claim: Claim, request: Request) -> bool:
    """Whether claim and request belong to one agent (`Agent.same_as` with the look-up cached)."""
    agent, process = claim.agent, request.requester.process
    if process is None:
        return False
    if process is agent.home:
        return True
    if agent.home is None:
        return agent.covers(request.requester)
    home, user = agent.home, agent.user
    if any(p is home or p is user for p in request.lineage):
        return True
    return any(p is process for p in lineage(home))


def denies(claim: Claim, request: Request) -> bool:
    """Whether a claim in force stands against a request."""
    if claim.kind is Kind.READER:
        return (
            request.kind is Kind.COMMIT
            and not request.beside_readers
            and claim.agent.home not in request.lineage
        )
    if request.requester.may_write and not claim.requester.may_write:
        return False
    if claim.kind is request.kind and not claim.reserved:
        match claim.kind:
            case Kind.FLOCK:
                return claim.owner != request.owner and claim.mode.conflicts(request.mode)
            case Kind.FCNTL:
                return (
                    claim.owner != request.owner
                    and clash(claim.ranges, request.mode, request.start, request.end) is not None
                )
            case Kind.DOTLOCK:
                return claim.mode.conflicts(request.mode) or same_agent(claim, request)
            case Kind.COMMIT:
                return True
            case _:
                pass
    if not exclusive(claim.kind, claim.mode, request.kind, request.mode):
        return False
    return not same_agent(claim, request)


class Barrier:
    """The requests passed over so far in a walk along the queue.

    Whoever clashes with one of them waits behind it.

    Agents do not count here, so that the summary stays small however long the queue is: of one
    agent's two requests the second simply comes second.
    """

    __slots__ = ("_kinds", "_ranges", "closed", "to_readers")

    def __init__(self) -> None:
        self.closed = False
        """Nobody gets past any more, except for unlocked readers."""
        self.to_readers = False
        """Unlocked readers do not get past either: a commit waits for nothing but such readers."""
        self._kinds: set[tuple[Kind, Mode, bool]] = set()
        self._ranges: set[tuple[Range, bool]] = set()

    def add(self, request: Request) -> None:
        """Put a request that must go on waiting in the way of later ones."""
        may_write = request.requester.may_write
        self._kinds.add((request.kind, request.mode, may_write))
        if may_write and request.mode is Mode.WRITE and request.kind is not Kind.READER:
            whole = request.start == 0 and request.end == OFFSET_MAX
            self.closed = self.closed or whole
        if request.kind is Kind.FCNTL:
            self._ranges.add((Range(request.start, request.end, request.mode), may_write))

    def stops(self, request: Request) -> bool:
        """Whether a request has to wait behind those passed over."""
        if request.kind is Kind.READER:
            return self.to_readers
        may_write = request.requester.may_write
        for kind, mode, writes in self._kinds:
            if may_write and not writes:
                continue
            if kind is Kind.FCNTL and request.kind is Kind.FCNTL:
                continue
            if exclusive(kind, mode, request.kind, request.mode):
                return True
        if request.kind is not Kind.FCNTL:
            return False
        return any(
            (writes or not may_write)
            and clash((held,), request.mode, request.start, request.end) is not None
            for held, writes in self._ranges
        )
