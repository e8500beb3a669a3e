"""Every key of the configuration, declared once: type, range, default and what it does.

From these declarations come the checks and the messages of a refusal (`mailfs.daemon.config`),
``mailfs mount --print-config``, ``.mailfs/config`` and the reference in ``docs/configuration.md``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, get_type_hints

import msgspec
from msgspec import Meta

if TYPE_CHECKING:
    from collections.abc import Iterator


_PROGRAM = r"\A(/[^\x00]+|[^/\x00]+)\Z"


def _seconds(low: float, high: float, description: str) -> Meta:
    takes = f"seconds, {low:.10g} to {high:.10g}"
    return Meta(ge=low, le=high, description=description, extra={"takes": takes})


def _count(low: int, high: int, description: str, unit: str = "a whole number") -> Meta:
    takes = f"{unit}, {low} to {high}"
    return Meta(ge=low, le=high, description=description, extra={"takes": takes})


def _choice(takes: str, description: str, pattern: str | None = None) -> Meta:
    return Meta(pattern=pattern, description=description, extra={"takes": takes})


class Locks(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who waits for a mailbox, in what order and for how long."""

    lease: Annotated[
        float,
        _seconds(
            1,
            86400,
            "A lock whose holder has not touched the mailbox for this long is taken from it,"
            " but only when somebody else waits for it.",
        ),
    ] = 60.0
    keep_place: Annotated[
        float,
        _seconds(
            0,
            600,
            "A program whose wait was interrupted (an alarm, Ctrl-Z) keeps its place in the queue"
            " if it asks again within this time.",
        ),
    ] = 10.0
    poll_patience: Annotated[
        float,
        _seconds(
            0,
            600,
            "A program that asks again and again instead of waiting, and has been refused for"
            " this long, gets the next free moment reserved for it.",
        ),
    ] = 10.0
    reserve_for: Annotated[
        float,
        _seconds(0, 10, "How long such a reservation lasts if the program does not come back."),
    ] = 2.0
    implicit_hold: Annotated[
        float,
        _seconds(
            0,
            4.5,
            "How long a writer that takes no lock is given the mailbox as if it had locked it."
            " Programs such as mutt give up after 5 seconds, so it must be shorter than that.",
        ),
    ] = 3.0
    max_waiters: Annotated[
        int, _count(1, 1_000_000, "How many requests may wait for locks at one time, in all.")
    ] = 10_000
    max_waiters_per_uid: Annotated[
        int, _count(1, 1_000_000, "How many requests of one user may wait for locks at one time.")
    ] = 1_000


class Waits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How long a request of a program may be kept waiting by the filesystem."""

    open: Annotated[
        float,
        _seconds(0, 29, "The longest wait of an open(). Exim gives up after 30 seconds."),
    ] = 25.0
    flush: Annotated[
        float,
        _seconds(
            0,
            2,
            "The longest wait of a close(), which nothing interrupts when its process is ending.",
        ),
    ] = 2.0


class Sessions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What programs have written and not yet closed."""

    idle_commit: Annotated[
        float,
        _seconds(
            1,
            86400,
            "What a program wrote is committed to the mailbox when it has been idle for this long"
            " without closing the file.",
        ),
    ] = 30.0
    spill: Annotated[
        int,
        _count(
            4096,
            1 << 40,
            "How much of one session is kept in memory before it goes to a file beside the spool.",
            "bytes",
        ),
    ] = 262_144
    durability: Annotated[
        Literal["process", "power"],
        _choice(
            '"process" or "power"',
            "What a program was told of survives the end of mailfs and of its host's programs"
            ' (what it fsynced survives more), or, with "power", a sudden loss of power too, which'
            " costs two or three disk flushes for every message.",
        ),
    ] = "process"


