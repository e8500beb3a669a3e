"""A whole spool, one name after the other: what each is, and whether it is in order.

Nothing is changed or locked. Mailboxes are read without touching their access times where we may (O_NOATIME, for their
owner and root: the test for new mail compares them), never through symbolic links, and only what is a regular file.

The spool may be in use. Of a mailbox is judged what was there when it was opened; if it has changed by the time it is
read, what seems wrong with it may be somebody's work half done, so it is read again, and if that happens once more,
its findings are no more than information. The same goes for its end while somebody holds a lock on it.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
import stat
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from mailfs.checking.findings import Finding, Kind, Severity
from mailfs.checking.holders import Holders
from mailfs.checking.lockfiles import judge_lock
from mailfs.checking.mailbox import Examination, Examiner
from mailfs.checking.separator import PREFIX
from mailfs.checking.state import state_findings
from mailfs.policy.names import CONTROL_NAME, LOCK_SUFFIX, looks_temporary

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from mailfs.spool.door import Door

CHUNK: Final = 1 << 20
"""Bytes that are read at a time."""

ABANDONED: Final = 86400.0
"""Seconds after which a temporary file is taken for left behind: the default of `policy.scratch_keep`."""

_LOCK_CONTENT: Final = 512
"""Bytes in a lock file at most: more is no pid and host."""


@dataclass(frozen=True, slots=True)
class Checked:
    """What was found under one name of the spool, or (``name`` is None) about all of it.

    Attributes:
        name: in the spool's root.
        is_mailbox: whether it was examined as a mailbox.
        size: bytes that were examined.
        messages: in them.
        findings: what was found.
        denied: it could not be read for lack of permission.
    """

    name: bytes | None
    is_mailbox: bool = False
    size: int = 0
    messages: int = 0
    findings: list[Finding] = field(default_factory=list)
    denied: bool = False


class SpoolCheck:
    """Checks a spool.

    Args:
        door: the way to it.
        host: our host's name, as it stands in lock files.
        mounted: it is a mailfs mount; what is in ``.mailfs/`` there is none of the files we know.
    """

    def __init__(self, door: Door, *, host: str, mounted: bool) -> None:
        self._door = door
        self._host = host
        self._mounted = mounted
        self._names: set[bytes] = set()

    def run(self, names: Sequence[bytes] = ()) -> Iterator[Checked]:
        """Check the whole spool, or some names and their lock files, one after the other.

        Raises:
            FileNotFoundError: with a name that is asked for and not there.
            OSError: the spool cannot be listed.
        """
        self._names = {entry.name for entry in self._door.listdir()} - {CONTROL_NAME}
        for name in names:
            if name not in self._names:
                raise FileNotFoundError(name)
        locks = {name + LOCK_SUFFIX for name in names} & self._names
        return self._run(sorted(locks.union(names) if names else self._names), names)

    def _run(self, chosen: Sequence[bytes], asked: Sequence[bytes]) -> Iterator[Checked]:
        if not asked:
            yield self._check_state()
        for name in chosen:
            try:
                yield self._check(name, asked=name in asked)
            except FileNotFoundError:  # removed since
                continue
            except OSError as error:
                yield _unreadable(name, error)

    def _check_state(self) -> Checked:
        if self._mounted:
            detail = "this is a mount: what is staged or rescued is in `mailfs status`"
            return Checked(None, findings=[Finding(Kind.STATE, Severity.INFORMATION, detail)])
        try:
            found = state_findings(self._door, Holders.now())
        except PermissionError:
            detail = ".mailfs and the journal: only root sees them"
            return Checked(
                None, findings=[Finding(Kind.STATE, Severity.INFORMATION, detail)], denied=True
            )
        return Checked(None, findings=found)

    def _check(self, name: bytes, *, asked: bool) -> Checked:
        """Say what a name is and check it. Raises OSError."""
        file = self._door.stat((name,))
        if stat.S_ISDIR(file.st_mode) and not self._is_lock(name, file):
            return Checked(name)
        if self._is_lock(name, file):
            lock = self._judge(name)
            return Checked(name, findings=[lock] if lock else [])
        if not stat.S_ISREG(file.st_mode):
            detail = "a symbolic link" if stat.S_ISLNK(file.st_mode) else "a fifo, socket or device"
            return Checked(name, findings=[Finding(Kind.NOT_A_FILE, Severity.SUSPICIOUS, detail)])
        named_for_a_while = looks_temporary(name, os.fsencode(self._host))
        if named_for_a_while and not asked and not name.endswith(LOCK_SUFFIX):
            return Checked(name, findings=[_temporary(file)])
        return self._check_mailbox(name, file)

    # -- locks

    def _is_lock(self, name: bytes, file: os.stat_result) -> bool:
        """Whether it is somebody's lock file: that of a mailbox or an account, or one by its looks."""
        mailbox = name.removesuffix(LOCK_SUFFIX)
        if mailbox in (name, b""):
            return False
        if mailbox in self._names or _account_uid(mailbox) is not None:
            return True
        return file.st_size <= _LOCK_CONTENT and not self._begins_a_message(name, file)

    def _begins_a_message(self, name: bytes, file: os.stat_result) -> bool:
        if not stat.S_ISREG(file.st_mode):
            return False
        fd = self._open(name)
        try:
            return os.read(fd, len(PREFIX)) == PREFIX
        finally:
            os.close(fd)

    def _judge(self, lock: bytes) -> Finding | None:
        name = lock.removesuffix(LOCK_SUFFIX)
        try:
            mailbox = self._door.stat((name,))
        except FileNotFoundError:
            mailbox = None
        if self._mounted:  # a view of the lock: it is there as long as somebody holds the mailbox
            return Finding(Kind.LOCK_LIVE, Severity.INFORMATION, "see `mailfs locks`")
        account = _account_uid(name)
        holders = Holders.now()
        return judge_lock(
            self._door, lock, mailbox, host=self._host, account_uid=account, holders=holders
        )

    # -- mailboxes

    def _check_mailbox(self, name: bytes, file: os.stat_result) -> Checked:
        found = _attributes(file)
        examination, changed = self._examine(name)
        if changed and _is_bad(examination.findings):
            examination, changed = self._examine(name)
        text = examination.findings
        if changed:
            text = [_softened(finding) for finding in text]
            detail = "programs have changed it meanwhile"
            text.append(Finding(Kind.CHANGED, Severity.INFORMATION, detail))
        elif _is_bad(text) and (user := self._user(name, file)):
            text = [_softened(f) if f.at_end else f for f in text]
            text.append(Finding(Kind.IN_USE, Severity.INFORMATION, user))
        return Checked(
            name, is_mailbox=True, size=examination.size, messages=examination.messages,
            findings=found + text,
        )  # fmt: skip

    def _examine(self, name: bytes) -> tuple[Examination, bool]:
        """Examine what is there now; also says whether it was changed meanwhile."""
        fd = self._open(name)
        try:
            before = os.fstat(fd)
            if not stat.S_ISREG(before.st_mode):
                raise FileNotFoundError  # something else has its name by now
            examiner = Examiner()
            left = before.st_size
            while left and (data := os.read(fd, min(left, CHUNK))):
                examiner.feed(data)
                left -= len(data)
            after = os.fstat(fd)
        finally:
            os.close(fd)
        changed = (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns)
        return examiner.finish(), changed or left > 0

    def _user(self, name: bytes, file: os.stat_result) -> str:
        """Who holds a mailbox so that he may be writing, in words; empty if nobody does."""
        if any(holder.writes for holder in Holders.now().of(file)):
            return "somebody holds a kernel lock to write"
        lock = name + LOCK_SUFFIX
        judged = self._judge(lock) if lock in self._names else None
        return f"locked: {judged.detail}" if judged and judged.kind is Kind.LOCK_LIVE else ""

    def _open(self, name: bytes) -> int:
        try:
            return self._door.open((name,), os.O_RDONLY | os.O_NOATIME)
        except PermissionError:  # for the owner and root only, open(2)
            return self._door.open((name,), os.O_RDONLY)


