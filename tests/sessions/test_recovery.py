"""What is done with a record, case by case (`mailfs.sessions.recovery.judge`); the rest is in test_crash."""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from mailfs.locking.model import Requester
from mailfs.sessions.journalling import enter, is_whole, recovered
from mailfs.sessions.record import State
from mailfs.sessions.recovery import What, carry_out, judge
from mailfs.sessions.session import Base, Session
from mailfs.sessions.staging import Staging
from tests.sessions.fakes import FakeJournal, FakeStore
from tests.sessions.lives import message

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailfs.sessions.recovery import Verdict
    from tests.sessions.fakes import FakeSlot

A, B, C, X = (message(name) for name in "abcx")
X_LIKE_C = C.replace(b"<c>", b"<cc>")  # begins as C does
BOOT = FakeJournal.boot


class Found:
    """A mailbox and one record, as a daemon finds them."""

    def __init__(self, state: State, text: bytes = A + B) -> None:
        self.store = FakeStore(text)
        self.journal = FakeJournal()
        self.state = state
        self.end = len(text)
        self.synced = False
        self.rescued: list[bytes] = []

    def draft(self) -> Session:
        base = Base(0, self.end, self.end)
        return Session(Requester(None, 1000, 0), base, Staging(1 << 20, self.journal.slot))

    def enter(self, session: Session, kept: bytes = b"") -> None:
        enter(
            session,
            self.state,
            b"alice",
            self.store,
            self.journal,
            at=self.end,
            kept=kept,
            synced=self.synced,
        )

    def append(self, *texts: bytes) -> Found:
        session = self.draft()
        for text in texts:
            session.write(session.size, text)
        self.enter(session)
        return self

    def save(self, text: bytes, kept: bytes = b"") -> Found:
        session = self.draft()
        session.truncate(0)
        session.write(0, text)
        self.enter(session, kept)
        return self

    @property
    def slot(self) -> FakeSlot:
        return self.journal.slots[0]

    def session(self) -> Session:
        return recovered(self.slot, self.slot.record)

    def verdict(self, boot: str = BOOT) -> Verdict:
        whole = is_whole(self.slot, self.slot.record)
        return judge(self.store, self.session(), boot, whole=whole)

    def carried_out(self) -> bytes:
        def rescue(content: Iterator[bytes], _why: str) -> None:
            self.rescued.append(b"".join(content))

        session, verdict = self.session(), self.verdict()
        carry_out(b"alice", self.store, session, self.journal, verdict, rescue)
        return self.store.content


@pytest.mark.parametrize(
    ("state", "texts", "what"),
    [
        (State.FREE, (C,), What.NOTHING),
        (State.PENDING, (C[:20],), What.COMMIT),
        (State.SYNCED, (C, X), What.COMMIT),
        (State.SYNCED, (C, X[:20]), What.RESCUE),
        (State.SYNCED, (C[1:],), What.RESCUE),
        (State.SYNCED, (C.replace(b"line", b"\0\0\0\0"),), What.RESCUE),
        (State.INTENT, (C,), What.NOTHING),
        (State.COMMITTED, (C,), What.FINISH),
    ],
)
def test_an_append_of_which_nothing_is_there(
    state: State, texts: tuple[bytes, ...], what: What
) -> None:
    assert Found(state).append(*texts).verdict().what is what


@pytest.mark.parametrize("state", [State.INTENT, State.COMMITTED])
@pytest.mark.parametrize("foreign", [b"", X, b"\n" + X, X + A])
@pytest.mark.parametrize("written", range(1, len(C)))
def test_an_append_torn_at_any_byte(state: State, foreign: bytes, written: int) -> None:
    found = Found(state).append(C)
    found.store.write(found.end, C[:written] + foreign)
    if (C[:written] + foreign).startswith(C):  # the line break of another has made it whole
        assert found.verdict().what is What.NOTHING
        return
    ours = b"" if state is State.INTENT else C
    content = found.carried_out()
    assert content == A + B + ours + foreign.lstrip(b"\n")
    assert bool(found.rescued) == bool(foreign)


