"""What the journal of a spool holds: commits that a daemon's death has interrupted or kept waiting.

There is no journal yet (design 10), so there is nothing to find. What belongs here, for each record: its mailbox and
size, whether it is pending, committed or damaged, and what recovery would do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mailfs.checking.findings import Finding
    from mailfs.spool.door import Door


def journal_findings(_door: Door) -> list[Finding]:
    """Say what is in the journal. Raises OSError if it cannot be read."""
    return []
