from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.errors import Cause, Refused
from mailfs.policy.names import (
    CONTROL_NAME,
    Kind,
    Name,
    accounts_of,
    classify,
    looks_temporary,
    may_create,
)
from mailfs.policy.rights import Credentials

HOST = b"vm.example.org"
ACCOUNTS = {b"alice": 1001, b"bob": 1002, b"john": 1003, b"john.doe": 1004, b"root": 0}
FILES = {b"list", b"alice", b"john.doe"}


def of(name: bytes, files: set[bytes] = FILES, accounts: dict[bytes, int] = ACCOUNTS) -> Name:
    return classify(name, is_mailbox=files.__contains__, is_account=accounts.__contains__)


@pytest.mark.parametrize(
    ("name", "kind", "mailbox"),
    [
        (b"alice", Kind.MAILBOX, b"alice"),
        (b"bob", Kind.MAILBOX, b"bob"),  # no file yet
        (b"list", Kind.MAILBOX, b"list"),  # no account
        (b"stranger", Kind.SCRATCH, None),
        (b"alice.lock", Kind.LOCK, b"alice"),
        (b"bob.lock", Kind.LOCK, b"bob"),
        (b"list.lock", Kind.LOCK, b"list"),
        (b"john.doe.lock", Kind.LOCK, b"john.doe"),
        (b"stranger.lock", Kind.SCRATCH, None),
        (b"alice.lock.lock", Kind.SCRATCH, b"alice"),
        (b"alice.LOCK", Kind.SCRATCH, b"alice"),
        (b".lock", Kind.SCRATCH, None),
        (b"..lock", Kind.SCRATCH, None),
        (b"...lock", Kind.SCRATCH, None),
        (b".mailfs", Kind.CONTROL, None),
        (b".mailfs.lock", Kind.SCRATCH, None),
        (b".mailfs2", Kind.SCRATCH, None),
        (b"", Kind.CONTROL, None),
        (b".", Kind.CONTROL, None),
        (b"..", Kind.CONTROL, None),
        (b"a/b", Kind.CONTROL, None),
        (b"alice\0", Kind.CONTROL, None),
        # temporary names, as programs make them
        (b"alice.vm.12345", Kind.SCRATCH, b"alice"),  # mutt
        (b"alice.lock.1690000000.12345.vm", Kind.SCRATCH, b"alice"),  # alpine, lockmail
        (b"alice.lock3A1DLWbkGKvBlKb_vm", Kind.SCRATCH, b"alice"),  # s-nail
        (b"alice.lock.1690000000.vm.12345", Kind.SCRATCH, b"alice"),  # Python, the lock
        (b"alice.1690000000.vm.12345", Kind.SCRATCH, b"alice"),  # Python, the mailbox
        (b"john.doe.vm.example.org.12345", Kind.SCRATCH, b"john.doe"),
        (b"john.vm.12345", Kind.SCRATCH, b"john"),
        (b".alice.swp", Kind.SCRATCH, b"alice"),
        (b".alice.swpx", Kind.SCRATCH, b"alice"),
        (b".john.doe.swo", Kind.SCRATCH, b"john.doe"),
        (b"alice~", Kind.SCRATCH, b"alice"),
        (b"~", Kind.SCRATCH, None),
        (b"_EGF.DciArB.vm", Kind.SCRATCH, None),
        (b".lk12294avm", Kind.SCRATCH, None),
        (b"1234.0.vm", Kind.SCRATCH, None),
        (b"sedAb3Xyz", Kind.SCRATCH, None),
        (b"alice\n.x", Kind.SCRATCH, None),
        (b"alice.\xff\n", Kind.SCRATCH, b"alice"),
    ],
)
def test_what_a_name_is(name: bytes, kind: Kind, mailbox: bytes | None) -> None:
    assert of(name) == Name(name, kind, mailbox)


def test_a_foreign_lock_file_is_a_lock() -> None:
    files = {b"alice", b"alice.lock"}
    assert of(b"alice.lock", files).kind is Kind.LOCK
    assert of(b"alice.lock.lock", files).kind is Kind.SCRATCH
    assert of(b"alice.lock.1690000000.12345.vm", files).mailbox == b"alice"


def test_an_account_called_like_a_lock() -> None:
    alone = {b"foo.lock": 1001}
    assert of(b"foo.lock", set(), alone) == Name(b"foo.lock", Kind.MAILBOX, b"foo.lock")
    assert of(b"foo.lock.lock", set(), alone).kind is Kind.LOCK
    assert of(b"foo.lock", set(), {**alone, b"foo": 1002}).kind is Kind.LOCK


def test_every_long_name_has_an_answer_after_few_questions() -> None:
    asked: list[bytes] = []

    def ask(name: bytes) -> bool:
        asked.append(name)
        return False

    for name in (b"." * 255, b"a." * 127, b"a" + b".lock" * 50, b"~" * 255, b".lock" * 51):
        asked.clear()
        assert classify(name, is_mailbox=ask, is_account=ask).kind is Kind.SCRATCH
        assert len(asked) < 1000


names = st.one_of(
    st.binary(max_size=255),
    st.lists(
        st.sampled_from([
            *(b"alice", b"bob", b"list", b"x", b"4913", b"sed", b"vm", b".swp", b"~", b"\xff"),
            *(b".", b".lock", b".mailfs", b"1", b"_", b"\n", b"/", b"\0"),
        ]),
        max_size=12,
    ).map(b"".join),
)  # fmt: skip
some_names = st.sets(names, max_size=4)
accounts = st.dictionaries(names, st.integers(0, 5), max_size=4)


