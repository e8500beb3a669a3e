"""What every mailbox of a mount shares: where its work runs, and who is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from mailfs.locking.model import Tasks
    from mailfs.sessions.storage import Journal

T = TypeVar("T")


class Offload(Protocol):
    """Runs a blocking function where it does not hold up the loop."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]:
        """Await the function's result."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every mailbox of a mount shares.

    Attributes:
        spill_limit: bytes of a draft kept in memory.
        durable: what clients were told of survives a loss of power too, not only our death.
        rescue: keeps (name, uid, content, why); returns whether all of it is kept.
        note: (name, event, detail) for history and log.

    """

    nursery: Tasks
    offload: Offload
    journal: Journal
    spill_limit: int
    durable: bool
    rescue: Callable[[bytes, int, Iterator[bytes], str], bool]
    note: Callable[[bytes, str, str], None]
