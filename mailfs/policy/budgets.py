"""Counters per user with a limit: scratch files and bytes, staged bytes, open handles.

One user at the limit is refused; the others do not notice. There is no limit on the sum, as the
number of users who can run programs on a mail host is the administrator's to choose.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mailfs.errors import Cause, Refused

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Usage:
    """A budget at one moment, for status and metrics.

    Attributes:
        name: what is counted.
        limit: for each user.
        used: by uid; users who use nothing are left out.
        refused: how often somebody was told no since the start.
    """

    name: str
    limit: int
    used: Mapping[int, int]
    refused: int


class Budget:
    """How much of one thing each user has, and may have.

    Args:
        name: what is counted, for messages and status.
        limit: for each user.
        exempt: uids that are counted but never refused.
    """

    def __init__(self, name: str, limit: int, exempt: Iterable[int] = ()) -> None:
        self.name = name
        self.limit = limit
        self._exempt = frozenset(exempt)
        self._used: Counter[int] = Counter()
        self._refused = 0

    def __repr__(self) -> str:
        return f"<budget {self.name}: {len(self._used)} users, limit {self.limit}>"

    def take(self, uid: int, amount: int = 1) -> None:
        """Count `amount` as used by `uid`: all of it or nothing.

        Raises:
            Refused: BUDGET, if it would exceed the limit.
            ValueError: if the amount is negative; that is a mistake of ours.
        """
        if amount < 0:
            raise ValueError(f"{self.name}: cannot take {amount}")
        if self._used[uid] + amount > self.limit and uid not in self._exempt:
            self._refused += 1
            raise Refused(
                Cause.BUDGET, f"{self.name}: uid {uid} has {self._used[uid]} of {self.limit}"
            )
        self._set(uid, self._used[uid] + amount)

    def give(self, uid: int, amount: int = 1) -> None:
        """Count `amount` as no longer used by `uid`.

        Raises:
            ValueError: if that is negative or more than was taken; that is a mistake of ours.
        """
        if not 0 <= amount <= self._used[uid]:
            raise ValueError(f"{self.name}: uid {uid} has {self._used[uid]}, gives back {amount}")
        self._set(uid, self._used[uid] - amount)

    def used(self, uid: int) -> int:
        """How much `uid` has."""
        return self._used[uid]

    def usage(self) -> Usage:
        """Return the state now; a copy."""
        return Usage(self.name, self.limit, dict(self._used), self._refused)

    def _set(self, uid: int, amount: int) -> None:
        if amount:
            self._used[uid] = amount
        else:
            self._used.pop(uid, None)
