"""The configuration: what is taken, what is refused and in which words."""

from __future__ import annotations

import pathlib
import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mailfs
from mailfs.daemon.config import (
    Backing,
    Config,
    ConfigError,
    Locks,
    OptionError,
    Policy,
    effective,
    load,
    loads,
    override,
)
from mailfs.daemon.options import parse_options
from mailfs.daemon.settings import keys

DOCS = pathlib.Path(mailfs.__file__).parent.parent / "docs" / "configuration.md"


def problems(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        loads(text, "f.toml")
    return caught.value.problems


def test_an_empty_file_is_the_defaults() -> None:
    assert loads("", "f.toml") == Config()


def test_keys_are_taken() -> None:
    config = loads(
        (
            "[locks]\nlease = 5\n[backing]\nflock = false\n[policy]\ntrusted_uids = [0, 8]\n"
            'directory_mode = "1777"\n'
        ),
        "f.toml",
    )
    assert config.locks.lease == 5.0
    assert isinstance(config.locks.lease, float)
    assert config.backing.flock is False
    assert config.policy.trusted_uids == (0, 8)
    assert config.policy.directory_mode == "1777"
    assert config.waits == Config().waits


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[locks]\nlease = -1", "f.toml: [locks] lease: must be seconds, 1 to 86400; it is -1"),
        ("[locks]\nlease = nan", "f.toml: [locks] lease: must be seconds, 1 to 86400; it is nan"),
        ("[locks]\nlease = inf", "f.toml: [locks] lease: must be seconds, 1 to 86400; it is inf"),
        (
            "[locks]\nlease = true",
            "f.toml: [locks] lease: must be seconds, 1 to 86400; it is true",
        ),
        (
            "[locks]\nmax_waiters = 1.5",
            "f.toml: [locks] max_waiters: must be a whole number, 1 to 1000000; it is 1.5",
        ),
        ("[locks]\nleese = 1", "f.toml: [locks] leese: no such key; did you mean lease?"),
        ("[locks]\nqqqq = 1", "f.toml: [locks] qqqq: no such key"),
        ('[locks]\n"a\\nb" = 1', "f.toml: [locks] 'a\\nb': no such key"),
        ("[lock]\nlease = 1", "f.toml: [lock]: no such table; did you mean locks?"),
        ("locks = 1", "f.toml: locks: is a table; write [locks] above its keys"),
        ("[[locks]]", "f.toml: locks: is a table; write [locks] above its keys"),
        (
            "[backing]\nflock = 1",
            'f.toml: [backing] flock: must be true, false or "auto"; it is 1',
        ),
        (
            '[backing]\nflock = "no"',
            'f.toml: [backing] flock: must be true, false or "auto"; it is "no"',
        ),
        (
            '[policy]\ndirectory_mode = "0999"',
            (
                'f.toml: [policy] directory_mode: must be "auto" or an octal mode such as "1777";'
                ' it is "0999"'
            ),
        ),
        (
            "[policy]\ntrusted_uids = [-1]",
            "f.toml: [policy] trusted_uids: must be a list of user ids; it is [-1]",
        ),
        (
            '[log]\nlevel = "loud\\u001b"',
            (
                'f.toml: [log] level: must be "debug", "info", "warning" or "error";'
                ' it is "loud\\u001b"'
            ),
        ),
    ],
)
def test_a_bad_key_is_refused_with_file_key_and_reason(text: str, problem: str) -> None:
    assert problems(text) == [problem]


def test_all_problems_are_told_at_once() -> None:
    assert len(problems("a = 1\n[locks]\nlease = 0\nb = 1\n[waits]\nopen = 31")) == 4


def test_keys_that_contradict_each_other_are_refused() -> None:
    assert "max_waiters_per_uid: must not be more" in problems("[locks]\nmax_waiters = 5")[0]
    assert (
        "touch_every: must be at most half"
        in problems("[backing]\nstale_after = 30\ntouch_every = 20")[0]
    )


@pytest.mark.parametrize("text", ["[locks", "x = " + "[" * 5000, "x = " + "9" * 5000, "a\x00"])
def test_what_is_no_toml_is_refused(text: str) -> None:
    assert problems(text)[0].startswith("f.toml: is not TOML: ")


