"""Drafts and commits on a mailbox in memory, under a mock clock."""

from __future__ import annotations

import errno

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from mailfs.errors import Cause, Refused
from mailfs.locking import Mode
from mailfs.sessions.readers import GONE
from mailfs.sessions.record import State
from mailfs.sessions.session import Cursor
from mailfs.sessions.storage import Times
from tests.locking.fakes import in_trio
from tests.sessions.fakes import world
from tests.sessions.test_merge import message

A, B, C = message("a"), message("b"), message("c")


@in_trio
async def test_an_append_is_seen_when_it_is_closed() -> None:
    async with world(A) as w:
        one = w.client()
        w.append(one, B[:10], B[10:])
        assert w.store.content == A
        draft = w.mailbox.last_draft(one.process)
        assert draft is not None
        assert draft.size == len(A + B)
        await w.close(one)
        assert w.store.content == A + B


@in_trio
async def test_appends_do_not_mix() -> None:
    async with world(A) as w:
        one, two = w.client(), w.client()
        w.append(one, B[:10])
        w.append(two, C[:10])
        w.append(one, B[10:])
        w.append(two, C[10:])
        await w.close(two)
        await w.close(one)
        assert w.store.content == A + C + B


@in_trio
async def test_a_separator_after_an_unfinished_line() -> None:
    async with world(b"From x\n\nno end") as w:
        one = w.client()
        w.append(one, A)
        await w.close(one)
        assert w.store.content == b"From x\n\nno end\n" + A


@in_trio
async def test_an_append_waits_for_a_lock_without_its_writer() -> None:
    async with world(A) as w:
        holder, one = w.client("holder"), w.client("writer")
        claim = w.mailbox.lock.dotlock(holder)
        w.append(one, B)
        await w.close(one)
        assert w.store.content == A
        w.mailbox.lock.release(claim)
        await wait_all_tasks_blocked()
        assert w.store.content == A + B


@in_trio
async def test_deferred_appends_keep_their_order() -> None:
    async with world() as w:
        holder, one = w.client("holder"), w.client("writer")
        claim = w.mailbox.lock.dotlock(holder)
        for text in (A, B, C):
            w.append(one, text)
            await w.close(one)
        w.mailbox.lock.release(claim)
        await wait_all_tasks_blocked()
        assert w.store.content == A + B + C


@in_trio
async def test_a_rewrite_waits_in_close_only_for_a_moment() -> None:
    async with world(A + B) as w:
        holder, one = w.client("holder"), w.client("editor")
        claim = w.mailbox.lock.dotlock(holder)
        w.read(one)
        w.save(one, B)
        start = trio.current_time()
        await w.close(one, patience=2)
        assert trio.current_time() - start == pytest.approx(2)
        assert w.store.content == A + B
        w.mailbox.lock.release(claim)
        await wait_all_tasks_blocked()
        assert w.store.content == B


@in_trio
async def test_a_stale_save_keeps_the_mail_that_came_meanwhile() -> None:
    async with world(A + B) as w:
        editor, agent = w.client("vi"), w.client("procmail")
        w.read(editor)
        w.append(agent, C)
        await w.close(agent)
        w.save(editor, B)
        await w.close(editor)
        assert w.store.content == B + C
        w.save(editor, B)  # and again: the editor still knows nothing of C
        await w.close(editor)
        assert w.store.content == B + C


@in_trio
async def test_a_save_over_another_rewrite_is_refused() -> None:
    async with world(A + B) as w:
        one, two = w.client("vi"), w.client("mutt")
        w.read(one)
        w.read(two)
        w.save(two, A)
        await w.close(two)
        with pytest.raises(Refused) as refused:
            w.save(one, B)
        assert refused.value.cause is Cause.STALE
        assert w.store.content == A


@in_trio
async def test_a_rewrite_that_became_stale_while_staged_is_rescued() -> None:
    async with world(A + B) as w:
        one, two = w.client("vi"), w.client("mutt")
        w.read(one)
        w.save(one, B)
        w.save(two, C)
        await w.close(two)
        with pytest.raises(Refused) as refused:
            await w.close(one)
        assert refused.value.cause is Cause.STALE
        assert w.store.content == C
        assert w.rescued == [(B, str(refused.value))]


