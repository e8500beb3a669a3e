"""The command ``mailfs``: its subcommands, the form mount(8) uses, and what every failure becomes.

mount(8) runs ``mailfs SPOOL MOUNTPOINT -o OPTIONS`` for a mount of type ``fuse.mailfs`` (through
mount.fuse3): a first argument that is no command but a path means ``mailfs mount``.

Commands raise; `main` alone prints what failed and returns a code of `mailfs.daemon.errors.Exit`.
"""

from __future__ import annotations

import os
import sys

import click

import mailfs
from mailfs.cli.append import append
from mailfs.cli.check import check
from mailfs.cli.lock import lock
from mailfs.cli.mount import mount
from mailfs.cli.recover import recover
from mailfs.cli.show import locks, status
from mailfs.cli.umount import umount
from mailfs.control.render import printable
from mailfs.daemon.config import ConfigError, OptionError
from mailfs.daemon.errors import Exit, MountError


class Commands(click.Group):
    """A group that takes a path in the place of a command for a spool to mount."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put ``mount`` before a first argument that is a path."""
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            spool = args[0]
            if "/" in spool or os.path.isdir(spool):
                args = ["mount", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(mailfs.__version__, message="mailfs %(version)s")
def cli() -> None:
    """Mount a mail spool so that programs that lock differently, or not at all, can share it.

    Instead of a command, SPOOL MOUNTPOINT [-o OPTIONS] mounts, as mount(8) has it.
    """


for command in (mount, umount, locks, status, lock, append, recover, check):
    cli.add_command(command)


def main(arguments: list[str] | None = None) -> int:
    """Run a command line and return its exit code."""
    try:
        result = cli.main(arguments, prog_name="mailfs", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return Exit.USAGE
    except ConfigError as error:
        for problem in error.problems:
            complain(problem)
        return Exit.USAGE if isinstance(error, OptionError) else Exit.CONFIG
    except MountError as error:
        complain(error.message)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130  # as a shell says of a program that SIGINT ended
    except BrokenPipeError:  # `mailfs locks | head`; see the end of Python's signal documentation
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return Exit.IOERR
    return result if isinstance(result, int) else Exit.OK


def complain(message: str) -> None:
    """Print one line about what went wrong."""
    click.echo(f"mailfs: {printable(message, spaces=True)}", err=True)
