"""The text of a mailbox: each finding, and that neither chunks nor cuts hide anything."""

from __future__ import annotations

import itertools
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mailfs.checking.findings import KEPT, Kind, Severity
from mailfs.checking.mailbox import WINDOW, Examination, Examiner, examine

if TYPE_CHECKING:
    from collections.abc import Iterator

FROM = b"From bob@example.org  Thu Jan  1 00:00:00 1970\n"
HEAD = FROM + b"From: bob\nSubject: hello\n"
WHOLE = HEAD + b"\ntext\n\n"
DAMAGE, SUSPICIOUS, INFORMATION = Severity


def faults(text: bytes) -> list[tuple[Kind, Severity, int | None]]:
    """What is found in a mailbox, but for what is no fault."""
    return [
        (found.kind, found.severity, found.offset)
        for found in examine([text]).findings
        if found.severity is not INFORMATION
    ]


def sized(body: bytes, length: int, *, subject: bytes = b"x") -> bytes:
    return FROM + b"Subject: %s\nContent-Length: %d\n\n" % (subject, length) + body


N = len(WHOLE)
IMAP = (
    b"From MAILER-DAEMON Thu Jan  1 00:00:00 1970\nFrom: Mail System Internal Data <M@h>\n"
    b"Subject: DON'T DELETE THIS MESSAGE -- FOLDER INTERNAL DATA\nX-IMAP: 1 2\nStatus: RO\n\n"
    b"This text is part of the internal format of your mail folder\n\n"
)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        WHOLE,
        WHOLE * 3,
        WHOLE.replace(b"\n", b"\r\n") * 2,
        IMAP + WHOLE,
        HEAD + b"\n",  # no text, and none needed
        HEAD + b"\n" + WHOLE,
        HEAD + b"X: a\n\tb\n" * 5000 + b"\n\n",
        HEAD + b"\n" + b"x" * 3 * WINDOW + b"\n\n" + WHOLE,
        HEAD + b">From bob\n\ntext\n>From me\n\n",
        sized(b"text\n\n", 5),
        sized(b"text\n\n", 6),
        sized(b"From here on\n\nFrom there\nok\n\n", 28) + WHOLE,
        sized(b"a\nb\n\n", 6) + WHOLE,  # counted with CR LF
        sized(b"a\nb\n\n", 2) + WHOLE,
    ],
    ids=map(str, itertools.count()),
)
def test_nothing_is_wrong(text: bytes) -> None:
    assert faults(text) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"hello\n\n" + WHOLE, [(Kind.NO_SEPARATOR, DAMAGE, 0)]),
        (b"\n" + WHOLE, [(Kind.NO_SEPARATOR, DAMAGE, 0)]),
        (b"From bob\nSubject: x\n\ntext\n\n", [(Kind.MALFORMED, DAMAGE, 0)]),
        (WHOLE + b"From bob\nSubject: x\n\ntext\n\n", [(Kind.MALFORMED, SUSPICIOUS, N)]),
        (WHOLE + b"From here on\nall is well\n\n", [(Kind.UNQUOTED, SUSPICIOUS, N)]),
        (HEAD + b"\nhal\n" + WHOLE, [(Kind.MERGED, DAMAGE, len(HEAD) + 5)]),
        (sized(b"text\n", 5) + WHOLE, [(Kind.MERGED, SUSPICIOUS, len(sized(b"text\n", 5)))]),
        (FROM + b"\ntext\n\n", [(Kind.NO_HEADER, SUSPICIOUS, 0)]),
        (HEAD + WHOLE, [(Kind.CUT_HEADER, DAMAGE, 0)]),
        (FROM + WHOLE, [(Kind.CUT_HEADER, DAMAGE, 0)]),
        (WHOLE + HEAD, [(Kind.CUT_HEADER, DAMAGE, N)]),
        (WHOLE + FROM, [(Kind.CUT_HEADER, DAMAGE, N)]),
        (HEAD + b"no header\nat all\n\n", [(Kind.HEADER_LINE, SUSPICIOUS, len(HEAD))]),
        (HEAD + b"From bob\n\ntext\n\n", [(Kind.HEADER_LINE, SUSPICIOUS, len(HEAD))]),
        (HEAD + b"\ntext", [(Kind.CUT_AT_END, DAMAGE, N - 2)]),
        (HEAD + b"\ntext\n", [(Kind.NO_EMPTY_LINE_AT_END, SUSPICIOUS, N - 1)]),
        (WHOLE + b"\0" * 210, [(Kind.NUL_AT_END, SUSPICIOUS, N)]),
        (WHOLE + b"\0" * 5000 + WHOLE, [(Kind.NUL, DAMAGE, N)]),
        (HEAD + b"\nte\0xt\n\n", [(Kind.NUL, SUSPICIOUS, N - 4)]),
        (sized(b"text\n\n", 5000), [(Kind.SHORTER, DAMAGE, 0)]),
        (sized(b"text\n\n", 5000) + WHOLE, [(Kind.SHORTER, SUSPICIOUS, 0)]),
        (
            sized(b"text\n", 5000) + WHOLE,
            [(Kind.SHORTER, DAMAGE, 0), (Kind.MERGED, DAMAGE, len(sized(b"text\n", 5000)))],
        ),
        (sized(b"text", 4), [(Kind.CUT_AT_END, SUSPICIOUS, len(sized(b"text", 4)))]),
        # Two messages, forwarded within one whose Content-Length is right, and one of them cut:
        (sized(WHOLE + HEAD + b"\n", N + len(HEAD)) + WHOLE, [(Kind.INSIDE, SUSPICIOUS, 0)]),
        (sized(WHOLE + HEAD + b"\n", N + len(HEAD)), [(Kind.INSIDE, SUSPICIOUS, 0)]),
    ],
    ids=map(str, itertools.count()),
)
def test_each_fault_is_found(
    text: bytes, expected: list[tuple[Kind, Severity, int | None]]
) -> None:
    assert faults(text) == expected


