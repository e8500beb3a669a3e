"""Imports point one way: cli -> daemon -> fuse -> core and control -> spool and host -> errors."""

from __future__ import annotations

import ast
import pathlib
import subprocess
import sys
from typing import NamedTuple

import pytest

import mailfs

ROOT = pathlib.Path(mailfs.__file__).parent

CORE = {"locking", "policy", "sessions"}

RANKS = {
    "mailfs": 0,
    "mailfs.errors": 0,
    "mailfs.locking.model": 0,  # words only: what every layer says about processes and modes
    "mailfs.sessions.storage": 0,  # what sessions ask of a backing file, which the spool answers
    "mailfs.sessions.record": 0,  # the format of the journal's files, which the spool writes
    "mailfs.spool": 1,
    "mailfs.host": 1,
    "mailfs.control": 2,
    "mailfs.locking": 2,
    "mailfs.policy": 2,
    "mailfs.sessions": 2,
    "mailfs.checking": 3,
    "mailfs.fuse": 3,
    "mailfs.daemon": 4,
    "mailfs.cli": 5,
    "mailfs.__main__": 5,
}
"""A module may import modules of a lower rank, and those of its own package."""

ONLY_IN = {
    "pyfuse3": ("mailfs.fuse",),
    "mailfs.fuse": ("mailfs.fuse", "mailfs.daemon"),
    "rich": ("mailfs.cli",),
    "click": ("mailfs.cli",),
    "mailfs.cli": ("mailfs.cli", "mailfs.__main__"),
}
"""What only these packages may import."""


class Import(NamedTuple):
    importer: str
    imported: str
    line: int
    for_types: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.imported}"


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def rank(module: str) -> int:
    return RANKS[max((name for name in RANKS if within(module, name)), key=len)]


def module_name(path: pathlib.Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    path = ROOT.parent.joinpath(*name.split("."))
    return path.is_dir() or any(path.parent.glob(path.name + ".*"))


def imports_of(source: str, importer: str, *, package: bool) -> list[Import]:
    """Every import of a module, those inside functions and for types only too."""
    tree = ast.parse(source)
    for_types = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for child in block.body
        for node in ast.walk(child)
    }
    found = []
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                up = importer.split(".")[: None if package and node.level == 1 else -node.level]
                base = ".".join([*up, *([base] if base else [])])
            # `from mailfs.daemon import logs` imports the module mailfs.daemon.logs
            names = [
                full if within(base, "mailfs") and is_module(full) else base
                for full in (f"{base}.{alias.name}" for alias in node.names)
            ]
        found += [
            Import(importer, name, node.lineno, id(node) in for_types)
            for name in names
            if isinstance(node, (ast.Import, ast.ImportFrom))
        ]
    return found


def all_imports() -> list[Import]:
    return [
        found
        for path in sorted([*ROOT.rglob("*.py"), *ROOT.rglob("*.pyi")])
        for found in imports_of(
            path.read_text(), module_name(path), package=path.stem == "__init__"
        )
    ]


def wrong(found: Import) -> str | None:
    """Why an import must not be, or None."""
    for package, allowed in ONLY_IN.items():
        if within(found.imported, package) and not any(
            within(found.importer, name) for name in allowed
        ):
            return f"{found}: only {' and '.join(allowed)} may"
    if not within(found.imported, "mailfs"):
        return None
    importer = found.importer.split(".")[1:2]
    imported = found.imported.split(".")[1:2]
    if importer != imported and rank(found.imported) > rank(found.importer):
        return f"{found}: that is the wrong way"
    in_core = bool(importer) and importer[0] in CORE and not found.for_types
    if in_core and imported and imported[0] in ("spool", "host", "control"):
        return f"{found}: the core takes it through a Protocol, not by import"
    return None


def test_no_import_points_the_wrong_way() -> None:
    assert [reason for found in all_imports() if (reason := wrong(found))] == []


def test_every_package_has_a_rank() -> None:
    packages = {module_name(path) for path in ROOT.glob("*/__init__.py")}
    assert packages <= set(RANKS)


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("mailfs.locking.queue", "import mailfs.fuse.operations"),
        ("mailfs.locking.queue", "import pyfuse3"),
        ("mailfs.locking.queue", "from mailfs.spool import door"),
        ("mailfs.locking.queue", "from ..control import render"),
        ("mailfs.spool.door", "from mailfs.sessions.session import Session"),
        ("mailfs.fuse.operations", "from mailfs import daemon"),
        ("mailfs.fuse.operations", "from mailfs.daemon.config import Config"),
        ("mailfs.daemon.launch", "def f():\n    import rich.table"),
        ("mailfs.daemon.launch", "from mailfs.cli import main"),
        ("mailfs.cli.main", "import pyfuse3"),
        ("mailfs.cli.main", "import mailfs.fuse.bridge"),
        ("mailfs.errors", "from mailfs.locking.locks import Table"),
        ("mailfs.host.processes", "if TYPE_CHECKING:\n    from mailfs.locking.agents import Agent"),
    ],
)
def test_the_check_itself_notices(importer: str, line: str) -> None:
    assert any(wrong(found) for found in imports_of(line, importer, package=False))


@pytest.mark.parametrize(
    ("importer", "line"),
    [
        ("mailfs.host.processes", "from mailfs.locking.model import Ending"),
        ("mailfs.daemon.mount", "from mailfs.fuse import bridge"),
        ("mailfs.locking.queue", "from .model import Mode"),
        ("mailfs.sessions.commit", "from mailfs.errors import Refused"),
        ("mailfs.fuse.bridge", "import pyfuse3"),
    ],
)
def test_the_check_lets_pass(importer: str, line: str) -> None:
    assert not any(wrong(found) for found in imports_of(line, importer, package=False))


def loaded_by(module: str) -> set[str]:
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    return set(done.stdout.split())


def test_the_command_line_starts_without_fuse_and_rich() -> None:
    assert loaded_by("mailfs.cli.main") & {"pyfuse3", "trio", "rich"} == set()


def test_the_daemon_never_loads_what_draws_tables() -> None:
    assert loaded_by("mailfs.daemon.mount") & {"rich", "click"} == set()
