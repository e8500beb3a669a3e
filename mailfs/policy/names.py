"""What a name in the root of the spool is, and who may create it.

Names of mailboxes belong to accounts, ``X.lock`` belongs to the mailbox X, ``.mailfs`` is ours, and
every other name is *scratch*: private to the user who made it, and swept when its program is gone.

* A regular file in the spool is a mailbox whatever it is called, and so is the name of an account
  before there is a file, except that ``X.lock`` is the lock of X as soon as X is a mailbox: a lock
  file that a program outside the mount has made is not a mailbox. (An account ``X.lock`` beside an
  account X has no mailbox here; without X it has one, whose lock is ``X.lock.lock``.)
* The lock of a lock is scratch, since a lock is no mailbox.
* Whoever may administer the spool and creates a name that is neither wants a new mailbox, say of a
  mailing list, unless the name looks like the temporary file of some program. Taking a temporary
  file for a mailbox leaves a file behind at worst; taking a mailbox for a temporary file loses mail
  after a day. So in doubt it is a mailbox.

Hosts' and pids' places in temporary names are checked where they can be, for the same reason:
``alice.2024.12`` may be somebody's archive.
"""

from __future__ import annotations

import enum
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from mailfs.errors import Cause, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from mailfs.policy.rights import Credentials

CONTROL_NAME: Final = b".mailfs"
LOCK_SUFFIX: Final = b".lock"

DOTS: Final = 16
"""How many dots of a temporary name are tried as the end of a mailbox's name; each may cost a look
into the spool, and a hostile name may have 255. Mailboxes with more dots get no pointer."""


class Kind(enum.Enum):
    """What a name is."""

    MAILBOX = "mailbox"
    LOCK = "lock"
    SCRATCH = "scratch"
    CONTROL = "control"  # ours; also the names that are none ("", "..", with a slash or NUL)


@dataclass(frozen=True, slots=True)
class Name:
    """A name and what it is.

    Attributes:
        raw: the name itself.
        kind: what it is.
        mailbox: the mailbox it is, locks, or (a scratch name) probably is about; None if unknown.
    """

    raw: bytes
    kind: Kind
    mailbox: bytes | None


def classify(
    name: bytes, *, is_mailbox: Callable[[bytes], bool], is_account: Callable[[bytes], bool]
) -> Name:
    """Say what a name is.

    Args:
        name: as the kernel sends it.
        is_mailbox: whether a regular file of that name lies in the spool.
        is_account: whether an account has that name.
    """
    if name == CONTROL_NAME or not _possible(name):
        return Name(name, Kind.CONTROL, None)

    def is_taken(name: bytes) -> bool:
        return name != CONTROL_NAME and (is_account(name) or is_mailbox(name))

    return _settled(name, is_taken) or Name(name, Kind.SCRATCH, _pointed_to(name, is_taken))


def accounts_of(name: bytes) -> list[bytes]:
    """Return the names that `classify` must ask about to tell what `name` is.

    For callers whose ``is_account`` reads a cache that they have to fill first. What a scratch name
    points to is a guess and may be made with what is known.
    """
    names = [name] if _possible(name) else []
    while names and name.endswith(LOCK_SUFFIX) and _possible(name := name[: -len(LOCK_SUFFIX)]):
        names.append(name)
    return names


def may_create(
    name: Name,
    caller: Credentials,
    *,
    account_uid: int | None,
    trusted: Collection[int],
    host: bytes,
) -> Kind:
    """Say what a file that the caller creates under this name becomes.

    A LOCK is none of this module's business: who may lock is who may write (`policy.rights`).

    Args:
        name: as `classify` says.
        caller: who creates.
        account_uid: the uid of the account of this name, None if there is none.
        trusted: who may make any mailbox: root, the spool's owner, configured uids. Delivery agents
            need not be among them, they create a user's mailbox as the user or root (procmail,
            maildrop, postfix local(8)).
        host: this host's name, as in temporary names.

    Raises:
        Refused: NOT_ALLOWED (our own names), NAME_RESERVED (another user's account),
            NAME_TAKEN (a mailbox that is no account's).
    """
    match name.kind:
        case Kind.CONTROL:
            raise Refused(Cause.NOT_ALLOWED, f"{name.raw!r} is not a client's to create")
        case Kind.LOCK:
            return Kind.LOCK
        case Kind.MAILBOX:
            if caller.uid in trusted or (account_uid is not None and caller.uid == account_uid):
                return Kind.MAILBOX
            cause = Cause.NAME_TAKEN if account_uid is None else Cause.NAME_RESERVED
            raise Refused(cause, f"{name.raw!r} is not a mailbox of uid {caller.uid}")
        case Kind.SCRATCH:
            if caller.uid in trusted and not looks_temporary(name.raw, host):
                return Kind.MAILBOX
            return Kind.SCRATCH


