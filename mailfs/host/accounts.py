"""The user database: which account a name is, which name a uid has.

NSS may ask a server that does not answer, or look into a directory that lies in our own mount, so
it is called in threads only. An answer, "no such account" included, is believed for some seconds;
all who ask the same question at a time share one call; and whoever has waited for the time limit
goes on with the last known answer while the call runs on and leaves its answer for the next. A
fixed number of calls may run at a time, so that a database that hangs costs a fixed number of
threads.
"""

from __future__ import annotations

import os
import pwd
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

import trio

from mailfs.host.threads import Call

if TYPE_CHECKING:
    from collections.abc import Callable

BELIEVED: Final = 5.0
"""Seconds for which an answer is believed."""

PATIENCE: Final = 2.0
"""Seconds until the last known answer has to do."""

THREADS: Final = 16
"""How many questions may be open at a time."""

REMEMBERED: Final = 4096
"""How many answers are kept; strangers may ask for any number of names."""

LONGEST: Final = 255
"""Bytes in a name that is worth asking about: NAME_MAX, as the names are those of files."""


@dataclass(frozen=True, slots=True)
class Account:
    """An account's ids in the user database."""

    uid: int
    gid: int


class _Answer(NamedTuple):
    value: Account | bytes | None
    at: float  # trio's clock


class Accounts:
    """Answers questions about accounts.

    Args:
        believed: seconds for which an answer is believed.
        patience: seconds until the last known answer has to do.
        threads: how many questions may be open at a time.
        remembered: how many answers are kept.
        by_name: the database, by name; called in threads. Raises KeyError if there is no such
            account.
        by_uid: likewise, by uid.
    """

    def __init__(
        self,
        *,
        believed: float = BELIEVED,
        patience: float = PATIENCE,
        threads: int = THREADS,
        remembered: int = REMEMBERED,
        by_name: Callable[[str], pwd.struct_passwd] = pwd.getpwnam,
        by_uid: Callable[[int], pwd.struct_passwd] = pwd.getpwuid,
    ) -> None:
        self._believed = believed
        self._patience = patience
        self._remembered = remembered
        self._by_name = by_name
        self._by_uid = by_uid
        self._free = trio.Semaphore(threads)
        self._known: OrderedDict[bytes | int, _Answer] = OrderedDict()
        self._asked: dict[bytes | int, Call[Account | bytes | None]] = {}

    async def lookup(self, name: bytes) -> Account | None:
        """Return the account called `name`.

        None if there is none, if no account can have that name, or if the database did not answer.
        """
        text = _text(name)
        if text is None:
            return None

        def ask() -> Account | None:
            try:
                entry = self._by_name(text)
            except KeyError:
                return None
            return Account(entry.pw_uid, entry.pw_gid)

        answer = await self._ask(name, ask)
        return answer if isinstance(answer, Account) else None

    async def name_of(self, uid: int) -> bytes | None:
        """Return the name of the account with this uid; None if there is none, or no answer."""

        def ask() -> bytes | None:
            try:
                return os.fsencode(self._by_uid(uid).pw_name)
            except (KeyError, OverflowError):
                return None

        answer = await self._ask(uid, ask)
        return answer if isinstance(answer, bytes) else None

    def knows(self, name: bytes) -> bool:
        """Whether `cached` has an answer, however old. If not, `lookup` before believing it."""
        return _text(name) is None or name in self._known

    def cached(self, name: bytes) -> Account | None:
        """Return the last known answer to `lookup` at once; None also if it was never asked."""
        answer = self._known.get(name)
        return answer.value if answer and isinstance(answer.value, Account) else None

    async def _ask(
        self, key: bytes | int, question: Callable[[], Account | bytes | None]
    ) -> Account | bytes | None:
        """Return the believed answer, or a new one, or after the time limit the last one."""
        answer = self._known.get(key)
        if answer is not None and trio.current_time() < answer.at + self._believed:
            self._known.move_to_end(key)
            return answer.value
        with trio.move_on_after(self._patience):
            if key not in self._asked:
                await self._free.acquire()
                if key in self._asked:  # by somebody else while we waited
                    self._free.release()
                else:
                    self._asked[key] = Call(question, lambda call: self._answered(key, call))
            await self._asked[key].wait()
        answer = self._known.get(key)
        return answer.value if answer else None

    def _answered(self, key: bytes | int, call: Call[Account | bytes | None]) -> None:
        """Keep what a call brought; a call that failed leaves the last known answer in place."""
        del self._asked[key]
        self._free.release()
        try:
            value = call.result()
        except Exception:  # noqa: BLE001 -- whatever an NSS module or its wrapper raises
            return
        self._known[key] = _Answer(value, trio.current_time())
        self._known.move_to_end(key)
        if len(self._known) > self._remembered:
            self._known.popitem(last=False)


def _text(name: bytes) -> str | None:
    """Return the name as the user database takes it; None if it cannot be an account's."""
    if not 0 < len(name) <= LONGEST or b"\0" in name or b"/" in name or name in (b".", b".."):
        return None
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None
