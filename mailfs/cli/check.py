"""``mailfs check``."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

import click

from mailfs.checking import report
from mailfs.checking.findings import Severity
from mailfs.checking.report import Totals
from mailfs.checking.spool import SpoolCheck
from mailfs.control.render import printable
from mailfs.daemon import mountinfo
from mailfs.daemon.errors import Exit, MountError
from mailfs.errors import Refused
from mailfs.spool.door import Door, checked

if TYPE_CHECKING:
    from collections.abc import Iterable

    from mailfs.checking.spool import Checked


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing; the exit code tells.")
@click.option("-v", "--verbose", is_flag=True, help="Print what is for information, too.")
@click.option("--strict", is_flag=True, help="Fail for what is suspicious, too.")
@click.argument("spool")
@click.argument("names", nargs=-1, metavar="[NAME]...")
def check(
    *, as_json: bool, quiet: bool, verbose: bool, strict: bool, spool: str, names: tuple[str, ...]
) -> int:
    """Look whether the mailboxes of SPOOL, or those called NAME, are well-formed.

    Nothing is changed or locked; SPOOL may be in use, and may be a mount. Exit codes: 0 no damage, 65 damage was
    found (with --strict also what is suspicious), 66 there is no such spool or NAME, 77 something could not be read
    for lack of permission.
    """
    wanted = [_mailbox(name) for name in names]
    try:
        door = Door.at(spool)
    except OSError as error:
        raise _failed(spool, error, Exit.NOINPUT) from error
    mount = mountinfo.mount_of(mountinfo.resolve(spool))
    mounted = mount is not None and mount.fstype == mountinfo.FSTYPE
    totals = Totals()
    with door:
        try:
            found = SpoolCheck(door, host=socket.gethostname(), mounted=mounted).run(wanted)
        except FileNotFoundError as error:
            missing = f"{printable(error.args[0])}: there is no such mailbox in {printable(spool)}"
            raise MountError(missing, Exit.NOINPUT) from error
        except OSError as error:
            raise _failed(spool, error, Exit.IOERR) from error
        if quiet:
            for one in found:
                totals.add(one)
        elif as_json:
            for part in report.json_parts(spool, found, totals, mounted=mounted):
                click.echo(part, nl=False)
        else:
            _print(found, totals, verbose=verbose)
    bad = totals.found[Severity.DAMAGE] + (totals.found[Severity.SUSPICIOUS] if strict else 0)
    return Exit.DATAERR if bad else Exit.NOPERM if totals.denied else Exit.OK


def _failed(spool: str, error: OSError, code: Exit) -> MountError:
    if isinstance(error, PermissionError):
        code = Exit.NOPERM
    return MountError(f"{printable(spool)}: {error.strerror}", code)


def _mailbox(name: str) -> bytes:
    try:
        return checked((os.fsencode(name),))[0]
    except Refused as error:
        raise click.UsageError(f"{printable(name)}: not the name of a mailbox") from error


def _print(results: Iterable[Checked], totals: Totals, *, verbose: bool) -> None:
    """Print each finding as it comes, and below the first of a kind what to do about it."""
    lowest = list(Severity) if verbose else [Severity.DAMAGE, Severity.SUSPICIOUS]
    styled = sys.stdout.isatty()
    explained = set()
    for one in results:
        totals.add(one)
        for finding in one.findings:
            if finding.severity not in lowest:
                continue
            text = report.line(one, finding)
            click.echo(
                click.style(text, fg=_COLOURS[finding.severity]) if styled else text, nl=False
            )
            if finding.kind not in explained and finding.severity is not Severity.INFORMATION:
                explained.add(finding.kind)
                text = report.remedy(finding)
                click.echo(click.style(text, dim=True) if styled else text, nl=False)
    click.echo(totals.summary())


_COLOURS = {Severity.DAMAGE: "red", Severity.SUSPICIOUS: "yellow", Severity.INFORMATION: None}
