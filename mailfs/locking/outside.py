"""The lock on the real file, towards programs outside the mount and other hosts (design 7.1).

A grant needs it; it is kept while claims are handed over, weakened when only readers are left, and
released with the last claim. If it cannot be had at once, whoever does not want to wait is refused,
and for those who do one background task waits for it; the task is cancelled when the last of them
has gone.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Protocol

import trio

from mailfs.errors import Cause, Refused
from mailfs.locking.model import Mode

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = logging.getLogger(__name__)

_CAUSES = {errno.ENOSPC: Cause.NO_SPACE, errno.EDQUOT: Cause.QUOTA}


class Outside(Protocol):
    """One mailbox's backing lock."""

    def try_acquire(self, mode: Mode) -> bool:
        """Take or strengthen it at once. False: somebody outside has it. Raises OSError."""

    async def acquire(self, mode: Mode) -> None:
        """Wait until it is held in at least this mode; cancelled, leave nothing. Raises OSError."""

    def weaken(self, mode: Mode) -> None:
        """Let go of what this mode does not need."""

    def release(self) -> None:
        """Let go of all of it. Never raises."""

    @property
    def held(self) -> bool:
        """Whether it is held now."""

    def holder(self) -> str | None:
        """For people: who outside holds it."""


class Hold:
    """What we hold of a mailbox's backing lock, and the task that waits for more.

    Args:
        key: the mailbox, for the log.
        outside: the backing lock.
        spawn: starts a background task; False if that is no longer possible.
        changed: called when the background task is done, with the reason if it failed.
    """

    __slots__ = ("_changed", "_key", "_outside", "_seeking", "_spawn", "mode")

    def __init__(
        self,
        key: bytes,
        outside: Outside,
        spawn: Callable[[Callable[[], Awaitable[None]]], bool],
        changed: Callable[[Refused | None], None],
    ) -> None:
        self._key = key
        self._outside = outside
        self._spawn = spawn
        self._changed = changed
        self._seeking: trio.CancelScope | None = None
        self.mode: Mode | None = None

    @property
    def seeking(self) -> bool:
        """Whether somebody outside has it, and we wait for that to end."""
        return self._seeking is not None

    @property
    def idle(self) -> bool:
        """Nothing held and nothing waited for."""
        return self.mode is None and self._seeking is None

    def secure(self, mode: Mode) -> bool:
        """Take it at once in at least this mode.

        Raises:
            Refused: NO_SPACE, QUOTA or IO, if the real spool does not let us.
        """
        wanted = self._strength(mode)
        if self.mode is not None and self.mode >= wanted and self._outside.held:
            return True
        if self._seeking is not None:
            return False
        try:
            if not self._outside.try_acquire(wanted):
                return False
        except OSError as error:
            raise self._refusal(error) from error
        self.mode = wanted
        return True

    def _strength(self, mode: Mode) -> Mode:
        """What to ask for: outside there is only shared and exclusive, and nothing held is lost."""
        if mode is Mode.READ and self.mode in (None, Mode.READ):
            return Mode.READ
        return Mode.WRITE

    def seek(self, mode: Mode) -> None:
        """Wait for it in the background, unless somebody does already."""
        if self._seeking is not None:
            return
        scope = self._seeking = trio.CancelScope()
        wanted = self._strength(mode)

        async def wait() -> None:
            failure: Refused | None = None
            try:
                with scope:
                    await self._outside.acquire(wanted)
                    self.mode = wanted
            except OSError as error:
                failure = self._refusal(error)
            except Exception as error:  # a background task must not end the daemon
                log.exception("backing lock of %r failed", self._key)
                failure = Refused(Cause.IO, repr(error))
            finally:
                self._seeking = None
            self._changed(failure)

        if not self._spawn(wait):
            self._seeking = None

    def settle(self, needed: Mode | None, *, wanted: bool) -> None:
        """Hold no more than needed.

        Args:
            needed: the strongest mode of the claims in force; None without any.
            wanted: somebody still waits for what the background task may get.
        """
        if self._seeking is not None:
            if not wanted:
                self._seeking.cancel()  # its end settles the rest
            return
        if self.mode is None:
            return
        try:
            if needed is None:
                self.mode = None
                self._outside.release()
            elif needed is Mode.READ and self.mode is not Mode.READ:
                self.mode = needed
                self._outside.weaken(needed)
        except OSError as error:
            self._refusal(error)

    def holder(self) -> str:
        """For people: who outside holds it."""
        try:
            return self._outside.holder() or "a program outside the mount"
        except OSError:
            return "a program outside the mount"

    def _refusal(self, error: OSError) -> Refused:
        log.warning("backing lock of %r: %s", self._key, error)
        return Refused(_CAUSES.get(error.errno or 0, Cause.IO), str(error))
