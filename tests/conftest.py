"""Fixtures of the tests with real clients, and the rule about machines without FUSE.

Tests under ``tests/mount`` and the mailfs half of ``tests/posix`` mount a real spool (marker
``fuse``). They need root and /dev/fuse and *fail* without; ``MAILFS_TEST_WITHOUT_FUSE=1`` leaves
them out, and the summary says so.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import system
from tests.support.mounts import (
    DIRECTORY,
    MODES,
    Mount,
    Place,
    SpoolMode,
    make_spool,
    remove_leftovers,
)
from tests.support.processes import Crew
from tests.support.users import User, make_user, remove_user, sweep

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_WITHOUT = "MAILFS_TEST_WITHOUT_FUSE"
_HERE = Path(__file__).parent
_mounts = pytest.StashKey[list[Mount]]()
_notes: list[str] = []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fuse: mounts a file system; needs root and /dev/fuse")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE / "mount") or item.path.is_relative_to(_HERE / "bridge"):
            item.add_marker(pytest.mark.fuse)
    if os.environ.get(_WITHOUT) != "1":
        return
    left_out = [item for item in items if item.get_closest_marker("fuse")]
    if left_out:
        items[:] = [item for item in items if not item.get_closest_marker("fuse")]
        config.hook.pytest_deselected(items=left_out)
        _notes.append(f"{_WITHOUT}=1: {len(left_out)} tests on a real mount were LEFT OUT")


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop(session: pytest.Session) -> Any:
    """Set fs.protected_* for the whole run: once, and not in each of xdist's workers, as the first to end would restore
    them for the others.
    """
    if hasattr(session.config, "workerinput") or os.environ.get(_WITHOUT) == "1" or os.geteuid():
        return (yield)
    with system.protected_sysctls() as failed:
        if failed:
            _notes.append(f"not tested as Debian sets it: {'; '.join(failed)}")
        return (yield)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    for note in _notes:
        terminalreporter.write_sep("=", note, yellow=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Add the daemon's side of the story to a failure."""
    report = yield
    if report.failed and call.when == "call":
        for mount in item.stash.get(_mounts, []):
            report.sections.append((f"mailfs on {mount.dir}", mount.story()))
    return report


@pytest.fixture(scope="session")
def machine() -> Iterator[Path]:
    """A machine fit for mount tests, and a directory on it that every user can enter."""
    why = system.missing()
    if why:
        pytest.fail(f"tests on a real mount cannot run: {why}. {_WITHOUT}=1 leaves them out.")
    swept = sweep()
    if swept:
        _notes.append(f"accounts of crashed test runs removed: {', '.join(swept)}")
    remove_leftovers(Path(tempfile.gettempdir()))
    top = Path(tempfile.mkdtemp(prefix=f"{DIRECTORY}{os.getpid():x}-"))
    top.chmod(0o755)
    try:
        yield top
    finally:
        shutil.rmtree(top, ignore_errors=True)


@pytest.fixture(scope="session")
def people(machine: Path) -> Iterator[dict[str, User]]:
    """Accounts: a, b and c have a mailbox in every spool, n (the new user) has none."""
    homes = machine / "homes"
    homes.mkdir()
    users: dict[str, User] = {}
    try:
        for letter in "abcn":
            users[letter] = make_user(letter, homes)
        yield users
    finally:
        for user in users.values():
            remove_user(user.name)


@pytest.fixture
def alice(people: dict[str, User]) -> User:
    """A user with a mailbox."""
    return people["a"]


@pytest.fixture
def bob(people: dict[str, User]) -> User:
    """Another user with a mailbox."""
    return people["b"]


@pytest.fixture
def carol(people: dict[str, User]) -> User:
    """A third user with a mailbox."""
    return people["c"]


@pytest.fixture
def newuser(people: dict[str, User]) -> User:
    """A user whose mailbox does not exist yet."""
    return people["n"]


@pytest.fixture
def crew() -> Iterator[Crew]:
    """Processes of this test, ended with it."""
    crew = Crew()
    yield crew
    stuck = crew.close()
    assert not stuck, f"processes that cannot be killed: {stuck}"


def fresh_spool(machine: Path, people: dict[str, User], mode: SpoolMode) -> Path:
    """A spool of its own for one test: mailboxes of a, b and c."""
    where = Path(tempfile.mkdtemp(prefix="t", dir=machine))
    where.chmod(0o755)
    return make_spool(where, mode, [people[letter] for letter in "abc"])


@contextmanager
def mounted(node: pytest.Item, spool: Path, options: Iterable[str] = ()) -> Iterator[Place]:
    """Mount a spool for a test.

    Its clients are ended before it is unmounted; trouble in the daemon's log fails the test.
    """
    mount = Mount.start(spool.parent, spool, options)
    node.stash.setdefault(_mounts, []).append(mount)
    crew = Crew()
    try:
        yield Place(mount.dir, spool, crew, mount)
    finally:
        stuck = crew.close()
        complaints = mount.stop()
    if stuck:
        complaints.append(f"clients that could not be killed: {stuck}")
    assert not complaints, "\n".join([*complaints, "-- log --", mount.log()[-4000:]])


@pytest.fixture(params=MODES, ids=lambda mode: mode.text)
def mail(request: pytest.FixtureRequest, machine: Path, people: dict[str, User]) -> Iterator[Place]:
    """A mounted spool, of both kinds in turn."""
    with mounted(request.node, fresh_spool(machine, people, request.param)) as place:
        yield place


@pytest.fixture(params=["plain", *(f"mailfs-{mode.text}" for mode in MODES)])
def place(
    request: pytest.FixtureRequest, machine: Path, people: dict[str, User], crew: Crew
) -> Iterator[Place]:
    """A spool without mailfs, then with it: what holds on both is what programs are used to."""
    if request.param == "plain":
        spool = fresh_spool(machine, people, MODES[0])
        yield Place(spool, spool, crew)
        return
    mode = next(mode for mode in MODES if request.param.endswith(mode.text))
    with mounted(request.node, fresh_spool(machine, people, mode)) as place:
        yield place
