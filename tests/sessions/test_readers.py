"""What a process knows of the mailbox when its reads are not seen, and what becomes of its saves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import trio

from mailfs.errors import Cause, Refused
from mailfs.locking import Mode, Requester
from mailfs.sessions.session import Cursor
from tests.locking.fakes import in_trio
from tests.sessions.fakes import World, world
from tests.sessions.test_merge import message

if TYPE_CHECKING:
    from mailfs.sessions.readers import Window

A, B, C, D = message("a"), message("b"), message("c"), message("d")


def opened(w: World, client: Requester) -> Window:
    window = w.mailbox.opened(client.process)
    assert window is not None
    return window


async def deliver(w: World, *texts: bytes) -> None:
    for text in texts:
        other = w.client("delivery")
        w.append(other, text)
        await w.close(other)


async def rewrite(w: World, text: bytes) -> None:
    other = w.client("other")
    w.save(other, text)
    await w.close(other)


@in_trio
async def test_mail_after_the_window_is_kept() -> None:
    async with world(A + B) as w:
        editor = w.client("vi")
        w.mailbox.closed(opened(w, editor))
        await deliver(w, C)
        w.save(editor, B)
        await w.close(editor)
        assert w.store.content == B + C


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize(
    ("saved", "wanted"), [(B, B + C), (B + C, B + C), (C, C), (B + D + C, B + D + C)]
)
@in_trio
async def test_mail_inside_the_window_is_compared(
    closed: bool, saved: bytes, wanted: bytes
) -> None:
    """It is kept where the save does not have it, and never doubled; what was there at the open may go."""
    async with world(A + B) as w:
        editor = w.client("vi")
        window = opened(w, editor)
        await deliver(w, C)
        if closed:
            w.mailbox.closed(window)
        w.save(editor, saved)
        await w.close(editor)
        assert w.store.content == wanted


@in_trio
async def test_a_later_open_does_not_make_known_what_came_before_it() -> None:
    """vim opens the mailbox again when it saves, to copy it to its backup."""
    async with world(A + B) as w:
        editor = w.client("vim")
        w.mailbox.closed(opened(w, editor))
        await deliver(w, C)
        w.mailbox.closed(opened(w, editor))
        w.save(editor, A)
        await w.close(editor)
        assert w.store.content == A + C


@pytest.mark.parametrize("closed", [True, False])
@in_trio
async def test_a_window_that_saw_a_rewrite_is_stale(closed: bool) -> None:
    async with world(A + B) as w:
        editor = w.client("vi")
        window = opened(w, editor)
        await rewrite(w, B)
        if closed:
            w.mailbox.closed(window)
        with pytest.raises(Refused) as refusal:
            w.save(editor, A)
        assert refusal.value.cause is Cause.STALE
        w.mailbox.discard(editor.process, "refused")
        opened(w, editor)
        w.save(editor, C)
        await w.close(editor)
        assert w.store.content == C, "it has opened the mailbox again since"


@in_trio
async def test_its_own_save_is_no_surprise() -> None:
    """mutt keeps its mailbox open for reading."""
    async with world(A + B) as w:
        reader = w.client("mutt")
        opened(w, reader)
        for text in (B, b"X" + B, A):
            w.save(reader, text)
            await w.close(reader)
            assert w.store.content == text


@in_trio
async def test_reading_under_a_lock_is_known_at_its_end() -> None:
    """mutt locks to look at new mail, through a handle it has had for hours; then it may delete that mail too."""
    async with world(A) as w:
        reader = w.client("mutt")
        opened(w, reader)
        await deliver(w, B)
        await trio.sleep(1)
        w.mailbox.lock.flock(reader, "handle", Mode.READ)
        w.mailbox.unlocking(reader)
        w.mailbox.lock.flock(reader, "handle", None)
        await deliver(w, C)
        w.save(reader, A)
        await w.close(reader)
        assert w.store.content == A + C


@in_trio
async def test_an_unlock_tells_nothing_of_others_mail_kept_behind_a_save() -> None:
    async with world(A) as w:
        reader = w.client("popper")
        opened(w, reader)
        await deliver(w, B)
        await trio.sleep(1)
        w.mailbox.lock.flock(reader, "handle", Mode.WRITE)
        w.save(reader, A + D)
        await w.mailbox.commit_own(reader)
        w.mailbox.unlocking(reader)
        w.mailbox.lock.flock(reader, "handle", None)
        assert w.store.content == A + D + B
        w.save(reader, D)
        await w.close(reader)
        assert w.store.content == D + B


@in_trio
async def test_a_handle_opened_under_the_lock_is_trusted_one_from_before_is_compared() -> None:
    async with world(A + B) as w:
        before, under = w.client("before"), w.client("under")
        opened(w, before)
        await deliver(w, C)
        await trio.sleep(1)
        for client, wanted in ((before, A + C), (under, A)):
            w.mailbox.lock.flock(client, client, Mode.WRITE)
            if client is under:
                opened(w, client)
            w.save(client, A)
            await w.mailbox.commit_own(client)
            w.mailbox.lock.flock(client, client, None)
            assert w.store.content == wanted


@in_trio
async def test_in_place_changes_of_what_may_have_been_read() -> None:
    """Who truncates or overwrites in what came after its open has read it; offsets are those of the mailbox."""
    async with world(A + B) as w:
        reader = w.client("mutt")
        opened(w, reader)
        await deliver(w, C, D)
        whole = w.store.content
        at = len(whole) - 6
        session = w.mailbox.draft(reader.process, reader)
        cursor = Cursor(told=len(whole))
        assert session.place(cursor, at, w.mailbox.size) == at
        session.write(at, b"XX")
        await w.close(reader)
        assert w.store.content == whole[:at] + b"XX" + whole[at + 2 :]


@in_trio
async def test_a_truncation_in_the_window_keeps_whole_messages() -> None:
    async with world(A) as w:
        reader = w.client("mutt")
        opened(w, reader)
        await deliver(w, B, C)
        session = w.mailbox.draft(reader.process, reader)
        session.truncate(len(A + B))
        await w.close(reader)
        assert w.store.content == A + B + C, "whether it has seen the last one nobody knows"


@in_trio
async def test_a_reader_that_appends() -> None:
    async with world(A) as w:
        reader = w.client("shell")
        opened(w, reader)
        w.append(reader, B)
        await w.close(reader)
        await deliver(w, C)
        w.save(reader, A)
        await w.close(reader)
        assert w.store.content == A + C, "its own mail it knows"


@in_trio
async def test_the_journal_tells_what_was_surely_read() -> None:
    """A daemon that finishes a deferred save compares the same messages."""
    async with world(A) as w:
        reader, holder = w.client("mutt"), w.client("holder")
        opened(w, reader)
        await deliver(w, B, C)
        w.mailbox.lock.dotlock(holder)
        session = w.mailbox.draft(reader.process, reader)
        session.truncate(len(A + B))
        await w.close(reader, patience=0)
        assert session.record is not None
        assert (session.record.base, session.record.horizon) == (len(A), len(A + B + C))
        assert (session.record.size, session.record.floor) == (len(A + B), len(A + B))
