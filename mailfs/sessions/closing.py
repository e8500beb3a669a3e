"""Last closes that are being worked on, for those who must see what came of them."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator


class Closing:
    """Counts the last closes of one mailbox that are under way; true while there are any."""

    def __init__(self) -> None:
        self._count = 0
        self._over = trio.lowlevel.ParkingLot()

    def __bool__(self) -> bool:
        return self._count > 0

    def __repr__(self) -> str:
        return f"<{self._count} closing, {self._over.statistics().tasks_waiting} waiting>"

    @contextmanager
    def in_progress(self) -> Iterator[None]:
        """While a last close is worked on."""
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1
            if not self._count:
                self._over.unpark_all()

    async def wait(self) -> None:
        """Until none is being worked on."""
        while self._count:
            await self._over.park()
