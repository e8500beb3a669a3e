"""One call in a thread that may never come back, and that nobody is obliged to wait for.

``trio.to_thread`` ties a call to the task that waits for it; here several tasks share one call, or
give up and look again later, and what the call brings is kept even if the one who asked has left.
"""

from __future__ import annotations

import contextlib
from threading import get_native_id
from typing import TYPE_CHECKING, Generic, TypeVar, cast

import outcome  # trio's own, a dependency of it
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Call(Generic[T]):
    """Starts `function` in a thread of trio's cache; one that hangs does not keep us from exiting.

    Args:
        function: what may block.
        when_done: run in the event loop after the call returned or raised, unless the loop has
            ended by then.
    """

    def __init__(
        self, function: Callable[[], T], when_done: Callable[[Call[T]], None] | None = None
    ) -> None:
        self._function = function
        self._when_done = when_done
        self._token = trio.lowlevel.current_trio_token()
        self._done = trio.Event()
        self._result: outcome.Outcome[T] | None = None
        self._thread = 0
        trio.lowlevel.start_thread_soon(self._run, self._deliver)

    def _run(self) -> T:
        self._thread = get_native_id()
        return self._function()

    def _deliver(self, result: outcome.Outcome[T]) -> None:
        # Still in the thread. A loop that has ended wants nothing any more.
        self._result = result
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(self._finish)

    def _finish(self) -> None:
        self._done.set()
        if self._when_done is not None:
            self._when_done(self)

    async def wait(self) -> None:
        """Return when the call is over; any number of tasks may wait."""
        await self._done.wait()

    @property
    def over(self) -> bool:
        """Whether there is a result."""
        return self._result is not None

    def result(self) -> T:
        """Return what the function returned.

        Raises:
            Exception: what the function raised.
            trio.WouldBlock: the call is not over.
        """
        if self._result is None:
            raise trio.WouldBlock
        if isinstance(self._result, outcome.Error):  # unwrap() would work only once
            raise self._result.error
        return cast("outcome.Value[T]", self._result).value

    @property
    def blocked(self) -> bool:
        """Whether its thread waits in the kernel, and not merely for a processor.

        That is, in state D, like one that waits for a lock of the kernel's. Our own
        ``/proc/self/task/TID/status`` is safe to read, as we are not in execve.
        """
        try:
            with open(f"/proc/self/task/{self._thread}/status", "rb") as status:
                return b"\nState:\tD" in status.read(512)
        except OSError:
            return not self.over and self._thread != 0