def test_files_that_cannot_be_read_are_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "config"
    path.write_bytes(b"\xff")
    for name in (path, tmp_path, tmp_path / "nothing"):
        with pytest.raises(ConfigError, match=str(name)):
            load(str(name))


@given(st.text())
def test_no_text_raises_anything_else(text: str) -> None:
    told: list[str] = []
    try:
        loads(text, "f.toml")
    except ConfigError as error:
        told = error.problems
    assert all(problem.startswith("f.toml: ") for problem in told)


def test_effective_reads_back_and_says_everything() -> None:
    text = effective(Config())
    assert loads(text, "f.toml") == Config()
    for key in keys():
        assert f"\n{key.name} = " in text
    assert max(map(len, text.splitlines())) <= 100


@given(
    st.builds(
        Config,
        locks=st.builds(
            Locks,
            lease=st.floats(1, 86400),
            max_waiters=st.integers(1000, 10**6),
        ),
        backing=st.builds(Backing, ofd=st.booleans(), flock=st.sampled_from([True, False, "auto"])),
        policy=st.builds(
            Policy,
            directory_mode=st.sampled_from(["auto", "1777", "0755", "700"]),
            trusted_uids=st.lists(st.integers(0, 2**32 - 2), max_size=60).map(tuple),
        ),
    )
)
def test_effective_round_trips(config: Config) -> None:
    assert loads(effective(config), "f.toml") == config


def test_every_default_is_allowed() -> None:
    for key in keys():
        assert msgspec.convert(key.default, key.type, strict=False) == key.default


def test_the_documentation_holds_the_reference_word_for_word() -> None:
    assert f"```toml\n{effective(Config()).strip()}\n```" in DOCS.read_text()


def test_options_are_taken_apart() -> None:
    options = parse_options(
        [
            "rw,nosuid,nodev,dev,suid,noexec,noatime,_netdev,noauto,user,defaults",
            "x-systemd.a=b,config=/a b,",
            "locks.lease=5,policy.trusted_uids=[0,8],backing.flock=auto,policy.directory_mode=1777",
        ],
        root=False,
    )
    assert options.config == "/a b"
    assert not options.allow_other
    config = override(Config(), options.overrides)
    assert config.locks.lease == 5.0
    assert config.policy.trusted_uids == (0, 8)
    assert config.policy.directory_mode == "1777"
    assert config.backing.flock == "auto"


def test_allow_other_is_the_default_of_root() -> None:
    assert parse_options([], root=True).allow_other
    assert not parse_options(["noallow_other"], root=True).allow_other
    assert not parse_options([], root=False).allow_other
    assert parse_options(["allow_other"], root=False).allow_other


@pytest.mark.parametrize(
    ("option", "problem"),
    [
        ("ro", "-o ro: a spool mounted read-only cannot be locked; remove the option"),
        ("alow_other", "-o alow_other: no such option; did you mean allow_other?"),
        ("lock.lease", "-o lock.lease: no such option; did you mean locks.lease?"),
        ("config", "-o config: no such option; did you mean config?"),
        ("a\nb", "-o 'a\\nb': no such option"),
    ],
)
def test_an_unknown_option_is_refused(option: str, problem: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_options([option], root=True)
    assert caught.value.problems == [problem]


@pytest.mark.parametrize(
    ("item", "problem"),
    [
        ("locks.leas=4", "-o locks.leas: no such key; did you mean locks.lease?"),
        ("locks.lease=", '-o: [locks] lease: must be seconds, 1 to 86400; it is ""'),
        ("locks.lease=0", "-o: [locks] lease: must be seconds, 1 to 86400; it is 0"),
        (
            "locks.max_waiters=5",
            (
                "-o: [locks] max_waiters_per_uid: must not be more than max_waiters (5):"
                " one user could use up what all share"
            ),
        ),
    ],
)
def test_a_bad_override_is_refused(item: str, problem: str) -> None:
    with pytest.raises(OptionError) as caught:
        override(Config(), [item])
    assert caught.value.problems == [problem]


@given(st.text(alphabet=string.printable), st.booleans())
def test_no_option_raises_anything_else(text: str, root: bool) -> None:
    told: list[str] = []
    try:
        override(Config(), parse_options([text], root=root).overrides)
    except OptionError as error:
        told = error.problems
    assert all(problem.startswith("-o") for problem in told)
