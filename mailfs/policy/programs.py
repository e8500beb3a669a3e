"""Programs the configuration names, by path or by base name, and what it says of them.

A name with a slash is a path, and means the program that was started from there; one without means whatever program
has that base name. A script is run by its interpreter, which is what it is known by.
"""

from __future__ import annotations

from dataclasses import dataclass

DELETED = " (deleted)"
"""What the kernel adds to the path of a program whose file is gone, say by an upgrade (d_path() in fs/d_path.c)."""


@dataclass(frozen=True, slots=True)
class Programs:
    """What the configuration says of programs.

    Attributes:
        session_hold: those that have the mailbox from their first open to their last close.

    """

    session_hold: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether any program is named, so that it matters which one asks."""
        return bool(self.session_hold)

    def holds_session(self, executable: str | None) -> bool:
        """Whether a program, known by its executable's path if at all, holds the mailbox for its session."""
        return is_one_of(executable, self.session_hold)


def is_one_of(executable: str | None, names: frozenset[str]) -> bool:
    """Whether a path is named, as it is or by its base name."""
    if executable is None:
        return False
    path = executable.removesuffix(DELETED)
    return path in names or path.rpartition("/")[2] in names
