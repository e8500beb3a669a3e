"""A place where one task waits for one answer.

The answer is handed over directly, as in trio's ParkingLot: whoever settles a place wakes exactly
that task, and from then on a cancellation cannot take the answer away any more, so a grant is never
lost between the two. A place may be settled before its task has parked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

import outcome
import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Parked(Generic[T]):
    """One task's place; settled at most once."""

    __slots__ = ("_outcome", "_task")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._outcome: outcome.Value[T] | outcome.Error | None = None

    @property
    def settled(self) -> bool:
        """Whether the answer is there."""
        return self._outcome is not None

    def grant(self, value: T) -> None:
        """Answer with a value."""
        self._settle(outcome.Value(value))

    def refuse(self, error: Exception) -> None:
        """Answer with an exception, raised in the waiting task."""
        self._settle(outcome.Error(error))

    def _settle(self, answer: outcome.Value[T] | outcome.Error) -> None:
        self._outcome = answer
        if self._task is not None:
            trio.lowlevel.reschedule(self._task)

    async def park(self, abandon: Callable[[], None]) -> T:
        """Wait for the answer; does not yield if it is there already.

        Args:
            abandon: called, synchronously, if the wait is cancelled before the answer came. Must
                not raise.
        """
        if self._outcome is None:
            self._task = trio.lowlevel.current_task()

            def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
                abandon()
                return trio.lowlevel.Abort.SUCCEEDED

            await trio.lowlevel.wait_task_rescheduled(abort)
        answer = self._outcome
        if answer is None:  # somebody else rescheduled our task: a bug in the caller
            raise RuntimeError("woken without an answer")
        return answer.unwrap()
