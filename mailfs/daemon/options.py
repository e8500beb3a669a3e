"""The ``-o`` options of a mount, as mount(8), fstab and people write them."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, NamedTuple

from mailfs.daemon.config import OptionError, quoted, unknown
from mailfs.daemon.settings import keys

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_GENERIC_WORDS = (
    "rw auto noauto user nouser users owner group defaults nofail _netdev sync async dirsync"
    " lazytime nolazytime silent loud suid nosuid dev nodev exec noexec atime noatime diratime"
    " nodiratime relatime norelatime strictatime nostrictatime iversion noiversion mand nomand"
    " default_permissions"
)
"""What mount(8) and fstab(5) pass to every filesystem, and mount.fuse3 adds by itself (dev, suid).
Nothing of it changes a mount of ours, which is always nosuid, nodev, noexec and checks modes."""

_GENERIC = frozenset(_GENERIC_WORDS.split(" "))
_OURS = ("allow_other", "noallow_other", "config", "no_passthrough", "passthrough")
_GENERIC_WITH_VALUE = ("x-", "X-", "comment=", "user=", "uhelper=", "helper=")


class Options(NamedTuple):
    """What the ``-o`` lists of one mount say.

    Attributes:
        config: the configuration file, if one is named.
        overrides: ``table.key=value`` items, in order, for `mailfs.daemon.config.override`.
        allow_other: whether every user may use the mount.
        passthrough: whether readers may be passed through to the real files, where that is possible.

    """

    config: str | None
    overrides: list[str]
    allow_other: bool
    passthrough: bool


def parse_options(lists: Iterable[str], *, root: bool) -> Options:
    """Take ``-o`` lists apart.

    An item is ``config=FILE``, ``allow_other`` or ``noallow_other``, ``passthrough`` or
    ``no_passthrough``, ``table.key=value`` (a value as in the file, or bare), or one of the generic
    options of mount(8), which are ignored. A comma within ``[...]`` or ``"..."`` or after a
    backslash does not end an item.

    Args:
        lists: the argument of each ``-o``.
        root: whether root mounts; then ``allow_other`` is the default.

    Raises:
        OptionError: an option is not known.

    """
    file: str | None = None
    overrides: list[str] = []
    allow_other = root
    passthrough = True
    problems: list[str] = []
    for item in itertools.chain.from_iterable(_split(options) for options in lists):
        name, equals, value = item.partition("=")
        if name == "config" and value:
            file = value
        elif item in ("allow_other", "noallow_other"):
            allow_other = item == "allow_other"
        elif item in ("passthrough", "no_passthrough"):
            passthrough = item == "passthrough"
        elif item in _GENERIC or item.startswith(_GENERIC_WITH_VALUE):
            continue
        elif "." in name and equals:
            overrides.append(item)
        elif item == "ro":
            problems.append("-o ro: a spool mounted read-only cannot be locked; remove the option")
        else:
            known = {*_GENERIC, *_OURS}
            known |= {f"{key.table}.{key.name}" for key in keys()}
            problems.append(f"-o {quoted(item)}: {unknown('option', name, known)}")
    if problems:
        raise OptionError(problems)
    return Options(file, overrides, allow_other, passthrough)


def _split(options: str) -> Iterator[str]:
    """Split a list at its commas; see `parse_options` for those that do not count."""
    item, depth, quote, escaped = "", 0, False, False
    for char in options:
        if escaped:
            escaped = False
        elif char == "\\":
            escaped = True
            continue
        elif char == '"':
            quote = not quote
        elif not quote and char in "[]":
            depth += 1 if char == "[" else -1
        elif char == "," and not quote and depth <= 0:
            if item:
                yield item
            item = ""
            continue
        item += char
    if item:
        yield item
