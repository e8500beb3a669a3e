"""Tables on a terminal. Imported only when one is printed: rich takes a tenth of a second.

Every cell is a `Text`, because rich would read markup in a plain string, and names are strangers'.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mailfs.control.render import HEADER, NUMERIC, LockRow, Status, cells, status_lines

if TYPE_CHECKING:
    from collections.abc import Sequence

_STYLES = {"held": "green", "waiting": "yellow", "revoked": "red"}


def print_locks(rows: Sequence[LockRow], console: Console | None = None) -> None:
    """Print the lock table, or that nothing is locked."""
    console = console or Console()
    if not rows:
        console.print("No mailbox is locked and nobody waits.")
        return
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in HEADER:
        table.add_column(
            title.capitalize(), justify="right" if title in NUMERIC else "left", overflow="fold"
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in cells(row)), style=_STYLES.get(row.state, ""))
    console.print(table)


def print_status(status: Status, console: Console | None = None) -> None:
    """Print the status as two columns."""
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in status_lines(status):
        table.add_row(Text(name, style="bold"), Text(value))
    (console or Console()).print(table)
