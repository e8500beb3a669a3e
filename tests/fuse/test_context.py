"""What the adapter keeps of mailboxes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from mailfs.fuse.context import Context
from mailfs.fuse.nodes import MailboxNode


def test_an_idle_mailbox_stays_while_its_node_is_known() -> None:
    """Otherwise two objects stand for one mailbox: what is read through the node is unknown to a save by renaming."""
    known, other = (
        SimpleNamespace(name=name, idle=True, store=SimpleNamespace(rest=lambda: None))
        for name in (b"known", b"other")
    )
    mailbox: Any = known
    context: Any = SimpleNamespace(
        openers={},
        mailboxes={b"known": known, b"other": other},
        nodes=[MailboxNode(7, "key", mailbox)],
    )
    Context.drop_idle(context)
    assert list(context.mailboxes) == [b"known"]
