"""``mailfs locks`` and ``mailfs status``: what the control files say, for people and programs."""

from __future__ import annotations

import sys

import click
import msgspec

from mailfs.cli.where import find_mount, read_control
from mailfs.control import render
from mailfs.daemon.errors import Exit, MountError

_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
_mountpoint = click.argument("mountpoint", required=False)


@click.command()
@_json
@_mountpoint
def locks(*, as_json: bool, mountpoint: str | None) -> None:
    """Show who holds which mailbox, and who waits."""
    where = find_mount(mountpoint)
    try:
        rows = render.locks_from_json(read_control(where, "locks.json"))
    except msgspec.DecodeError as error:
        raise _strange(where, "locks.json", error) from error
    if as_json:
        click.echo(render.locks_json(rows), nl=False)
    elif sys.stdout.isatty():
        from mailfs.cli.tables import print_locks

        print_locks(rows)
    else:
        click.echo(render.locks_text(rows), nl=False)


@click.command()
@_json
@_mountpoint
def status(*, as_json: bool, mountpoint: str | None) -> None:
    """Show how the daemon of a mount is doing."""
    where = find_mount(mountpoint)
    try:
        found = render.status_from_json(read_control(where, "status.json"))
    except msgspec.DecodeError as error:
        raise _strange(where, "status.json", error) from error
    if as_json:
        click.echo(render.status_json(found), nl=False)
    elif sys.stdout.isatty():
        from mailfs.cli.tables import print_status

        print_status(found)
    else:
        click.echo(render.status_text(found), nl=False)


def _strange(where: str, name: str, error: msgspec.DecodeError) -> MountError:
    path = render.printable(f"{where}/.mailfs/{name}")
    message = f"{path}: not what this version of mailfs expects ({error}); is the daemon older?"
    return MountError(message, Exit.DATAERR)
