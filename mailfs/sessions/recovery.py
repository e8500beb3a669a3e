"""What to do with a draft that an earlier daemon left in the journal (design: "recovery").

An append that was being written is found again in the mailbox by its bytes: as much of it as is there stands at the
place its record names. Cut back or finished is only what is surely ours. A program outside may have appended behind a
torn message before we came: what it wrote stays. Whatever cannot be decided changes no mailbox.

Each function may be interrupted at any instruction and called again.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, NamedTuple

from mailfs.sessions.journalling import is_mail
from mailfs.sessions.merge import SEPARATOR
from mailfs.sessions.record import Record, State
from mailfs.sessions.session import CHUNK
from mailfs.sessions.writing import appended_text, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mailfs.sessions.session import Session
    from mailfs.sessions.storage import Store


class What(enum.Enum):
    """What recovery does with a record."""

    NOTHING = "nothing to do"
    CUT_BACK = "cut back"
    FINISH = "finish"
    COMMIT = "commit"
    RESCUE = "rescue"


class Verdict(NamedTuple):
    """What is to be done, and why, for people; ``foreign`` is what somebody else wrote behind our part, bytes."""

    what: What
    why: str
    at: int = 0
    written: int = 0
    foreign: int = 0


def judge(store: Store, session: Session, *, whole: bool, boot: str) -> Verdict:
    """Decide; changes nothing.

    Args:
        store: the mailbox.
        session: the draft, as `journalling.recovered` gives it.
        whole: the staging log is what it was.
        boot: the host's boot id.

    Raises:
        OSError: of the backing filesystem.

    """
    record = session.record
    if record is None or record.state is State.FREE:
        return Verdict(What.NOTHING, "an empty file of the journal")
    if not whole:
        if record.state is State.INTENT:
            return Verdict(What.NOTHING, "its entry in the journal was not finished")
        return Verdict(What.RESCUE, "the journal file is damaged")
    if record.boot != boot and not record.synced and record.state is not State.INTENT:
        return _judge_lost(store, session, record)
    match record.state:
        case State.SYNCED if is_mail(session):
            return Verdict(What.COMMIT, "its writer was told that it is on the disk")
        case State.SYNCED:
            return Verdict(What.RESCUE, "its writer had not finished")
        case State.PENDING:
            return Verdict(What.COMMIT, "its writer was told of success")
        case State.COMMITTED if record.rewrite:
            return _judge_rewrite(store, record)
        case _:
            return _judge_append(store, session, record)


def _judge_lost(store: Store, session: Session, record: Record) -> Verdict:
    """The host went down: of mailbox and journal some reached the disk and some did not, in whatever order.

    That a record is there says little then: its file may have been freed half a minute before.
    """
    if record.rewrite:
        return Verdict(What.RESCUE, "the host went down, and this may be older than the mailbox")
    if _contains(store, b"".join(session.tail())):
        return Verdict(What.NOTHING, "it was written before the host went down")
    return Verdict(What.COMMIT, "its writer was told of success before the host went down")


def _contains(store: Store, text: bytes) -> bool:
    end, at = _size(store), 0
    while at < end:
        if text in store.read(at, CHUNK + len(text)):
            return True
        at += CHUNK
    return not text


def _judge_rewrite(store: Store, record: Record) -> Verdict:
    state = store.state()
    found = record.found
    if state is None or found is None or state.inode != found.inode:
        return Verdict(What.RESCUE, "the mailbox was replaced since")
    most = max(found.size, record.size + record.kept[1] + 1)
    return Verdict(What.FINISH, "a rewrite was begun", foreign=max(0, state.size - most))


def _judge_append(store: Store, session: Session, record: Record) -> Verdict:
    state = store.state()
    acknowledged = record.state is State.COMMITTED
    later = What.COMMIT if acknowledged else What.NOTHING
    if state is None or record.found is None or state.inode != record.found.inode:
        return Verdict(later, "the mailbox was replaced since")
    if state.size < record.at:
        return Verdict(later, "the mailbox was cut since")
    written, complete = _common(store, appended_text(store, session, record.at), record.at)
    if complete:
        return Verdict(What.NOTHING, "it was written")
    end = record.at + written
    act = What.FINISH if acknowledged else What.CUT_BACK
    if state.size == end:
        if not written and not acknowledged:
            return Verdict(What.NOTHING, "its writing had not begun")
        return Verdict(act, f"{written} bytes were written", record.at, written)
    # The first bytes of another's message may happen to go on as ours would have.
    for ours in range(written, max(-1, written - len(SEPARATOR) - 2), -1):
        start = store.read(record.at + ours, len(SEPARATOR) + 1)
        if ours and (start.startswith((SEPARATOR, b"\n" + SEPARATOR))):
            foreign = state.size - record.at - ours
            return Verdict(
                act, f"{ours} bytes were written, others follow", record.at, ours, foreign
            )
    return Verdict(later, "something else is there")


def _common(store: Store, text: Iterator[bytes], at: int) -> tuple[int, bool]:
    """How many bytes of a text the mailbox has at an offset, and whether that is all of it."""
    start = at
    for chunk in text:
        there = store.read(at, len(chunk))
        if there != chunk:
            return at - start + _common_prefix(there, chunk), False
        at += len(chunk)
    return at - start, True


def _common_prefix(one: bytes, other: bytes) -> int:
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[:middle] == other[:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def carry_out(
    store: Store,
    session: Session,
    verdict: Verdict,
    rescue: Callable[[Iterator[bytes], str], None],
) -> None:
    """Cut back or finish, as judged.

    Args:
        store: the mailbox, locked.
        session: the draft.
        verdict: what `judge` said.
        rescue: keeps a copy of what is about to be moved.

    Raises:
        OSError: of the backing filesystem.

    """
    record = session.record
    if record is None or verdict.what not in (What.CUT_BACK, What.FINISH):
        return
    end = _size(store)
    foreign = list(_read(store, end - verdict.foreign, end)) if verdict.foreign else []
    if foreign:
        rescue(iter(foreign), "mail that another program appended behind an unfinished commit")
    at: int
    if verdict.what is What.CUT_BACK:
        at = verdict.at
    elif record.rewrite:
        kept = session.staging.read(*record.kept) if record.kept[1] else b""
        rewrite(store, session, kept)
        at = _size(store)
    else:
        at = verdict.at
        for chunk in appended_text(store, session, verdict.at):
            store.write(at, chunk)
            at += len(chunk)
    for chunk in foreign:
        store.write(at, chunk)
        at += len(chunk)
    store.truncate(at)
    if session.times is not None:
        store.set_times(session.times)


def _size(store: Store) -> int:
    state = store.state()
    return state.size if state is not None else 0


def _read(store: Store, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, CHUNK):
        yield store.read(at, min(CHUNK, end - at))