def test_what_is_no_fault_is_told() -> None:
    variant = b"From bob Fri, 2 Jan 1970 10:14:00 +0000\nSubject: x\n\nFrom\nFrom me\n\n"
    found = {(f.kind, f.offset) for f in examine([WHOLE, WHOLE, variant]).findings}
    at = 2 * N
    assert found == {
        (Kind.DUPLICATE, N),
        (Kind.VARIANT, at),
        (Kind.UNQUOTED, at + variant.index(b"From me")),
    }


def test_messages_are_counted() -> None:
    assert examine([WHOLE * 5 + IMAP]).messages == 6
    assert examine([sized(WHOLE * 3, 3 * N - 1)]).messages == 1


header = st.sampled_from([b"Subject: x\n", b"To: a\n\tb\n", b"X-Long: " + b"y" * 300 + b"\n"])
line = st.sampled_from(
    [b"text\n", b">From me\n", b"\t\n", b"From\n", b"x" * 5000 + b"\n", b"\xff\r\n"]
)
separator = st.sampled_from(
    [FROM, b"From a Mon Dec 31 23:59:59 2029\n", b"From b Fri Jan  2 10:13:52 UTC 1970 +0000\n"]
)
pieces = st.sampled_from(
    [WHOLE, FROM, HEAD, b"\n", b"\0", b"\0" * 20, b"From ", b"From x\n", b"text\n", b"text", b"\r\n",
     b"Content-Length: 9\n", b"Content-Length: 140\n", b"x" * 2100, b"Subject: x\n", sized(WHOLE, 90)]
)  # fmt: skip


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    text = b"".join(draw(st.lists(line, min_size=1, max_size=4)))
    head = b"".join(draw(st.lists(header, min_size=1, max_size=3)))
    if draw(st.booleans()):
        head += b"Content-Length: %d\n" % len(text)
    return draw(separator) + head + b"\n" + text + b"\n"


def chunks(text: bytes, cuts: list[int]) -> Iterator[bytes]:
    for start, end in itertools.pairwise(
        [0, *sorted(c % (len(text) + 1) for c in cuts), len(text)]
    ):
        yield text[start:end]


offsets = st.lists(st.integers(min_value=0, max_value=1 << 20), max_size=6)


@given(st.lists(messages(), max_size=4), offsets)
def test_well_formed_messages_are_found_well_formed(parts: list[bytes], cuts: list[int]) -> None:
    examination = examine(chunks(b"".join(parts), cuts))
    assert examination.messages == len(parts)
    assert [f for f in examination.findings if f.severity is not INFORMATION] == []


@given(st.lists(messages(), min_size=1, max_size=3), st.integers(min_value=0))
def test_a_cut_is_found(parts: list[bytes], where: int) -> None:
    """Unless what is left looks whole: an empty line is all that tells the end of a message without a length."""
    text = b"".join(parts)
    cut = text[: where % len(text)]
    whole = list(itertools.accumulate(map(len, parts), initial=0))
    last = max(end for end in whole if end <= len(cut))
    has_length = b"Content-Length" in cut[last:].partition(b"\n\n")[0]
    looks_whole = cut.endswith((b"\n\n", b"\n\r\n")) and not has_length
    if len(cut) not in whole and not looks_whole:
        assert faults(cut) != []


def summary(examination: Examination) -> object:
    return (examination.size, examination.messages, examination.findings)


@given(st.lists(pieces, max_size=40), offsets)
def test_chunks_do_not_matter(parts: list[bytes], cuts: list[int]) -> None:
    text = b"".join(parts)
    assert summary(examine(chunks(text, cuts))) == summary(examine([text]))


@pytest.mark.parametrize("size", [1, 7, 2047, 2048, 2049])
def test_small_chunks(size: int) -> None:
    text = (WHOLE + b"\0" * 20 + sized(b"text\n", 9) + WHOLE + b"From x\n\n") * 9
    cut = [text[at : at + size] for at in range(0, len(text), size)]
    assert summary(examine(cut)) == summary(examine([text]))


def test_many_faults_are_counted_and_not_kept() -> None:
    for fault in (b"\nFrom x\n\0", HEAD + b"\nhal\n", FROM, b"a\0"):
        found = examine([HEAD + b"\n", *[fault * 1000] * 12]).findings
        assert len(found) < 10 * KEPT
        assert max(f.count for f in found) > 11_000


def test_a_line_without_end_costs_no_memory_and_little_time() -> None:
    chunk = b"x" * (1 << 20)
    for start in (b"", HEAD, HEAD + b"\n", b"From ", HEAD + b"X-Y: "):
        examiner = Examiner()
        examiner.feed(start)
        tracemalloc.start()
        for _ in range(40):
            examiner.feed(chunk)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 6 << 20
        assert examiner.finish().size == len(start) + (40 << 20)