@in_trio
async def test_a_lock_holder_that_read_under_its_lock_is_trusted() -> None:
    async with world(A) as w:
        reader, agent = w.client("mutt"), w.client("procmail")
        w.read(reader)
        w.append(agent, B)
        await w.close(agent)
        claim = w.mailbox.lock.dotlock(reader)
        await trio.sleep(1)
        w.read(reader)
        w.save(reader, C)
        await w.mailbox.commit_own(reader)
        w.mailbox.lock.release(claim)
        assert w.store.content == C


@in_trio
async def test_a_lock_holder_that_did_not_look_is_not() -> None:
    async with world(A) as w:
        popper, agent = w.client("popper"), w.client("procmail")
        w.read(popper)
        w.append(agent, B)
        await w.close(agent)
        await trio.sleep(1)
        claim = w.mailbox.lock.dotlock(popper)
        w.save(popper, b"")
        await w.mailbox.commit_own(popper)
        w.mailbox.lock.release(claim)
        assert w.store.content == B


@in_trio
async def test_an_in_place_change_touches_only_its_bytes() -> None:
    async with world(A + B) as w:
        one, agent = w.client("mutt"), w.client("procmail")
        w.read(one)
        w.append(agent, C)
        await w.close(agent)
        session = w.mailbox.draft(one.process, one)
        session.write(2, b"XX")
        await w.close(one)
        assert w.store.content == (A[:2] + b"XX" + A[4:] + B + C)


@in_trio
async def test_growing_outside_is_an_append_shrinking_is_not() -> None:
    async with world(A) as w:
        one = w.client("vi")
        w.read(one)
        w.store.write(len(A), B)
        w.mailbox.refresh()
        assert w.mailbox.rewrites == 0
        w.store.truncate(3)
        w.mailbox.refresh()
        assert w.mailbox.rewrites == 1


@in_trio
async def test_a_full_disk_leaves_the_mailbox_as_it_was() -> None:
    async with world(A) as w:
        one = w.client()
        w.append(one, B)
        w.store.failing = OSError(errno.ENOSPC, "full")
        with pytest.raises(OSError, match="full"):
            await w.close(one)
        w.store.failing = None
        assert w.store.content == A
        assert w.mailbox.lock.claims == ()


@in_trio
async def test_a_deferred_append_that_fails_is_tried_again() -> None:
    async with world(A) as w:
        holder, one = w.client("holder"), w.client("writer")
        claim = w.mailbox.lock.dotlock(holder)
        w.append(one, B)
        await w.close(one)
        w.store.failing = OSError(errno.EIO, "broken")
        w.mailbox.lock.release(claim)
        await wait_all_tasks_blocked()
        assert w.store.content == A
        assert [record.state for record in w.journal.records] == [State.PENDING]
        w.store.failing = None
        await trio.sleep(2)
        assert w.store.content == A + B
        assert w.journal.records == []


@in_trio
async def test_a_revoked_agent_is_fenced() -> None:
    async with world(A) as w:
        slow, other = w.client("slow"), w.client("other")
        claim = w.mailbox.lock.dotlock(slow)
        w.append(slow, B)
        w.mailbox.lock.revoke(claim, "test")
        w.mailbox.fence(claim)
        w.append(other, C)
        await w.close(other)
        with pytest.raises(Refused) as refused:
            w.append(slow, B)
        assert refused.value.cause is Cause.FENCED
        with pytest.raises(Refused):
            await w.close(slow)
        with pytest.raises(Refused):
            w.append(slow, B)
        assert w.store.content == A + C


@in_trio
async def test_discard_leaves_nothing() -> None:
    async with world(A) as w:
        one = w.client()
        w.append(one, B)
        assert w.mailbox.lock.claims != ()
        w.mailbox.discard(one.process, "killed")
        assert w.mailbox.lock.claims == ()
        await w.close(one)
        assert w.store.content == A


@in_trio
async def test_settle_commits_everything() -> None:
    async with world(A) as w:
        holder, one, two = w.client("holder"), w.client(), w.client()
        w.mailbox.lock.dotlock(holder)
        w.append(one, B)
        await w.close(one)
        w.append(two, C)
        with trio.fail_after(5):
            await w.mailbox.settle()
        assert w.store.content == A + B + C


