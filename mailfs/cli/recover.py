"""``mailfs recover``: finish what a dead daemon has begun, without mounting."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click
import msgspec

from mailfs.control.render import printable
from mailfs.daemon.config import Config, load
from mailfs.daemon.errors import Exit, MountError

if TYPE_CHECKING:
    from mailfs.daemon.recovery import Step

HEADER = ("MAILBOX", "WHAT", "WHY", "DRAFT", "FILE")


class Row(msgspec.Struct, frozen=True):
    """One record of the journal, as JSON."""

    mailbox: str
    action: str
    why: str
    draft: str
    file: str
    done: bool


class Report(msgspec.Struct, frozen=True):
    """The answer as JSON; ``left`` are mailboxes that still have something in the journal."""

    spool: str
    dry_run: bool
    records: list[Row]
    left: list[str]


@click.command()
@click.option("--dry-run", is_flag=True, help="Only say what would be done; change nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--config", "file", metavar="FILE", help="Read this configuration (TOML).")
@click.option(
    "--wait",
    type=click.FloatRange(0, 3600),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for programs that have locked a mailbox.",
)
@click.argument("spool")
def recover(*, dry_run: bool, as_json: bool, file: str | None, wait: float, spool: str) -> int:
    """Bring what a dead daemon left in the journal of SPOOL to an end.

    Every mount does this by itself; the command is for a spool that is not to be mounted.
    """
    from mailfs.daemon.recovery import recover_offline

    config = load(file) if file else Config()
    left: list[bytes] = []
    if dry_run:
        steps = _plan(spool)
    else:
        steps, left = recover_offline(config, spool, wait)
    report = Report(spool, dry_run, [_row(step) for step in steps], [_text(name) for name in left])
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(report), indent=2))
    else:
        _print(report)
    if left:
        names = " ".join(report.left)
        message = f"not finished, locked by another program or not writable: {names}; try again"
        raise MountError(message, Exit.TEMPFAIL)
    return Exit.OK


def _plan(spool: str) -> list[Step]:
    from mailfs.daemon.recovery import plan
    from mailfs.spool.door import Door

    try:
        with Door.at(spool) as door:
            return plan(door)
    except OSError as error:
        code = Exit.NOPERM if isinstance(error, PermissionError) else Exit.NOINPUT
        raise MountError(f"cannot read {spool}: {error.strerror}", code) from error


def _row(step: Step) -> Row:
    return Row(
        _text(step.mailbox), step.what.value, step.why, step.draft, _text(step.file), step.done
    )


def _text(name: bytes) -> str:
    return printable(name)


def _print(report: Report) -> None:
    if not report.records:
        click.echo("Nothing is left in the journal.")
        return
    for row in report.records:
        cells = (row.mailbox or "?", row.action, row.why, row.draft or "-", row.file)
        click.echo("  ".join(printable(cell, spaces=True) for cell in cells))
