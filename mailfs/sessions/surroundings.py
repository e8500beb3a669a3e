"""What every mailbox of a mount shares: where its work runs, and who is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from mailfs.locking.model import Tasks
    from mailfs.sessions.storage import Spill

T = TypeVar("T")


class Offload(Protocol):
    """Runs a blocking function where it does not hold up the loop."""

    def __call__(self, function: Callable[[], T], /) -> Awaitable[T]:
        """Await the function's result."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What every mailbox of a mount shares."""

    nursery: Tasks
    offload: Offload
    spill: Callable[[], Spill]
    spill_limit: int  # bytes
    rescue: Callable[[bytes, int, Iterator[bytes], str], None]  # name, uid, content, why
    note: Callable[[bytes, str, str], None]  # name, event, detail: for history and log