@in_trio
async def test_idle_drafts_are_committed() -> None:
    async with world(A) as w:
        one = w.client()
        w.append(one, B)
        await trio.sleep(20)
        await w.mailbox.commit_idle(30)
        assert w.store.content == A
        await trio.sleep(10)
        await w.mailbox.commit_idle(30)
        assert w.store.content == A + B


@in_trio
async def test_a_removed_mailbox_is_made_anew_for_staged_mail() -> None:
    async with world(A) as w:
        one, owner = w.client(), w.client("rm")
        w.append(one, B)

        def unlink() -> None:
            w.store.text = None

        claim = w.mailbox.sessions[one.process].claim
        assert claim is not None
        w.mailbox.lock.release(claim)
        await w.mailbox.remove(owner, unlink)
        await w.close(one)
        assert w.store.content == B


@in_trio
async def test_large_drafts_spill_and_commit_in_a_thread() -> None:
    async with world(A) as w:
        one = w.client()
        text = b"From big\n" + b"x" * 3_000_000 + b"\n"
        w.append(one, text[:1000], text[1000:])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(w.close, one)
            await wait_all_tasks_blocked()
            assert not w.mailbox.settled.is_set()
            assert w.mailbox.size == len(A)
        assert w.mailbox.settled.is_set()
        assert w.store.content == A + text


@pytest.mark.parametrize(
    ("told", "offset", "lands"),
    [
        (10, 10, 10),  # seek to the end, then write
        (25, 25, 10),  # the end it was told was another caller's, larger
        (7, 7, 10),  # or older: mail came in between
        (10, 3, 3),  # below the end: an overwrite
    ],
)
@in_trio
async def test_where_a_write_belongs(told: int, offset: int, lands: int) -> None:
    async with world(b"0123456789") as w:
        one = w.client()
        session = w.mailbox.draft(one.process, one)
        cursor = Cursor(told=told)
        at = session.place(cursor, offset, 10)
        assert at == lands
        session.write(at, b"abc")
        if lands == 10:
            assert session.place(cursor, offset + 3, 10) == 13
            assert session.place(cursor, offset + 1, 10) == 11


@in_trio
async def test_modes_of_claims() -> None:
    async with world(A) as w:
        one = w.client()
        w.append(one, B)
        (claim,) = w.mailbox.lock.claims
        assert claim.mode is Mode.APPEND


@in_trio
async def test_two_handles_of_one_process_append_two_messages() -> None:
    async with world(A) as w:
        one = w.client()
        for key, text in (("h1", B), ("h2", C[:9])):
            session = w.mailbox.draft(key, one)
            session.write(session.size, text)
        await w.mailbox.commit("h1", patience=0)
        assert w.store.content == A + B
        session = w.mailbox.draft("h2", one)
        session.write(session.size, C[9:])
        await w.mailbox.commit("h2", patience=0)
        assert w.store.content == A + B + C


@in_trio
async def test_two_handles_of_one_process_rewrite_together() -> None:
    async with world(A + B) as w:
        one = w.client()
        w.read(one)
        w.mailbox.draft("h1", one).truncate(0)
        session = w.mailbox.draft("h2", one)
        assert session.read(w.store, 0, 99) == b""
        session.write(0, C)
        await w.mailbox.commit("h2", patience=0)
        assert w.store.content == C
        assert not w.mailbox.sessions


@in_trio
async def test_no_backlog_stays_behind_a_lock_that_is_gone() -> None:
    """Whoever commits next commits what was deferred before it, so success again means: it is in the mailbox."""
    async with world() as w:
        holder, one, two = w.client("holder"), w.client("one"), w.client("two")
        claim = w.mailbox.lock.dotlock(holder)
        for text in (A, B):
            w.append(one, text)
            await w.close(one)
        w.mailbox.lock.release(claim)
        w.append(two, C)
        await w.close(two)
        assert w.store.content == A + B + C
        assert not w.mailbox.deferred


@in_trio
async def test_a_holder_commits_its_own_and_leaves_the_others_waiting() -> None:
    async with world() as w:
        holder, one = w.client("holder"), w.client("one")
        claim = w.mailbox.lock.dotlock(holder)
        w.append(one, A)
        await w.close(one)
        w.append(holder, B)
        await w.close(holder)
        assert w.store.content == B
        w.mailbox.lock.release(claim)
        await wait_all_tasks_blocked()
        assert w.store.content == B + A


