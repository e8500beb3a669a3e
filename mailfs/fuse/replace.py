"""Saves that replace the mailbox: a new file renamed over it, or the mailbox renamed away and made anew.

* ``sed -i`` and Python's ``mailbox`` write a temporary file and rename it over the mailbox.
* ``vim`` renames the mailbox to ``alice~`` and creates ``alice``. The mailbox does not go anywhere: the new name
  becomes a second link to it, private to its user, and only the renaming agent sees the mailbox gone. What it then
  creates is a scratch file, which replaces the mailbox when it is closed. Its death, or a minute, restores the mailbox.

Both end in `Mailbox.replace`, where newer mail is kept and stale saves are refused.
"""

from __future__ import annotations

import contextlib
import logging
import os
from functools import partial
from typing import TYPE_CHECKING

import trio

from mailfs.errors import Cause, Refused
from mailfs.spool.fileio import write_all

if TYPE_CHECKING:
    from mailfs.fuse.context import Context, Who
    from mailfs.fuse.namespace import Namespace
    from mailfs.fuse.nodes import Node, Path, ScratchNode
    from mailfs.host.processes import HostProcess

log = logging.getLogger(__name__)

REPLACING = b".mailfs-new."
"""What the names of new files of mailboxes renamed away begin with; nobody sees them in listings."""

PATIENCE = 60.0
"""Seconds after which a mailbox that was renamed away, and not made anew, is there again for everybody."""


class Away:
    """A mailbox that one agent has renamed away.

    Args:
        mailbox: its name.
        process: who did.
        alias: the second link, the name it was renamed to.

    """

    def __init__(self, mailbox: bytes, process: HostProcess, alias: Path) -> None:
        self.mailbox = mailbox
        self.process = process
        self.alias = alias
        self.since = trio.current_time()
        self.new: ScratchNode | None = None

    def by(self, process: HostProcess | None) -> bool:
        """Whether this process belongs to the agent that sees the mailbox gone."""
        while process is not None:
            if process is self.process:
                return True
            process = process.parent
        return False

    def node(self, namespace: Namespace) -> Node:
        """What its agent sees under the mailbox's name.

        Raises:
            FileNotFoundError: it has not made it anew yet.

        """
        if self.new is None or namespace.scratch(self.new.uid, self.new.name) is None:
            raise FileNotFoundError(2, "renamed away", self.mailbox)
        return self.new


class Replacing:
    """Carries out the two ways to replace a mailbox."""

    def __init__(self, context: Context, namespace: Namespace) -> None:
        self._context = context
        self._namespace = namespace

    async def over(self, scratch: ScratchNode, name: bytes, who: Who) -> None:
        """Rename a scratch file over an existing mailbox.

        Raises:
            Refused: NOT_OWNER if the mailbox is another's; STALE if it was rewritten since the client read it.
            OSError: of the backing filesystem.

        """
        context = self._context
        old = context.door.stat((name,))
        if not who.may_remove(old):
            raise Refused(Cause.NOT_OWNER, f"{name!r} belongs to uid {old.st_uid}")
        requester = who.requester(name, may_write=True)
        mailbox = context.mailbox(name)
        await mailbox.commit_own(requester)

        async def swap(kept: bytes, ends_line: bool) -> None:
            path = scratch.path
            fd = context.door.open(path, os.O_RDWR)
            size = os.fstat(fd).st_size
            try:
                if kept:
                    write_all(fd, kept if ends_line else b"\n" + kept, size)
                if not scratch.owner_set:
                    os.fchown(fd, old.st_uid, old.st_gid)
                if not scratch.mode_set:
                    os.fchmod(fd, old.st_mode & 0o777)
                if context.surroundings.durable:
                    await context.surroundings.offload(partial(os.fsync, fd))
                context.door.rename(path, (name,))
            except BaseException:
                os.ftruncate(fd, size)  # as its maker left it, should he try again
                raise
            finally:
                os.close(fd)
            context.refresh_backing(name)
            if context.surroundings.durable:
                await context.surroundings.offload(partial(os.fsync, context.door.fileno))

        await mailbox.replace(requester, _Content(context, scratch.path), swap)
        context.nodes.detach(scratch)
        self._done(name)

    async def away(self, name: bytes, target: bytes, who: Who) -> None:
        """Rename a mailbox to a scratch name, for this agent only. What it has written is committed first."""
        context = self._context
        found = context.door.stat((name,))
        if not who.may_remove(found):
            raise Refused(Cause.NOT_OWNER, f"{name!r} belongs to uid {found.st_uid}")
        process = who.process
        if process is None:
            raise Refused(Cause.NOT_ALLOWED, "renaming away needs a process we can see")
        await context.mailbox(name).commit_own(who.requester(name, may_write=True))
        if name in context.replacements:
            self.restore(context.replacements[name])
        alias = (*context.private.scratch(who.uid), target)
        with contextlib.suppress(FileNotFoundError):
            context.door.unlink(alias)
        context.door.link((name,), alias)
        away = Away(name, process, alias)
        context.replacements[name] = away
        context.surroundings.nursery.start_soon(self._watch, away)

    def begin(self, away: Away, mode: int, who: Who) -> ScratchNode:
        """The agent makes its mailbox anew: into a scratch file, for now."""
        context = self._context
        name = REPLACING + away.mailbox[:200]
        path = (*context.private.scratch(who.uid), name)
        with contextlib.suppress(FileNotFoundError):
            context.door.unlink(path)
        fd = context.door.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode & 0o777)
        try:
            os.fchown(fd, who.uid, who.gid)
            node = self._namespace.scratch_node(who.uid, name, os.fstat(fd))
        finally:
            os.close(fd)
        node.replaces = away.mailbox
        away.new = node
        return node

    async def finish(self, node: ScratchNode, who: Who) -> None:
        """The new mailbox was closed: it takes the old one's place."""
        name, node.replaces = node.replaces, None
        if name is not None:
            await self.over(node, name, who)

    def restore(self, away: Away) -> None:
        """The mailbox is there again for its agent too; a copy under another name is not left behind."""
        if self._context.replacements.get(away.mailbox) is away:
            del self._context.replacements[away.mailbox]
        with contextlib.suppress(OSError, Refused):
            alias = self._context.door.stat(away.alias)
            if alias.st_ino == self._context.door.stat((away.mailbox,)).st_ino:
                self._context.door.unlink(away.alias)
        if away.new is not None and away.new.replaces is not None:
            away.new.replaces = None
            with contextlib.suppress(OSError):
                self._context.door.unlink(away.new.path)

    def _done(self, name: bytes) -> None:
        away = self._context.replacements.pop(name, None)
        if away is not None:
            log.debug("%r was renamed away and made anew by %r", name, away.process)

    async def _watch(self, away: Away) -> None:
        with trio.move_on_after(PATIENCE):
            await away.process.ended()
        if self._context.replacements.get(away.mailbox) is away:
            log.info("%r is there again: whoever renamed it away made no new one", away.mailbox)
            self.restore(away)


class _Content:
    """The text of a file that is to replace a mailbox, read only if a merge needs it."""

    def __init__(self, context: Context, path: Path) -> None:
        self._context = context
        self._path = path

    def __call__(self) -> bytes:
        fd = self._context.door.open(self._path, os.O_RDONLY)
        with os.fdopen(fd, "rb") as file:
            return file.read()
