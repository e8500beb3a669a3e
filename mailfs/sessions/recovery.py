"""What to do with a draft that an earlier daemon left in the journal (design: "recovery").

What was being written is found again in the mailbox by its bytes: as much of it as is there stands at the place its
record names. Cut back or finished is only what is surely ours. A program outside may have appended behind a torn
message before we came: what it wrote stays. Whatever cannot be decided changes no mailbox.

Each function may be interrupted at any instruction and called again.
"""

from __future__ import annotations

import enum
from copy import copy
from typing import TYPE_CHECKING, NamedTuple

from mailfs.sessions.extents import Extents
from mailfs.sessions.journalling import enter, is_mail, last_of
from mailfs.sessions.merge import SEPARATOR, line_break_before
from mailfs.sessions.record import Record, State
from mailfs.sessions.session import CHUNK, Base
from mailfs.sessions.writing import appended_text, rewrite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from mailfs.sessions.session import Session
    from mailfs.sessions.storage import Journal, Store


HEADERS = 4096
"""Bytes that the beginnings of two messages may have in common."""


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


def judge(store: Store, session: Session, boot: str, *, whole: bool) -> Verdict:
    """Decide; changes nothing.

    Args:
        store: the mailbox.
        session: the draft, as `journalling.recovered` gives it.
        boot: the host's boot id.
        whole: the staging log is what it was.

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
        case State.COMMITTED | State.IMAGE if record.rewrite:
            return _judge_rewrite(store, session, record, boot)
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


def _judge_rewrite(store: Store, session: Session, record: Record, boot: str) -> Verdict:
    """Whoever appends from outside does so behind what there was when we ended.

    That is the mailbox as it was before, all of it, or what stays of it and as much of ours as was written.
    """
    state, found = store.state(), record.found
    if state is None or found is None or state.inode != found.inode:
        return Verdict(What.RESCUE, "the mailbox was replaced since")
    if record.state is State.IMAGE:  # how long its writer has made it, nobody knows
        return Verdict(What.FINISH, "its writer had not finished: what was there is restored")
    why = "a rewrite was begun"
    floor = record.floor
    if state.size >= floor:
        written, complete = _common(store, _rewritten_text(store, session, record), floor)
        end = floor + written
        untouched = floor < found.size <= state.size and end < found.size
        if untouched and last_of(store, found.size) == record.last:
            return Verdict(What.FINISH, why, foreign=state.size - found.size)
        if complete:
            return Verdict(What.FINISH, why, foreign=state.size - end)
        if state.size == end:
            return Verdict(What.FINISH, why)
        foreign = _separator_near(store, floor, written)
        if foreign is not None:
            return Verdict(What.FINISH, f"{why}, others follow", foreign=state.size - foreign)
    if (
        record.boot != boot
    ):  # what was written last need not be on the disk: it is no sign of others
        return Verdict(What.FINISH, why)
    return Verdict(What.RESCUE, "something else is there")


def _rewritten_text(store: Store, session: Session, record: Record) -> Iterator[bytes]:
    """What a rewrite writes behind the part of the mailbox that stays."""
    yield from session.text(record.floor)
    kept = session.staging.read(*record.kept)
    if kept:
        last = session.read(store, session.size - 1, 1) if session.size else b""
        yield line_break_before(last, kept) + kept


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
    foreign = _separator_near(store, record.at, written)
    if foreign is not None and foreign > record.at:
        ours = foreign - record.at
        why = f"{ours} bytes were written, others follow"
        return Verdict(act, why, record.at, ours, state.size - foreign)
    return Verdict(later, "something else is there")


def _separator_near(store: Store, at: int, written: int) -> int | None:
    """Where another's message begins behind what we wrote.

    Its first bytes may happen to go on as ours would have: a few if we ended anywhere, as many as two messages have in
    common at their beginnings if we ended with a message.
    """
    end = at + written
    start = max(at, end - HEADERS)
    text = store.read(start, end - start + len(SEPARATOR) + 1)
    found = end - start
    for ours in range(found, max(-1, found - len(SEPARATOR) - 2), -1):
        if text[ours:].startswith((SEPARATOR, b"\n" + SEPARATOR)):
            return start + ours
    begin = text.rfind(b"\n" + SEPARATOR, 0, found) + 1
    if begin and b"\n\n" not in text[begin:found]:
        return start + begin
    return None


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
    name: bytes,
    store: Store,
    session: Session,
    journal: Journal,
    verdict: Verdict,
    rescue: Callable[[Iterator[bytes], str], None],
) -> None:
    """Cut back or finish, as judged.

    Args:
        name: of the mailbox.
        store: it, locked.
        session: the draft.
        journal: where it is.
        verdict: what `judge` said.
        rescue: keeps a copy of what is about to be moved.

    Raises:
        OSError: of the backing filesystem.

    """
    record = session.record
    if record is None or verdict.what not in (What.CUT_BACK, What.FINISH):
        return
    if verdict.foreign:
        end = _size(store)
        foreign = b"".join(_read(store, end - verdict.foreign, end))
        rescue(iter([foreign]), "mail that another program appended behind an unfinished commit")
        record = _keep_behind(name, store, session, journal, verdict, foreign)
    if record.rewrite:
        rewrite(store, session, session.staging.read(*record.kept))
    elif verdict.what is What.CUT_BACK:
        store.truncate(verdict.at)
    else:
        at = verdict.at
        for chunk in appended_text(store, session, verdict.at):
            store.write(at, chunk)
            at += len(chunk)
        store.truncate(at)
    if session.times is not None and verdict.what is What.FINISH:
        store.set_times(session.times)


def _keep_behind(
    name: bytes,
    store: Store,
    session: Session,
    journal: Journal,
    verdict: Verdict,
    foreign: bytes,
) -> Record:
    """Make the record one of a rewrite that has mail of others behind it, so that moving that can be cut short too."""
    record = session.record
    assert record is not None
    kept = session.staging.read(*record.kept)
    if foreign.startswith(b"\n" + SEPARATOR):
        foreign = foreign[1:]
    moved = copy(session)
    moved.extents = Extents(session.extents)
    if not record.rewrite:
        at = verdict.at
        first = next(session.tail(), b"")
        gap = len(next(appended_text(store, session, at), b"")) - len(first)  # a line break
        moved.rebase(Base(0, at + gap, at + gap))
        moved.floor, moved.truncated = at, True
        if verdict.what is What.CUT_BACK:
            moved.truncate(at)
        elif gap:
            moved.extents.put(at, gap, session.staging.append(b"\n"))
    kept += line_break_before(kept[-1:], foreign) + foreign
    record = enter(moved, State.COMMITTED, name, store, journal, kept=kept, synced=record.synced)
    vars(session).update(vars(moved))
    return record


def _size(store: Store) -> int:
    state = store.state()
    return state.size if state is not None else 0


def _read(store: Store, start: int, end: int) -> Iterator[bytes]:
    for at in range(start, end, CHUNK):
        yield store.read(at, min(CHUNK, end - at))