@in_trio
async def test_an_unmount_does_not_wait_for_ever_for_a_program_outside() -> None:
    async with world(A) as w:
        w.outside.set_foreign(True)
        one = w.client()
        w.append(one, B)
        await w.close(one)
        with trio.fail_after(30):
            await w.mailbox.settle()
        assert w.store.content == A
        assert [record.state for record in w.journal.records] == [State.PENDING]


@in_trio
async def test_a_change_outside_that_leaves_the_size_is_a_rewrite() -> None:
    async with world(A) as w:
        one = w.client("vi")
        w.read(one)
        w.store.write(0, A[:4])  # a new mtime and nothing else
        with pytest.raises(Refused) as refused:
            w.save(one, B)
        assert refused.value.cause is Cause.STALE


@in_trio
async def test_what_we_do_to_the_times_is_no_change_outside() -> None:
    async with world(A) as w:
        one, two, three = w.client("vi"), w.client("cat"), w.client("dd")
        w.read(one)
        w.append(two, B)  # room is set aside
        w.mailbox.discard(two.process, "killed")
        w.mailbox.set_times(Times(1, 2))
        w.append(three, B)
        w.store.failing = OSError(errno.ENOSPC, "full")
        with pytest.raises(OSError, match="full"):
            await w.close(three)
        w.store.failing = None
        w.save(one, C)
        await w.close(one)
        assert w.store.content == C


@in_trio
async def test_a_new_file_takes_the_place_beside_a_reader_but_not_of_a_save_that_was_taken() -> (
    None
):
    async with world(A) as w:
        cat, sed, editor = w.client("cat"), w.client("sed"), w.client("ed")
        lock = w.mailbox.lock
        assert lock.reader(cat, "cat", 10.0)
        w.read(sed)

        async def swap(kept: bytes, _ends_line: bool) -> None:
            w.store.text = bytearray(C + kept)
            w.store.inode += 1

        await w.mailbox.replace(sed, lambda: C, swap)
        assert w.store.content == C
        assert not lock.claims, "the reader reads the old file"
        assert lock.reader(cat, "cat", 10.0)
        w.read(editor)
        w.save(editor, B)
        await w.close(editor)
        assert w.mailbox.deferred
        with pytest.raises(Refused) as refused:
            await w.mailbox.replace(sed, lambda: C, swap)
        assert refused.value.cause is Cause.LOCK_HELD
        lock.end_readers()
        await wait_all_tasks_blocked()
        assert w.store.content == B


@in_trio
async def test_a_save_of_what_was_read_across_a_rewrite_is_stale() -> None:
    async with world(A) as w:
        slow, quick = w.client("slow"), w.client("quick")
        began = w.mailbox.rewrites
        w.read(quick)
        w.save(quick, B)
        await w.close(quick)
        assert slow.process is not None
        w.mailbox.saw(slow.process, began)
        with pytest.raises(Refused) as refused:
            w.save(slow, C)
        assert refused.value.cause is Cause.STALE
        assert w.store.content == B


@in_trio
async def test_two_saves_with_readers_of_their_own_are_not_in_each_others_way() -> None:
    async with world(A) as w:
        start, clients = trio.current_time(), [w.client("one"), w.client("two")]
        for client in clients:
            assert w.mailbox.lock.reader(client, client, 2.0)
            w.read(client)
            w.save(client, B)
        await w.close(clients[0], patience=0)
        assert w.mailbox.deferred, "the other reads still"
        with pytest.raises(Refused):
            await w.close(clients[1])
        assert trio.current_time() - start < 0.1
        assert w.store.content == B


@in_trio
async def test_a_lock_makes_nobody_trusted_who_reads_the_file_that_was_replaced() -> None:
    async with world(A) as w:
        client = w.client()
        w.mailbox.lock.dotlock(client)
        assert client.process is not None
        w.mailbox.saw(client.process, GONE)
        with pytest.raises(Refused) as refused:
            w.save(client, C)
        assert refused.value.cause is Cause.STALE
        w.mailbox.discard(client.process, "refused")
        w.read(client)
        w.save(client, B)
        await w.close(client)
        assert w.store.content == B
