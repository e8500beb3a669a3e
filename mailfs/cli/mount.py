"""``mailfs mount``."""

from __future__ import annotations

import os

import click

from mailfs.daemon.config import Config, MountOptions, effective, load, override
from mailfs.daemon.launch import launch
from mailfs.daemon.options import parse_options


@click.command()
@click.option("-f", "--foreground", is_flag=True, help="Serve in this process; log to stderr.")
@click.option("--config", "file", metavar="FILE", help="Read this configuration (TOML).")
@click.option(
    "-o",
    "option_lists",
    metavar="OPTIONS",
    multiple=True,
    help="A comma list: table.key=value overrides the configuration; config=FILE; allow_other"
    " (the default for root) or noallow_other; no_passthrough; generic options of mount(8) are"
    " ignored.",
)
@click.option("--print-config", is_flag=True, help="Print what would be in force, and exit.")
@click.option("--log", metavar="FILE", help="Write the log to FILE; `syslog` means syslog.")
@click.argument("spool", required=False)
@click.argument("mountpoint", required=False)
def mount(
    *,
    foreground: bool,
    file: str | None,
    option_lists: tuple[str, ...],
    print_config: bool,
    log: str | None,
    spool: str | None,
    mountpoint: str | None,
) -> int:
    """Mount SPOOL at MOUNTPOINT, or over itself.

    Returns when the mount answers; the daemon goes on in the background, and logs to syslog if
    there is one.
    """
    options = parse_options(option_lists, root=os.geteuid() == 0)
    file = file or options.config
    config = override(load(file) if file else Config(), options.overrides)
    if print_config:
        click.echo(effective(config), nl=False)
        return 0
    if not spool or mountpoint == "":
        raise click.UsageError("which SPOOL? Give the directory of the mailboxes.")
    return launch(
        config,
        spool,
        mountpoint or spool,
        MountOptions(allow_other=options.allow_other, passthrough=options.passthrough),
        foreground=foreground,
        log=log,
    )