def _attributes(file: os.stat_result) -> list[Finding]:
    """What is wrong with a mailbox's owner, mode and links."""
    found = []
    if file.st_nlink > 1:
        found.append((Kind.LINKS, f"{file.st_nlink} links"))
    if file.st_mode & (stat.S_ISUID | stat.S_ISGID):
        found.append((Kind.SET_ID, f"mode {stat.S_IMODE(file.st_mode):04o}"))
    if file.st_mode & stat.S_IWOTH:
        found.append((Kind.WORLD_WRITABLE, f"mode {stat.S_IMODE(file.st_mode):04o}"))
    if not _has_account(file.st_uid):
        found.append((Kind.NO_ACCOUNT, f"owner {file.st_uid}"))
    return [Finding(kind, Severity.SUSPICIOUS, detail) for kind, detail in found]


def _temporary(file: os.stat_result) -> Finding:
    age = max(0.0, time.time() - max(file.st_mtime, file.st_ctime))
    severity = Severity.SUSPICIOUS if age > ABANDONED else Severity.INFORMATION
    detail = f"{file.st_size} bytes of uid {file.st_uid}, unchanged for {age:.0f} s"
    return Finding(Kind.TEMPORARY, severity, detail)


def _unreadable(name: bytes, error: OSError) -> Checked:
    denied = isinstance(error, PermissionError)
    severity = Severity.SUSPICIOUS if denied else Severity.DAMAGE
    finding = Finding(Kind.UNREADABLE, severity, error.strerror or str(error))
    return Checked(name, findings=[finding], denied=denied)


def _is_bad(findings: Sequence[Finding]) -> bool:
    return any(finding.severity is not Severity.INFORMATION for finding in findings)


def _softened(finding: Finding) -> Finding:
    return dataclasses.replace(finding, severity=Severity.INFORMATION)


def _account_uid(name: bytes) -> int | None:
    try:
        return pwd.getpwnam(name.decode()).pw_uid
    except (KeyError, ValueError):  # ValueError: not UTF-8, or a NUL
        return None


def _has_account(uid: int) -> bool:
    try:
        pwd.getpwuid(uid)
    except (KeyError, OverflowError):
        return False
    return True
