"""What can be set about locking, and what the lock table tells the outside."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailfs.locking.model import Kind, Mode
    from mailfs.locking.rules import Claim


@dataclass(frozen=True, slots=True)
class LockSettings:
    """Times in seconds."""

    lease: float = 60.0
    """An idle agent loses its lock after this long, if somebody waits for it."""
    keep_place: float = 10.0
    """An interrupted waiter that asks again within this time has its old place."""
    poll_patience: float = 10.0
    """A program that polls has been refused for this long when a free moment is kept for it."""
    reserve_for: float = 2.0
    """How long such a moment is kept."""
    implicit_hold: float = 3.0
    """An unlocked writer's claim is as good as a lock for this long; then it gives way."""
    max_waiters: int = 10_000
    """Parked requests of all users together."""
    max_waiters_per_uid: int = 1_000
    """Parked requests of one user; root is exempt."""


@dataclass(frozen=True, slots=True)
class LockEvent:
    """Something that happened to a claim, told after the fact.

    ``what`` is one of: granted, released, lapsed (an implicit claim gave way), revoked (taken away
    and fenced), freed (its holder died), moved (a dotlock passed on to another process or to a
    uid), deadlock, failed (the backing lock).
    """

    what: str
    key: bytes
    time: float
    claim: Claim | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class LockRow:
    """One line of the lock table; times are those of trio's clock, ``idle`` is in seconds."""

    mailbox: bytes
    state: str
    """"held", "waiting" or "reserved"."""
    mode: Mode
    kind: Kind
    uid: int
    pid: int
    program: str
    generation: int
    """0 while waiting."""
    since: float
    idle: float
    lease_until: float | None
    """When an explicit claim may be taken away, if somebody waits then and its agent stays idle."""
    detail: str
