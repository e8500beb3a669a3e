"""Recovery: what earlier daemons have left in the journal is brought to an end.

Done before every mount, and by ``mailfs recover``. Half-written mailboxes come first to one of their states, under the
lock of the real file; whoever holds that outside is waited for, but not long, and the mailbox then waits as one that
the disk kept from being finished (`Mailbox.stuck`): nobody reads or writes it before. Drafts whose writers were told of
success are then committed like all that waits for a lock.

A damaged journal never changes a mailbox: what cannot be used is moved to rescue.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

import trio

from mailfs.daemon.background import Background
from mailfs.daemon.core import Core, opened
from mailfs.daemon.errors import Exit, MountError
from mailfs.locking.model import Mode
from mailfs.sessions.journalling import is_whole, recovered, withdraw
from mailfs.sessions.record import Damaged, Record, State
from mailfs.sessions.recovery import Verdict, What, carry_out, judge
from mailfs.spool.journal import boot_id, look
from mailfs.spool.mailbox_file import MailboxFile

if TYPE_CHECKING:
    from collections.abc import Iterator

    from mailfs.daemon.config import Config
    from mailfs.sessions.mailbox import Mailbox
    from mailfs.sessions.session import Session
    from mailfs.spool.door import Door
    from mailfs.spool.journal import JournalFile
    from mailfs.spool.private import PrivateDirectory

log = logging.getLogger(__name__)

PATIENCE = 5.0
"""Seconds that mounting waits for programs outside that have locked half-written mailboxes, in all."""


class Step(NamedTuple):
    """One record, and what recovery does with it or has done."""

    file: bytes
    mailbox: bytes  # empty if the journal does not tell
    what: What
    why: str
    draft: str = ""
    done: bool = False


def plan(door: Door) -> list[Step]:
    """What recovery would do, looking only. Raises OSError."""
    steps = []
    for file, header in look(door):
        try:
            steps.append(_planned(door, file, header))
        finally:
            file.leave()
    return [step for step in steps if step.what is not What.NOTHING or step.mailbox]


def _planned(door: Door, file: JournalFile, header: Record | Damaged) -> Step:
    if isinstance(header, Damaged):
        return Step(file.name, b"", What.RESCUE, header.why)
    if header.state is State.FREE:
        return Step(file.name, b"", What.NOTHING, "")
    session = recovered(file, header)
    store = MailboxFile(door, (header.name,))
    verdict = judge(store, session, boot_id(), whole=is_whole(file, header))
    return Step(file.name, header.name, verdict.what, verdict.why, session.describe())


async def recover(core: Core, patience: float = PATIENCE) -> list[Step]:
    """Bring what is left in the journal to an end; drafts to be committed are only handed over to their mailboxes.

    Raises:
        OSError: the journal cannot be read.

    """
    steps = []
    waiting: list[tuple[Mailbox, Session]] = []
    rewritten = set()
    with trio.move_on_after(patience) as limit:
        for file, header in sorted(core.journal.left(), key=_waits):
            step = await _recover(core, file, header, limit, waiting)
            if step is None:
                continue
            steps.append(step)
            if step.what is What.FINISH and isinstance(header, Record) and header.rewrite:
                rewritten.add(header.name)
            level = logging.WARNING if step.what is What.RESCUE else logging.INFO
            log.log(level, "recovery of %r: %s: %s (%s, journal file %r)",
                    step.mailbox, step.what.value, step.why, step.draft, step.file)  # fmt: skip
    # Only now that no mailbox is half written: from here on they are committed in the background.
    for mailbox, session in sorted(waiting, key=_sequence):
        mailbox.adopt(session, rewritten=mailbox.name in rewritten)
    drop_aliases(core.door, core.private)
    core.journal.prepare()
    return steps


def recover_offline(config: Config, spool: str, patience: float) -> tuple[list[Step], list[bytes]]:
    """Recover a spool that is not mounted, to the last commit.

    Args:
        config: what is in force.
        spool: the real directory.
        patience: seconds to wait for programs outside that have locked mailboxes.

    Returns:
        What was done, and the mailboxes for which something is in the journal still.

    Raises:
        MountError: a daemon serves it, or it cannot be used.

    """
    with opened(spool) as (door, private):
        try:
            return trio.run(_recover_offline, config, door, private, patience)
        except* OSError as errors:
            first = errors.exceptions[0]
            raise MountError(f"the journal of {spool}: {first}", Exit.IOERR) from errors


async def _recover_offline(
    config: Config, door: Door, private: PrivateDirectory, patience: float
) -> tuple[list[Step], list[bytes]]:
    async with trio.open_nursery() as nursery:
        background = Background(nursery)
        core = Core(config, door, private, background)
        steps = await recover(core, patience)
        background.start_soon(core.backing.run)
        with trio.move_on_after(patience):
            for mailbox in core.mailboxes.values():
                while mailbox.deferred or mailbox.stuck:
                    await mailbox.retry_stuck()
                    await trio.sleep(0.02)
        left = core.leave()
        nursery.cancel_scope.cancel()
    core.close()
    return steps, left


def _waits(each: tuple[JournalFile, Record | Damaged]) -> bool:
    header = each[1]
    return isinstance(header, Damaged) or header.state in (State.PENDING, State.SYNCED)


def _sequence(each: tuple[Mailbox, Session]) -> int:
    record = each[1].record
    return record.sequence if record is not None else 0


async def _recover(
    core: Core,
    file: JournalFile,
    header: Record | Damaged,
    limit: trio.CancelScope,
    waiting: list[tuple[Mailbox, Session]],
) -> Step | None:
    if isinstance(header, Damaged):
        kept = core.private.keep_damaged(file.name)
        file.leave()
        return Step(file.name, b"", What.RESCUE, header.why, done=kept)
    if header.state is State.FREE:
        file.close()
        return None
    name = header.name
    try:
        session = recovered(file, header)
        mailbox = core.mailbox(name)
        mailbox.store.owner = mailbox.store.owner or header.owner
        work = Unfinished(core, mailbox, session, whole=is_whole(file, header))
        verdict = work.judge()
        step = Step(file.name, name, verdict.what, verdict.why, session.describe())
        if verdict.what is What.COMMIT:
            waiting.append((mailbox, session))
            return step
        if verdict.what is What.RESCUE and not work.whole:
            done = core.private.keep_damaged(
                file.name
            )  # as it is: nobody knows what of it is right
            file.leave()
            return step._replace(done=done)
        if verdict.what is What.RESCUE:
            done = mailbox.give_up(session, verdict.why)
            return step._replace(done=done)
        if verdict.what is not What.NOTHING and not await _locked(core, name, limit):
            log.warning("%r is locked outside and half written: it waits", name)
            mailbox.stuck = work
            return step
        try:
            work.finish()
        except OSError as error:
            log.error("%r is half written still: %s", name, error)  # noqa: TRY400 -- the disk's
            mailbox.stuck = work
            return step
        finally:
            core.backing.lock_for((name,)).release()
            mailbox.store.rest()
            mailbox.refresh()
    except OSError as error:
        log.error("journal file %r of %r cannot be used: %s", file.name, name, error)  # noqa: TRY400
        file.leave()
        return Step(file.name, name, What.RESCUE, str(error))
    if work.waits:
        waiting.append((mailbox, session))
    return step._replace(done=True)


async def _locked(core: Core, name: bytes, limit: trio.CancelScope) -> bool:
    """Take the real file's lock; False if somebody outside keeps it."""
    lock = core.backing.lock_for((name,))
    with trio.CancelScope(shield=True) as scope:
        scope.deadline = max(limit.deadline, trio.current_time() + 0.1)
        await lock.acquire(Mode.WRITE)
    return lock.held


