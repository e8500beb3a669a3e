"""The configuration file: read, checked key by key, and written out as it is in force.

How a file is read: TOML to a dictionary; then each table and key is looked up in the declarations
of `mailfs.daemon.settings` (an unknown one is refused, with the nearest known name) and its value
converted on its own, so that *all* problems of a file are told at once, each as
``FILE: [table] key: reason``. Last come the rules between keys.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import tomllib
from typing import TYPE_CHECKING, get_type_hints

import msgspec

from mailfs.daemon.settings import (
    Backing,
    Config,
    Key,
    Locks,
    Log,
    MountOptions,
    Policy,
    Programs,
    Sessions,
    Waits,
    keys,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

__all__ = [
    "Backing",
    "Config",
    "ConfigError",
    "Locks",
    "Log",
    "MountOptions",
    "OptionError",
    "Policy",
    "Programs",
    "Sessions",
    "Waits",
    "effective",
    "load",
    "loads",
    "override",
]

_KEYS = {(key.table, key.name): key for key in keys()}
_TABLES: dict[str, type[msgspec.Struct]] = get_type_hints(Config)


class ConfigError(Exception):
    """What is wrong with a configuration; one line a problem."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class OptionError(ConfigError):
    """The same about the ``-o`` options of the command line."""


def load(path: str) -> Config:
    """Read a configuration file.

    Raises:
        ConfigError: it cannot be read, is no TOML, or holds a key or value that is not allowed.

    """
    try:
        with open(path, "rb") as file:
            text = file.read().decode()
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except UnicodeDecodeError as error:
        raise ConfigError([f"{path}: is not UTF-8 text: {error}"]) from error
    return loads(text, path)


def loads(text: str, source: str) -> Config:
    """Check a configuration given as TOML text; *source* names it in messages.

    Raises:
        ConfigError: with every problem found.

    """
    try:
        document = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError([f"{source}: is not TOML: {error}"]) from error
    problems: list[str] = []
    values: dict[tuple[str, str], object] = {}
    for table, content in document.items():
        if table not in _TABLES:
            problems.append(f"{source}: [{quoted(table)}]: {unknown('table', table, _TABLES)}")
        elif not isinstance(content, dict):
            problems.append(f"{source}: {table}: is a table; write [{table}] above its keys")
        else:
            _check_table(source, table, content, values, problems)
    if problems:
        raise ConfigError(problems)
    return _build(Config(), values, source)


def _check_table(
    source: str,
    table: str,
    content: Mapping[str, object],
    values: dict[tuple[str, str], object],
    problems: list[str],
) -> None:
    for name, value in content.items():
        key = _KEYS.get((table, name))
        if key is None:
            known = [key.name for key in _KEYS.values() if key.table == table]
            reason = unknown("key", name, known)
            problems.append(f"{source}: [{table}] {quoted(name)}: {reason}")
            continue
        try:
            values[table, name] = msgspec.convert(value, key.type)
        except msgspec.ValidationError:
            problems.append(f"{source}: [{table}] {name}: {_wrong(key, value)}")


def _build(base: Config, values: Mapping[tuple[str, str], object], source: str) -> Config:
    """Put *values* in place of some keys of *base* and check the rules between keys."""
    tables = {}
    for table in _TABLES:
        changes = {name: value for (where, name), value in values.items() if where == table}
        tables[table] = msgspec.structs.replace(getattr(base, table), **changes)
    config = Config(**tables)
    problems = [f"{source}: {problem}" for problem in _contradictions(config)]
    if problems:
        raise ConfigError(problems)
    return config


def _contradictions(config: Config) -> Iterator[str]:
    if config.locks.max_waiters_per_uid > config.locks.max_waiters:
        yield (
            "[locks] max_waiters_per_uid: must not be more than max_waiters"
            f" ({config.locks.max_waiters}): one user could use up what all share"
        )
    if config.backing.touch_every * 2 > config.backing.stale_after:
        yield (
            "[backing] touch_every: must be at most half of stale_after"
            f" ({config.backing.stale_after:g}): another mailfs would take our lock for stale"
        )


def effective(config: Config) -> str:
    """Write what is in force as commented TOML, which `loads` reads back to the same."""
    lines: list[str] = []
    for table, group in itertools.groupby(_KEYS.values(), lambda key: key.table):
        lines += [f"# {(_TABLES[table].__doc__ or '').splitlines()[0]}", f"[{table}]"]
        for key in group:
            lines += [f"# {line}" for line in _wrap(f"{key.description} ({key.takes})")]
            lines.append(f"{key.name} = {_toml(getattr(getattr(config, table), key.name))}")
        lines.append("")
    return "\n".join(lines)


def override(config: Config, items: Iterable[str]) -> Config:
    """Apply ``table.key=value`` items; a value is as in the file, or a bare word.

    Raises:
        OptionError: an unknown key or a bad value.

    """
    problems: list[str] = []
    values: dict[tuple[str, str], object] = {}
    for item in items:
        where, _, text = item.partition("=")
        table, _, name = where.partition(".")
        key = _KEYS.get((table, name))
        if key is None:
            known = [f"{known.table}.{known.name}" for known in _KEYS.values()]
            problems.append(f"-o {quoted(where)}: {unknown('key', where, known)}")
            continue
        for value in _readings(text):
            try:
                values[table, name] = msgspec.convert(value, key.type)
                break
            except msgspec.ValidationError:
                continue
        else:
            problems.append(f"-o: [{table}] {name}: {_wrong(key, next(_readings(text)))}")
    if problems:
        raise OptionError(problems)
    try:
        return _build(config, values, "-o")
    except ConfigError as error:
        raise OptionError(error.problems) from error


def _readings(text: str) -> Iterator[object]:
    """Say what the text of an option may mean: a TOML value, else the bare word itself."""
    if text and text.isprintable():
        with contextlib.suppress(ValueError, RecursionError):
            yield tomllib.loads(f"v = {text}")["v"]
    yield text


def _wrong(key: Key, value: object) -> str:
    return f"must be {key.takes}; it is {_toml(value)}"


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that there is no such *what*, and which known name may be meant."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"no such {what}" + (f"; did you mean {near[0]}?" if near else "")


def quoted(name: str) -> str:
    """Make a name of the user's fit for one line of a message."""
    return name if name.isprintable() and name.isascii() else ascii(name)


def _toml(value: object) -> str:
    """Write a value as TOML does; in a message anything else, and shortened."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() if abs(value) > 1 << 64:
            return "a number too large"
        case int() | float():
            return repr(value)
        case str():
            return json.dumps(value[:200]).replace("\x7f", "\\u007f")
        case list() | tuple():
            return "[" + ", ".join(_toml(item) for item in value[:50]) + "]"
        case dict():
            return "a table"
        case _:
            return str(value)


def _wrap(text: str, width: int = 96) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        if len(lines[-1]) + len(word) + 1 > width:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    return lines
