"""What the journal of a spool holds, and what recovery would do with it.

While a daemon serves the spool, records in the journal are its work and nothing else. Otherwise each is mail that an
earlier daemon could not bring to its mailbox, and recovery's own judgement says what becomes of it.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mailfs.checking.findings import Finding, Kind, Severity
from mailfs.control.render import printable
from mailfs.sessions.record import Damaged, State
from mailfs.spool.fileio import read_all
from mailfs.spool.journal import boot_id, look
from mailfs.spool.mailbox_file import MailboxFile

if TYPE_CHECKING:
    from mailfs.sessions.record import Record
    from mailfs.spool.door import Door
    from mailfs.spool.journal import JournalFile


class _Glance(MailboxFile):
    """A mailbox whose access time stays as it is when recovery's judgement reads it."""

    def __init__(self, door: Door, name: bytes) -> None:
        super().__init__(door, (name,))
        self._way, self._name = door, name

    def read(self, offset: int, size: int) -> bytes:
        fd = self._way.open((self._name,), os.O_RDONLY | os.O_NOATIME)
        try:
            return read_all(fd, size, offset)
        finally:
            os.close(fd)


def journal_findings(door: Door, *, served: bool) -> list[Finding]:
    """Say what is in the journal.

    Args:
        door: the way to the spool.
        served: a daemon is at work.

    Raises:
        OSError: it cannot be read.
    """
    found = []
    for file, header in look(door):
        try:
            finding = _judged(door, file, header, served=served)
        except OSError as error:
            detail = f"file {file.name.decode()}: {error.strerror}"
            finding = Finding(Kind.JOURNAL, Severity.DAMAGE, detail)
        finally:
            file.leave()
        if finding is not None:
            found.append(finding)
    return found


def _judged(
    door: Door, file: JournalFile, header: Record | Damaged, *, served: bool
) -> Finding | None:
    where = f"file {file.name.decode()}"
    if isinstance(header, Damaged):  # or just being written, if there is a daemon
        severity = Severity.SUSPICIOUS if served else Severity.DAMAGE
        return Finding(Kind.JOURNAL, severity, f"{where}: {header.why}: would go to rescue")
    if header.state is State.FREE:
        return None
    what = "rewrite" if header.rewrite else "append"
    draft = f"{where}: {printable(header.name)}: {header.state.value} {what}, {header.length} bytes"
    if served:
        return Finding(Kind.JOURNAL, Severity.INFORMATION, f"{draft} of uid {header.uid}")
    # Here, as they load what a daemon needs: the command line starts without it.
    from mailfs.sessions.journalling import is_whole, recovered
    from mailfs.sessions.recovery import What, judge

    whole = is_whole(file, header)
    store, session = _Glance(door, header.name), recovered(file, header)
    verdict = judge(store, session, whole=whole, boot=boot_id())
    severity = Severity.SUSPICIOUS
    if verdict.what is What.NOTHING:
        severity = Severity.INFORMATION
    elif not whole:
        severity = Severity.DAMAGE
    detail = f"{draft} of uid {header.uid}; recovery: {verdict.what.value}: {verdict.why}"
    return Finding(Kind.JOURNAL, severity, detail)