class Backing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The locks held on the real files, against programs outside the mount and other hosts."""

    dotlock: Annotated[
        bool, _choice("true or false", "Make MAILBOX.lock in the real spool while we write.")
    ] = True
    ofd: Annotated[
        bool,
        _choice(
            "true or false",
            "Take a record lock (fcntl) on the real mailbox, as a lock of the open file.",
        ),
    ] = True
    flock: Annotated[
        bool | Literal["auto"],
        _choice(
            'true, false or "auto"',
            'Take flock() on the real mailbox. "auto" leaves it out on NFS, where it is the same'
            " as a record lock and would conflict with our own.",
        ),
    ] = "auto"
    stale_after: Annotated[
        float,
        _seconds(
            30,
            86400,
            "Somebody else's lock file in the real spool is removed when it and the mailbox have"
            " not changed for this long (at once if it names a process of this host that is dead).",
        ),
    ] = 120.0
    touch_every: Annotated[
        float,
        _seconds(
            1,
            25,
            "How often our own lock file is touched while it is held. The shortest rule for stale"
            " locks in the field is 30 seconds.",
        ),
    ] = 15.0


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may do what in the mounted spool, and how much of it."""

    directory_mode: Annotated[
        str,
        _choice(
            '"auto" or an octal mode such as "1777"',
            'The mode that the mounted spool shows. "auto" is that of the real one, writable for'
            " all and without the sticky bit, so that every program tries to make its lock file.",
            r"\A(auto|0?[0-7]{3,4})\Z",
        ),
    ] = "auto"
    trusted_uids: Annotated[
        tuple[Annotated[int, Meta(ge=0, le=2**32 - 2)], ...],
        _choice(
            "a list of user ids",
            "Users that may do with every mailbox what root may: make, lock, replace and remove it, and"
            " read the control files. No limits apply to them.",
        ),
    ] = (0,)
    scratch_keep: Annotated[
        float,
        _seconds(
            60,
            31_536_000,
            "How long a temporary file is kept that a dead program left in the spool.",
        ),
    ] = 86400.0
    scratch_files: Annotated[
        int, _count(1, 1_000_000, "How many temporary files one user may have in the spool.")
    ] = 1_000
    scratch_bytes: Annotated[
        int,
        _count(
            4096, 1 << 50, "How much room the temporary files of one user may take up.", "bytes"
        ),
    ] = 268_435_456
    open_files: Annotated[
        int, _count(16, 1_000_000, "How many files of the spool one user may have open.")
    ] = 4_096


class Programs(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Programs that are treated differently, by their path, or by their base name wherever they lie."""

    session_hold: Annotated[
        tuple[Annotated[str, Meta(pattern=_PROGRAM)], ...],
        _choice(
            "a list of paths and base names of programs",
            "Programs that get a mailbox's lock when they open it, whether they lock or not, and keep"
            " it until they close it: POP servers that rewrite the mailbox at the end from what they"
            " read at the beginning. Meanwhile deliveries wait. A script goes by its interpreter.",
        ),
    ] = ()


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is written to the log."""

    level: Annotated[
        Literal["debug", "info", "warning", "error"],
        _choice(
            '"debug", "info", "warning" or "error"',
            "The least important messages that are still written.",
        ),
    ] = "info"


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All of it: one attribute a table of the file."""

    locks: Locks = Locks()
    waits: Waits = Waits()
    sessions: Sessions = Sessions()
    backing: Backing = Backing()
    policy: Policy = Policy()
    programs: Programs = Programs()
    log: Log = Log()


class MountOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What of a mount is not configuration.

    Attributes:
        allow_other: every user may use the mount, not only the one who made it.
        passthrough: the kernel may read mailboxes by itself, where it can.

    """

    allow_other: bool
    passthrough: bool = True


class Key(NamedTuple):
    """One key as it is declared above."""

    table: str
    name: str
    type: Any
    takes: str
    description: str
    default: object


def keys() -> Iterator[Key]:
    """List every key there is, in the order of the file."""
    for table, struct in get_type_hints(Config).items():
        hints = get_type_hints(struct, include_extras=True)
        for field in msgspec.structs.fields(struct):
            meta: Meta = hints[field.name].__metadata__[0]
            takes = str((meta.extra or {})["takes"])
            yield Key(
                table, field.name, hints[field.name], takes, str(meta.description), field.default
            )