def test_others_begin_like_ours() -> None:
    """We ended with a message, and what another appended goes on for long as ours would have."""
    found = Found(State.COMMITTED).append(B, C)
    found.store.write(found.end, B + X_LIKE_C)
    assert found.carried_out() == A + B + B + C + X_LIKE_C


@pytest.mark.parametrize("state", [State.INTENT, State.COMMITTED])
def test_a_whole_append_stays(state: State) -> None:
    found = Found(state).append(C)
    found.store.write(found.end, C + X)
    assert found.verdict().what is What.NOTHING


@pytest.mark.parametrize(
    ("state", "what"), [(State.INTENT, What.NOTHING), (State.COMMITTED, What.COMMIT)]
)
def test_an_append_whose_mailbox_is_another(state: State, what: What) -> None:
    found = Found(state).append(C)
    found.store.write(found.end, C[:30])
    found.store.inode += 1
    assert found.verdict().what is what
    found.store.inode -= 1
    found.store.truncate(10)
    assert found.verdict().what is what
    found.store.text = None
    assert found.verdict().what is what
    found.store.text = bytearray(A + B + C[:30] + b"something else")
    assert found.verdict().what is what


@pytest.mark.parametrize("foreign", [b"", X, X_LIKE_C + X])
@pytest.mark.parametrize("written", range(len(A + C)))
def test_a_save_torn_at_any_byte(foreign: bytes, written: int) -> None:
    """B is left out, C came meanwhile."""
    found = Found(State.COMMITTED).save(A, kept=C)
    found.store.text = bytearray((A + C)[:written] + foreign)
    if foreign and (A + C)[:written][-1:] not in (b"", b"\n"):
        found.store.text = bytearray((A + C)[:written] + b"\n" + foreign)
    assert found.carried_out() == A + C + foreign
    assert found.rescued == ([foreign] if foreign else []) or found.rescued == [b"\n" + foreign]


@pytest.mark.parametrize("foreign", [b"", X, B + C])
def test_a_save_that_had_not_begun(foreign: bytes) -> None:
    found = Found(State.COMMITTED, A + B + C).save(A + C)
    found.store.write(found.end, foreign)
    assert found.carried_out() == A + C + foreign


def test_a_save_of_a_mailbox_that_is_another() -> None:
    found = Found(State.COMMITTED).save(B)
    found.store.inode += 1
    assert found.verdict().what is What.RESCUE
    found.store.inode -= 1
    found.store.text = bytearray(b"somebody wrote this")
    assert found.verdict().what is What.RESCUE
    assert found.verdict("another boot").what is What.RESCUE
    found.store.text = None
    assert found.verdict().what is What.RESCUE


@pytest.mark.parametrize(("synced", "what"), [(False, What.RESCUE), (True, What.FINISH)])
def test_a_save_when_the_host_went_down(synced: bool, what: What) -> None:
    """What was not synced may be older than the mailbox; what was is finished whatever of it is there."""
    found = Found(State.COMMITTED)
    found.synced = synced
    found.save(B)
    found.store.text = bytearray(30)
    assert found.verdict("another boot").what is what


@pytest.mark.parametrize("state", list(State))
def test_a_damaged_log_changes_no_mailbox(state: State) -> None:
    found = Found(state).append(C)
    found.slot.text[5] ^= 1
    before = found.store.content
    what = found.verdict().what
    assert what is (What.NOTHING if state in (State.FREE, State.INTENT) else What.RESCUE)
    assert found.carried_out() == before
    found.slot.text[5] ^= 1
    del found.slot.text[-1:]
    assert found.verdict().what is what


def test_recovery_may_be_cut_short() -> None:
    """While mail of others is moved the record is one of a rewrite, which can be begun again."""
    found = Found(State.INTENT).append(C)
    found.store.write(found.end, C[:20] + X)
    found.store.failing = OSError(5, "no")
    with pytest.raises(OSError, match="no"):
        found.carried_out()
    found.store.failing = None
    assert found.slot.record.rewrite
    assert found.carried_out() == A + B + X
    assert found.carried_out() == A + B + X
    assert msgspec.structs.asdict(found.slot.record)["state"] is State.COMMITTED
