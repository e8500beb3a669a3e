"""Who belongs together: the agent behind a request (design 4.2).

A lock is often asked for by one process, used by another and given back by a third, so a claim
belongs to an *agent*: its **home** process and everything descended from it. This is the whole
relation, in one place:

* **Covered** by an agent is its home, its *user* (below), and every descendant of either.
* A claim and a request are of **one agent** if the claim's agent covers the requester, or the
  requester is an ancestor of the claim's home. The relation is symmetric but not transitive: two
  children of a shell are strangers to each other and both relatives of the shell, which is as it
  should be.
* **Helpers.** If a process that takes an explicit lock has an ancestor, at most three levels up,
  that has the mailbox open or holds a claim on it, the lock is made on that ancestor's behalf: the
  nearest such is the claim's *user* (alpine for mlock, s-nail for s-nail-dotlock, mutt for ``sh -c
  mutt_dotlock``, a shell for flock(1) on a descriptor of its own).
* **A dotlock outlives its maker.** When its home ends *normally* with the lock in place, the lock
  goes to the user if there is one, else to the home's parent as it was at creation, through at most
  three such moves; where there is no parent (None: the host hides pid 1, session managers and
  subreapers) the lock is leased by uid. An end nobody could find out about counts as normal: we
  never take from the living on doubt.
* **Death frees a dotlock**: of the home by a signal; of the user in whatever way, for it is the one
  that reads and writes the mailbox, so its end is the end of the use; of the home after the third
  move. A helper killed by a signal frees the lock even if its user lives: nobody would remove it
  any more, and deliveries would stop for as long as the mail reader runs.
* **Leased by uid**: any process of that uid counts as the agent, and may release the lock. Its
  lease is prolonged by nobody, as nothing tells the owner's activity from that of the user's other
  programs.
* **Pid 0** (another pid namespace) is a stranger to everybody, itself included. Its dotlock is
  leased by uid only in this: requests of the same uid may release it, and pid-0 requests of that
  uid prolong it.

flock and fcntl claims are not freed here: the kernel tells when a descriptor is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mailfs.locking.model import Ending

if TYPE_CHECKING:
    from collections.abc import Callable

    from mailfs.locking.model import Process, Requester

MAX_MOVES = 3
"""Moves of a dotlock's home to a parent; levels up at which a helper's user is looked for."""

MAX_DEPTH = 64
"""Ancestors looked at; a chain that is longer, or runs in a circle, ends here."""


def lineage(process: Process | None, depth: int = MAX_DEPTH) -> tuple[Process, ...]:
    """The process and its ancestors, nearest first, at most ``depth`` of these."""
    chain: list[Process] = []
    while process is not None and len(chain) <= depth and process not in chain:
        chain.append(process)
        process = process.parent
    return tuple(chain)


class Agent:
    """The holder of one claim.

    Args:
        requester: who made the claim.
        user: the ancestor it was made for, see `find_user`.
        outlives: the claim may outlive its maker's normal end (a dotlock).
    """

    __slots__ = ("_heirs", "_moves", "_outlives", "home", "leased", "uid", "user")

    def __init__(
        self, requester: Requester, *, user: Process | None = None, outlives: bool = False
    ) -> None:
        self.home = requester.process
        self.user = user
        self.uid = requester.uid
        self.leased = outlives and requester.process is None
        """Nobody in particular holds it: the lock is the uid's."""
        self._outlives = outlives
        self._moves = 0
        # Parents are looked up now: they could not be asked for once the process is dead.
        self._heirs = lineage(requester.process, MAX_MOVES)[1:] if outlives else ()

    @property
    def stranger(self) -> bool:
        """Whether it has no process that a request could be recognised by."""
        return self.home is None

    @property
    def alive(self) -> bool:
        """Whether a process of the agent's own is known to live."""
        return any(p is not None and p.alive for p in (self.home, self.user))

    def covers_process(self, process: Process | None) -> bool:
        """Whether a process is the home, the user, or descended from one of them."""
        home, user = self.home, self.user
        if process is None or home is None:
            return False
        if process is home or process is user:
            return True
        return any(p is home or p is user for p in lineage(process))

    @property
    def by_uid(self) -> bool:
        """Whether every process of the uid counts as this agent."""
        return self.leased and self._moves > 0

    def covers(self, requester: Requester) -> bool:
        """Whether the requester counts as this agent."""
        if self.by_uid:
            return requester.process is not None and requester.uid == self.uid
        return self.covers_process(requester.process)

    def same_as(self, requester: Requester) -> bool:
        """Whether a request by the requester and this agent's claim are of one agent."""
        process = requester.process
        if process is None:
            return False
        if process is self.home or self.covers(requester):
            return True
        return self.home is not None and any(p is process for p in lineage(self.home))

    def may_release(self, requester: Requester) -> bool:
        """Whether the requester may give this agent's dotlock back."""
        return self.same_as(requester) or (self.leased and requester.uid == self.uid)

    def prolongs(self, requester: Requester) -> bool:
        """Whether the requester's activity is this agent's, for its lease."""
        if self.leased:
            never_known = self._moves == 0
            return never_known and requester.process is None and requester.uid == self.uid
        return self.same_as(requester)

    def bequeath(self, ending: Ending) -> bool:
        """The home has ended: move the claim on.

        Returns:
            False if the claim dies with its home.
        """
        if ending is Ending.SIGNAL or not self._outlives:
            return False
        if self.user is not None:
            self.home, self.user = self.user, None
            self._outlives = False
            return True
        if self._moves == MAX_MOVES:
            return False
        if self._moves < len(self._heirs):
            self.home = self._heirs[self._moves]
        else:
            self.home, self.leased = None, True
        self._moves += 1
        return True


def find_user(requester: Requester, holds: Callable[[Process], bool]) -> Process | None:
    """The nearest ancestor on whose behalf the requester acts on a mailbox, if any.

    Args:
        requester: who asks.
        holds: says whether a process itself holds a claim on this mailbox.
    """
    for process in lineage(requester.process, MAX_MOVES)[1:]:
        if process.alive and (requester.has_open(process) or holds(process)):
            return process
    return None