# What programs call their temporary files, observed with strace unless a source is named.
_TEMPORARY: Final = tuple(
    re.compile(pattern, re.DOTALL)
    for pattern in (
        # liblockfile (.lkPPPPPxHOST), vim (.alice.swp, .swo, .swpx), nano --locking, emacs
        # (.#alice), rsync (.alice.XXXXXX), GLib (.goutputstream-XXXXXX): nobody's mailbox starts
        # with a dot.
        rb"\..+",
        # Locks of mailboxes that do not exist yet, and what becomes a lock by link(2): alpine and
        # lockmail (alice.lock.TIME.PID.HOST), s-nail (alice.lock + 16 characters + HOST), Python
        # (alice.lock.TIME.HOST.PID).
        rb".+\.lock(\..+|[0-9A-Za-z_-]{16}.+)?",
        # procmail and lockfile(1): _xPF.mciArB.HOST, with "," or "+" in a second and third try.
        rb"_[0-9A-Za-z_-]{1,8}[.,+][0-9A-Za-z_-]{1,8}\..+",
        # vim and nano -B, emacs: backup.
        rb".+~",
        # emacs: auto-save (manual, "Auto-Save Files").
        rb"#.+#",
        # vim tries whether it can create files, under this name (bufwrite.c).
        rb"4913",
        # sed -i: mkostemp("sedXXXXXX"). Six letters in lower case may be a list called "seditions".
        rb"sed(?=.*[0-9A-Z])[0-9A-Za-z]{6}",
        # GNU mailutils: mkstemp("muXXXXXX"), the new mailbox and the name the old one is moved to.
        rb"mu(?=.*[0-9A-Z])[0-9A-Za-z]{6}",
    )
)
_TIME: Final = re.compile(rb"[1-9][0-9]{9,10}")  # seconds since the epoch
_PID: Final = re.compile(rb"[1-9][0-9]{0,6}")  # PID_MAX_LIMIT is 4,194,304


def looks_temporary(name: bytes, host: bytes) -> bool:
    """Whether a name is of the form some program gives its temporary files in a spool.

    Args:
        name: any.
        host: this host's name; short and full forms match each other.
    """
    if any(pattern.fullmatch(name) for pattern in _TEMPORARY):
        return True
    parts = name.split(b".")
    short = host.partition(b".")[0]
    if not short or short not in parts[1:]:
        return False
    where = len(parts) - 1 - parts[::-1].index(short)
    # mutt has alice.HOST.PID, Python's mailbox alice.TIME.HOST.PID, ...
    if _PID.fullmatch(parts[-1]) and where < len(parts) - 1:
        return True
    # ... GNU mailutils alice.PID.TIME.HOST ...
    if where >= 3 and _PID.fullmatch(parts[where - 2]) and _TIME.fullmatch(parts[where - 1]):
        return True
    # ... maildrop PID.N.HOST.
    return bool(_PID.fullmatch(parts[0])) and parts[1].isdigit() and where >= 2


_SWAP: Final = re.compile(rb"\.(.+)\.sw[a-z]x?", re.DOTALL)


def _settled(name: bytes, is_taken: Callable[[bytes], bool]) -> Name | None:
    """Say whether a name is a lock or a mailbox; None if it is neither.

    A name is a lock if it is a mailbox's and ".lock", and a mailbox if it is taken and not a lock:
    that of X.lock.lock depends on X.lock, and that on X, so the answer is found from the inside.
    """
    is_box = was_box = False
    for candidate in reversed(accounts_of(name)):
        was_box, is_box = is_box, not is_box and is_taken(candidate)
    if was_box:
        return Name(name, Kind.LOCK, name[: -len(LOCK_SUFFIX)])
    return Name(name, Kind.MAILBOX, name) if is_box else None


def _pointed_to(name: bytes, is_taken: Callable[[bytes], bool]) -> bytes | None:
    """Guess which mailbox a temporary name is about: the longest one that its form allows."""
    stems: list[bytes] = []
    if swap := _SWAP.fullmatch(name):
        stems.append(swap[1])
    if name.endswith(b"~"):
        stems.append(name[:-1])
    dots = itertools.islice(re.finditer(rb"(?<!^)\.", name), DOTS)
    stems += [name[: dot.start()] for dot in dots][::-1]
    settled = (_settled(stem, is_taken) for stem in stems)
    return next((found.mailbox for found in settled if found), None)


def _possible(name: bytes) -> bool:
    """Whether it can be the name of a file: the kernel sends no others, but X of X.lock may be."""
    return bool(name) and name not in (b".", b"..") and b"/" not in name and b"\0" not in name