class Unfinished:
    """A change of a mailbox that an earlier daemon began (`mailfs.sessions.writing.Work`)."""

    def __init__(self, core: Core, mailbox: Mailbox, session: Session, *, whole: bool) -> None:
        self.session = session
        self.bytes = session.staging.size
        self._core = core
        self._mailbox = mailbox
        self.whole = whole

    def judge(self) -> Verdict:
        """What is to be done. Raises OSError."""
        boot = self._core.journal.boot
        return judge(self._mailbox.store, self.session, boot, whole=self.whole)

    @property
    def waits(self) -> bool:
        """Whether it is to be committed like what waits for a lock: the mailbox was replaced meanwhile."""
        record = self.session.record
        return record is not None and record.state is State.PENDING

    def run(self) -> None:
        """It was begun already."""
        self.finish()

    def finish(self) -> None:
        """Cut back, or finish. Raises OSError."""
        verdict = self.judge()  # again: it may have waited for a lock, while somebody else had it
        if verdict.what is What.COMMIT:
            withdraw(self.session, State.PENDING)
            return
        if verdict.what is What.RESCUE:
            self._mailbox.give_up(self.session, verdict.why)
            return
        core, mailbox = self._core, self._mailbox
        synced = core.surroundings.durable or self.session.synced
        if verdict.what is not What.NOTHING:
            carry_out(
                mailbox.name, mailbox.store, self.session, core.journal, verdict, self._rescue
            )
            if synced:
                mailbox.store.sync()
        self.session.staging.close(synced=synced)

    def _rescue(self, content: Iterator[bytes], why: str) -> None:
        owner = self._mailbox.store.owner
        uid = owner[0] if owner is not None else 0
        self._core.private.rescue(self._mailbox.name, uid, content, why)


def drop_aliases(door: Door, private: PrivateDirectory) -> None:
    """Remove second names of mailboxes that were renamed away when the daemon died (`mailfs.fuse.replace`).

    Postfix and Dovecot refuse a mailbox with more than one link.
    """
    mailboxes = {entry.inode for entry in door.listdir()}
    for path in private.all_scratch():
        try:
            found = door.stat(path)
            if found.st_nlink > 1 and found.st_ino in mailboxes:
                door.unlink(path)
        except OSError as error:
            log.warning("a second name of a mailbox cannot be removed: %s", error)
