"""Tasks that run beside everything else."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import trio

log = logging.getLogger(__name__)


class Background:
    """Starts tasks in a nursery whose failure, a bug of ours, is logged and ends nothing else.

    Args:
        nursery: where they run.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery

    def start_soon(
        self, async_fn: Callable[..., Awaitable[object]], /, *args: object, name: object = None
    ) -> None:
        """See `trio.Nursery.start_soon`."""
        self._nursery.start_soon(self._run, async_fn, args, name=name or async_fn)

    async def _run(
        self, async_fn: Callable[..., Awaitable[object]], args: tuple[object, ...]
    ) -> None:
        try:
            await async_fn(*args)
        except Exception:
            log.exception("a background task failed: %r", async_fn)