@given(names, some_names, accounts)
def test_classify_keeps_its_promises(
    name: bytes, files: set[bytes], accounts: dict[bytes, int]
) -> None:
    what = of(name, files, accounts)
    assert what.raw == name
    is_taken = name in accounts or name in files
    stem = name.removesuffix(b".lock")
    is_lock = stem != name and of(stem, files, accounts).kind is Kind.MAILBOX
    possible = name not in (b"", b".", b"..", CONTROL_NAME) and not set(name) & {0, ord("/")}
    assert (what.kind is Kind.CONTROL) == (not possible)
    if possible:
        assert (what.kind is Kind.LOCK) == is_lock
        assert (what.kind is Kind.MAILBOX) == (is_taken and not is_lock)
    match what.kind:
        case Kind.LOCK:
            assert what.mailbox == stem
        case Kind.MAILBOX:
            assert what.mailbox == name
        case Kind.CONTROL:
            assert what.mailbox is None
        case Kind.SCRATCH:
            if what.mailbox is not None:
                assert of(what.mailbox, files, accounts).kind is Kind.MAILBOX
                assert what.mailbox in name


@given(names, some_names, accounts)
def test_classify_asks_about_what_it_says(
    name: bytes, files: set[bytes], accounts: dict[bytes, int]
) -> None:
    """A cache that knows only these names gives the same kind."""
    known = {n: accounts[n] for n in accounts_of(name) if n in accounts}
    assert of(name, files, known).kind is of(name, files, accounts).kind


@given(names, some_names, accounts, st.integers(0, 5))
def test_nobody_makes_what_is_not_theirs(
    name: bytes, files: set[bytes], accounts: dict[bytes, int], uid: int
) -> None:
    what = of(name, files, accounts)
    owner = accounts.get(name)
    kind: Kind | None = None
    cause: Cause | None = None
    try:
        kind = may_create(what, Credentials(uid, 8), account_uid=owner, trusted={0, 5}, host=HOST)
    except Refused as refused:
        cause = refused.cause
    assert (cause is Cause.NOT_ALLOWED) == (what.kind is Kind.CONTROL)
    if cause in (Cause.NAME_RESERVED, Cause.NAME_TAKEN):
        assert what.kind is Kind.MAILBOX
        assert uid not in (0, 5, owner)
    if kind is Kind.SCRATCH:
        assert owner is None or what.kind is not Kind.MAILBOX
        assert what.kind is Kind.SCRATCH
        assert name not in files | accounts.keys() or name.endswith(b".lock")
    if kind is Kind.MAILBOX:
        assert uid in (0, 5, owner)


@pytest.mark.parametrize(
    ("name", "uid", "verdict"),
    [
        (b"bob", 1002, Kind.MAILBOX),
        (b"bob", 0, Kind.MAILBOX),
        (b"bob", 8, Kind.MAILBOX),
        (b"bob", 1001, Cause.NAME_RESERVED),
        (b"root", 1001, Cause.NAME_RESERVED),
        (b"list", 1001, Cause.NAME_TAKEN),
        (b"list", 0, Kind.MAILBOX),
        (b"bob.lock", 1001, Kind.LOCK),
        (b".mailfs", 0, Cause.NOT_ALLOWED),
        (b"..", 0, Cause.NOT_ALLOWED),
        (b"newlist", 1001, Kind.SCRATCH),
        (b"newlist", 0, Kind.MAILBOX),
        (b"newlist", 8, Kind.MAILBOX),
        (b"alice.vm.12345", 0, Kind.SCRATCH),
        (b"alice.2024.12", 0, Kind.MAILBOX),
        (b"newlist.lock", 0, Kind.SCRATCH),
    ],
)
def test_who_may_create(name: bytes, uid: int, verdict: Kind | Cause) -> None:
    caller = Credentials(uid, 8, frozenset({8}))

    def ask() -> Kind:
        return may_create(
            of(name), caller, account_uid=ACCOUNTS.get(name), trusted={0, 8}, host=HOST
        )

    if isinstance(verdict, Kind):
        assert ask() is verdict
    else:
        with pytest.raises(Refused) as refused:
            ask()
        assert refused.value.cause is verdict


@pytest.mark.parametrize(
    "name",
    [
        *(b".lk12294avm", b".alice.swp", b".#alice", b".goutputstream-A1B2C3", b".alice.x7YzQ1"),
        *(b"new.lock", b"new.lock.1690000000.12345.vm", b"new.lock3A1DLWbkGKvBlKb_vm"),
        *(b"_EGF.DciArB.vm", b"_xPF,mciArB.vm", b"_xPF+mciArB.vm", b"_tmE.sbiArB.vm"),
        *(b"1234.0.vm", b"1234.0.vm.example.org", b"alice.vm.12345", b"alice.1690000000.vm.1"),
        *(b"alice.vm.example.org.4194304", b"alice~", b"#alice#", b"4913", b"sedAb3Xyz"),
        *(b".\n", b".\xff\xfe", b"\n~"),
    ],
)
def test_looks_temporary(name: bytes) -> None:
    assert looks_temporary(name, HOST)
    assert looks_temporary(name, b"vm")


@pytest.mark.parametrize(
    "name",
    [
        *(b"list", b"seditions", b"sedXXXXXX7", b"alice.2024.12", b"alice.old.1", b"2024.12.log"),
        *(b"1234.0.otherhost", b"alice.otherhost.1234", b"alice.vm", b"vm.12345", b"alice.vm.x"),
        *(b"_archive", b"_a.b", b"x.locksmith", b"lock", b"49130", b"#", b"", b"vm"),
    ],
)
def test_does_not_look_temporary(name: bytes) -> None:
    assert not looks_temporary(name, HOST)


@given(names, st.binary(max_size=20))
def test_looks_temporary_never_raises(name: bytes, host: bytes) -> None:
    assert looks_temporary(name, host) in (True, False)
